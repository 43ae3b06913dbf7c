"""Encoders and heads: shapes, initial values, BatchNorm, positions, equality with PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layouts
from flax import nnx

from resa_jax.config import load_config
from resa_jax.errors import UserError
from resa_jax.methods.interface import create_method
from resa_jax.models import encoders, layers
from resa_jax.models.encoders import create_encoder
from resa_jax.models.heads import HEADS
from resa_jax.models.layers import BatchNorm, Frozen, call_block
from resa_jax.models.names import ENCODERS
from resa_jax.models.positions import bicubic_matrix, resize_positions, sincos_table
from resa_jax.models.resnet import RESNETS, BasicBlock, Bottleneck
from resa_jax.models.spec import EncoderSpec
from resa_jax.models.transformer import Block
from resa_jax.models.vit import VITS
from resa_jax.training.networks import build_network
from resa_jax.weights.names import encoder_slots, predictor_slots, projector_slots


SMALL_VIT = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 2}


def create_tiny(name, **options):
    """The named encoder at its smallest."""
    small = SMALL_VIT if name in VITS else {"image_size": 32, "width": 8}
    return create_encoder(name, **(small | options), rngs=nnx.Rngs(0))


def split(module):
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def abstract(create):
    """Graph, parameters and batch statistics of a module, as shapes: nothing is compiled."""
    return split(nnx.eval_shape(create))


def flat(tree):
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def filled(create):
    """A module with values by formula, much faster than running its initialisers one by one."""
    graphdef, *trees = abstract(create)

    def fill(path, leaf):
        value = torch_layouts.noise(leaf.shape, sum(map(ord, jax.tree_util.keystr(path))))
        if path[-1].key in ("kernel", "scale", "var"):
            fan_in = math.prod(leaf.shape[:-1])
            value = value * math.sqrt(6 / fan_in) if value.ndim > 1 else 1 + 0.3 * value
        else:
            value = 0.3 * value
        return jnp.asarray(value, leaf.dtype)

    return nnx.merge(graphdef, *(jax.tree_util.tree_map_with_path(fill, tree) for tree in trees))


def tiny(name, **options):
    return filled(lambda: create_tiny(name, **options))


def initial(create, *paths):
    """Some of a new module's parameters; the other initialisers are not even compiled."""

    def chosen():
        params = flat(split(create())[1])
        return {path: params[path] for path in paths}

    return jax.jit(chosen)()


# Published parameter counts without the classifier: torchvision's (minus fc) and timm's with
# num_classes=0; one conv stem and one block less for the ViTC models.
COUNTS = {
    "resnet18_cifar": 11_168_832,
    "resnet18_small": 11_168_832,
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "vit_ti16": 5_524_416,
    "vit_s16": 21_665_664,
    "vit_b16": 85_798_656,
    "vit_l16": 303_301_632,
    "vitc_s16": 20_617_392,
    "vitc_b16": 82_199_904,
    "vit_s16_mocov3": 21_665_664,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_has_the_published_tensors(name):
    small = name in ("resnet18_cifar", "resnet18_small")
    spec = EncoderSpec(name, image_size=32 if small else 224)
    slots = encoder_slots(spec)
    assert {key: slot.shape for key, slot in slots.items()} == torch_layouts.ENCODERS[name]()
    count = sum(math.prod(slot.shape) for slot in slots.values() if slot.collection == "params")
    if name in COUNTS:
        assert count == COUNTS[name]


@pytest.mark.parametrize("vit", [False, True])
def test_heads_have_the_authors_tensors(vit):
    family = "vit" if vit else "convnet"
    slots = projector_slots(family, 384, 2048, 512)
    assert {k: s.shape for k, s in slots.items()} == torch_layouts.projector(vit, 384)
    slots = predictor_slots(family, 512, 2048)
    assert {k: s.shape for k, s in slots.items()} == torch_layouts.predictor(vit)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("resnet18_cifar", [34, 34, 17, 9, 5]),
        ("resnet18_small", [32, 32, 16, 8, 4]),
        ("resnet18", [16, 8, 4, 2, 1]),
        ("resnet50", [16, 8, 4, 2, 1]),
    ],
)
def test_feature_maps(name, sides):
    def outputs():
        encoder, images = create_tiny(name, width=4), jnp.zeros((2, 32, 32, 3))
        return encoder.feature_maps(images, train=False), encoder(images, train=False)

    maps, encodings = nnx.eval_shape(outputs)
    widths = [4 * 2**stage * (4 if name == "resnet50" else 1) for stage in range(4)]
    expected = [(2, side, side, w) for side, w in zip(sides, [4, *widths], strict=True)]
    assert [m.shape for m in maps] == expected
    assert encodings.shape == (2, widths[-1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_s16", {}),
        ("vit_ti16", {"image_size": 8, "patch_size": 2, "width": 48}),
        ("vit_b16", {"patch_size": 4, "depth": 3}),
        ("vitc_s16", {}),
        ("vitc_b16", {"patch_size": 4}),
        ("vit_s16_mocov3", {}),
    ],
)
def test_vit_of_any_size(name, options):
    encoder = nnx.eval_shape(lambda: create_tiny(name, **options))
    options = SMALL_VIT | options
    size, patch = options["image_size"], options["patch_size"]
    for height, width in ((size, size), (size // 2, 2 * size)):
        encodings = nnx.eval_shape(
            lambda x: create_tiny(name, **options)(x, train=True), jnp.ones((2, height, width, 3))
        )
        assert encodings.shape == (2, options["width"])
    assert encoder.pos_embed.shape == (1, (size // patch) ** 2 + 1, options["width"])
    assert encoder.depth == options["depth"]


@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("vit_s16", {"width": 128}, 2),
        ("vitc_b16", {"width": 128}, 2),
        ("vit_s16_mocov3", {"width": 128}, 4),
        ("vit_ti16", {"width": 48}, 3),  # not a multiple of 64: the heads of the name
        ("vit_s16", {"width": None}, 6),
        ("vit_s16_mocov3", {"width": None}, 12),
    ],
)
def test_heads_of_attention_keep_their_size(name, options, heads):
    assert nnx.eval_shape(lambda: create_tiny(name, **options)).blocks_0.attn.heads == heads


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5O", {}, "nearest is 'resnet50'"),
        ("resnet18", {"patch_size": 4}, "has no patch_size"),
        ("resnet50", {"depth": 3}, "has no depth"),
        ("vit_s16", {"image_size": 100}, "multiple of 16"),
        ("vit_s16", {"width": 90}, "divisible by 4"),
        ("vit_s16", {"depth": 0}, "at least 1 block"),
        ("vitc_s16", {"image_size": 224, "patch_size": 14}, "power of 2"),
    ],
)
def test_mistakes_get_a_sentence(name, options, message):
    with pytest.raises(UserError, match=message):
        create_encoder(name, **({"image_size": 224} | options), rngs=nnx.Rngs(0))


def test_images_that_patches_do_not_divide_are_refused():
    with pytest.raises(UserError, match="patches of 8 px"):
        nnx.eval_shape(lambda x: create_tiny("vit_s16")(x, train=False), jnp.zeros((1, 30, 32, 3)))


@pytest.mark.parametrize("name", ENCODERS)
def test_state_is_nested_dicts_of_arrays(name):
    _, params, stats = abstract(lambda: create_tiny(name))

    def check(node):
        if isinstance(node, dict):
            assert all(type(key) is str for key in node)
            return all(check(child) for child in node.values())
        return isinstance(node, jax.ShapeDtypeStruct)

    assert check(params)
    assert check(stats)
    assert bool(stats) == (name not in VITS or name.startswith("vitc"))


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("resnet18", set()),
        ("vit_s16", {"pos_embed", "patch_embed/proj/kernel", "patch_embed/proj/bias"}),
        ("vit_s16_mocov3", {"pos_embed", "patch_embed/proj/kernel", "patch_embed/proj/bias"}),
        ("vitc_s16", {"pos_embed"}),
    ],
)
def test_frozen_tensors(name, frozen):
    state = nnx.state(nnx.eval_shape(lambda: create_tiny(name)), nnx.Param)
    found = {
        "/".join(path) for path, leaf in nnx.to_flat_state(state) if issubclass(leaf.type, Frozen)
    }
    assert found == frozen


def assert_uniform(values, bound):
    """The values look uniform in +-bound."""
    values = np.ravel(values)
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > bound * (1 - 20 / len(values))
    tolerance = 5 / math.sqrt(len(values))
    assert abs(values.mean()) < bound * tolerance
    assert abs(values.std() * math.sqrt(3) / bound - 1) < tolerance


def test_initial_resnets():
    for name, zero in (("resnet18", False), ("resnet50", True)):
        last = "bn3" if name == "resnet50" else "bn2"
        params = initial(
            lambda name=name: create_tiny(name, width=16),
            f"layer2_1/{last}/scale",
            "layer2_1/bn1/scale",
            "layer2_0/downsample_bn/scale",
            f"layer2_1/{last}/bias",
            "layer4_0/conv2/kernel",
        )
        assert np.all(params[f"layer2_1/{last}/scale"] == (0 if zero else 1))
        assert np.all(params["layer2_1/bn1/scale"] == 1)
        assert np.all(params["layer2_0/downsample_bn/scale"] == 1)
        assert np.all(params[f"layer2_1/{last}/bias"] == 0)
        kernel = np.asarray(params["layer4_0/conv2/kernel"])  # [3, 3, c, c]
        assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * kernel.shape[3])), rel=0.02)
        # Normal and not truncated: some values lie beyond 3 deviations.
        assert 0.001 < (np.abs(kernel) > 3 * kernel.std()).mean() < 0.005
    for name in ("resnet18", "resnet18_cifar", "resnet18_small"):
        kernel = initial(lambda name=name: create_tiny(name, width=64), "conv1/kernel")
        kernel = np.asarray(kernel["conv1/kernel"])
        if name == "resnet18":
            assert kernel.shape == (7, 7, 3, 64)
            assert kernel.std() == pytest.approx(math.sqrt(2 / (49 * 64)), rel=0.05)
        else:
            assert kernel.shape == (3, 3, 3, 64)
            assert_uniform(kernel, 1 / math.sqrt(27))


def test_initial_vits():
    width, patch = 128, 8
    params = initial(
        lambda: create_tiny("vit_s16", width=width),
        *("patch_embed/proj/kernel", "patch_embed/proj/bias", "cls_token", "norm/scale"),
        *(
            f"blocks_1/{layer}/{leaf}"
            for layer in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
            for leaf in ("kernel", "bias")
        ),
    )
    assert_uniform(params["patch_embed/proj/kernel"], math.sqrt(6 / (3 * patch**2 + width)))
    assert_uniform(params["blocks_1/attn/qkv/kernel"], math.sqrt(6 / (2 * width)))
    assert_uniform(params["blocks_1/attn/proj/kernel"], math.sqrt(6 / (2 * width)))
    for layer in ("fc1", "fc2"):
        assert_uniform(params[f"blocks_1/mlp/{layer}/kernel"], math.sqrt(6 / (5 * width)))
    assert all(np.all(value == 0) for key, value in params.items() if key.endswith("bias"))
    assert np.all(params["norm/scale"] == 1)
    assert 0.7e-6 < np.std(params["cls_token"]) < 1.3e-6
    stem = ("patch_embed/conv2/kernel", "patch_embed/proj/kernel", "patch_embed/proj/bias")
    params = initial(lambda: create_tiny("vitc_s16", width=width), *stem)
    for path, fan_in in zip(stem, (9 * width // 2, width, width), strict=True):
        assert_uniform(params[path], 1 / math.sqrt(fan_in))


@pytest.mark.parametrize(
    ("family", "head", "fans"),
    [
        ("convnet", "projector", {"linear1": 512, "linear2": 2048, "linear3": 2048}),
        ("convnet", "predictor", {"linear1": 512, "linear2": 2048}),
        ("vit", "projector", {"linear1": 2560, "linear2": 4096, "linear3": 2560}),
        ("vit", "predictor", {"linear1": 2560, "linear2": 2560}),
    ],
)
def test_initial_heads(family, head, fans):
    def create():
        projector, predictor = HEADS[family]
        if head == "projector":
            return projector(512, 2048, 512, rngs=nnx.Rngs(0))
        return predictor(512, 2048, rngs=nnx.Rngs(0))

    paths = [f"{layer}/{leaf}" for layer in fans for leaf in ("kernel", "bias")]
    params = initial(create, *paths)
    for layer, fan in fans.items():
        if family == "convnet":  # inputs: PyTorch's default
            assert_uniform(params[f"{layer}/kernel"], 1 / math.sqrt(fan))
            assert_uniform(params[f"{layer}/bias"], 1 / math.sqrt(fan))
        else:  # inputs and outputs: Xavier
            assert_uniform(params[f"{layer}/kernel"], math.sqrt(6 / fan))
            assert np.all(params[f"{layer}/bias"] == 0)


def test_projector_gives_its_hidden_layers():
    x = jnp.asarray(torch_layouts.noise((8, 16), 1), jnp.float32)
    for head, _ in HEADS.values():
        projector = filled(lambda head=head: head(16, 32, 4, rngs=nnx.Rngs(0)))
        layers = projector.layers(x, train=True)
        p0, p1, z = (layers[name] for name in projector.layer_names)
        assert (p0.shape, p1.shape, z.shape) == ((8, 32), (8, 32), (8, 4))
        np.testing.assert_allclose(p0, projector.linear1(x))
        np.testing.assert_allclose(z, projector(x, train=True), atol=1e-5)


def test_batch_norm_follows_pytorchs_formulas():
    norm = BatchNorm(3)
    norm.scale[...] = jnp.array([1.0, 2.0, -1.0])
    norm.bias[...] = jnp.array([0.5, 0.0, 1.0])
    mean, var = np.zeros(3), np.ones(3)
    for step in range(3):
        x = 4 + 3 * torch_layouts.noise((4, 5, 5, 3), step)
        y = norm(jnp.asarray(x, jnp.float32), train=True)
        rows = x.reshape(-1, 3)
        normalised = (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
        np.testing.assert_allclose(y, normalised * [1, 2, -1] + [0.5, 0, 1], atol=1e-4)
        mean = 0.9 * mean + 0.1 * rows.mean(0)
        var = 0.9 * var + 0.1 * rows.var(0, ddof=1)
        np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
        np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)
    y = norm(jnp.asarray(x, jnp.float32), train=False)
    expected = (x - mean) / np.sqrt(var + 1e-5) * [1, 2, -1] + [0.5, 0, 1]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="at least 2 values"):
        norm(jnp.zeros((1, 3)), train=True)


def test_batch_norm_of_a_mean_far_above_the_deviation():
    # The squares are 1e8 and their float32 steps 8: without the shift nothing would be left.
    norm = BatchNorm(3)
    norm.mean[...] = jnp.full(3, 1e4)
    x = (1e4 + 3 * torch_layouts.noise((4, 5, 5, 3), 0)).astype(np.float32)
    y = norm(jnp.asarray(x), train=True)
    rows = x.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(y, (x - rows.mean(0)) / rows.std(0), atol=2e-3)


def test_batch_norm_survives_a_constant_batch():
    norm = BatchNorm(2)

    graphdef, params, stats = split(norm)

    def loss(x):
        return (nnx.merge(graphdef, params, stats)(x, train=True) ** 2).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.full((4, 2), 1e3))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", ["resnet18_small", "resnet50", "vit_s16", "vitc_s16"])
@pytest.mark.parametrize("remat", [False, True])
def test_remat_reaches_every_block(name, remat):
    graphdef, params, stats = abstract(lambda: create_tiny(name, remat=remat))

    def forward(params, stats):
        return nnx.merge(graphdef, params, stats)(jnp.zeros((2, 32, 32, 3)), train=True)

    def names_in(jaxpr):
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            yield from names_in(eqn.params["jaxpr"]) if name in ("jit", "pjit") else (name,)

    names = list(names_in(jax.make_jaxpr(forward)(params, stats)))
    blocks = sum(key.startswith(("layer", "blocks_")) for key in params)
    kept = sum(name in ("checkpoint", "remat", "remat2") for name in names)
    if name.startswith("vit"):  # whose attention is always made again
        assert kept == blocks
        assert (names.count("dot_general") >= 4 * blocks) == (not remat)
    else:
        assert kept == blocks * remat


def test_remat_does_not_make_attention_once_more():
    graphdef, params, stats = abstract(lambda: Block(16, 2, dtype=None, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((2, 5, 16), jnp.float32)

    def products(remat):
        def loss(params, x):
            return call_block(nnx.merge(graphdef, params, stats), x, train=True, remat=remat).sum()

        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return gradient.lower(params, x).as_text().count("stablehlo.dot_general")

    # Anew are the maps to queries, keys and values, behind attention, and into the MLP.
    assert products(True) == products(False) + 3


@pytest.mark.parametrize("remat", [False, True])
def test_with_remat_a_block_s_gradients_leave_together(remat):
    graphdef, params, stats = abstract(lambda: Block(16, 2, dtype=None, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((2, 5, 16), jnp.float32)

    def loss(params, x):
        return call_block(nnx.merge(graphdef, params, stats), x, train=True, remat=remat).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, x)
    barriers = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "optimization_barrier"]
    last = {id(result) for eqn in barriers for result in eqn.outvars}
    assert all((id(result) in last) == remat for result in jaxpr.jaxpr.outvars)


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "transformer"])
def test_remat_changes_nothing(kind):
    def create():
        options = {"dtype": None, "rngs": nnx.Rngs(0)}
        if kind == "transformer":
            return Block(16, 2, **options)
        block = BasicBlock if kind == "basic" else Bottleneck
        return block(16, 8, 2, zero_init=False, **options)

    graphdef, params, stats = split(filled(create))
    shape = (2, 5, 16) if kind == "transformer" else (2, 6, 6, 16)
    x = jnp.asarray(torch_layouts.noise(shape, 1), jnp.float32)
    results = []
    for remat in (False, True):

        def loss(params, x, remat=remat):
            block = nnx.merge(graphdef, params, stats)
            value = (call_block(block, x, train=True, remat=remat) ** 2).sum()
            return value, nnx.to_pure_dict(nnx.state(block, nnx.BatchStat))

        results.append(jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x))
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), results[-1][0][1], stats)
        assert all(jax.tree.leaves(moved))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for plain, again in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(plain, again, atol=1e-5 * float(jnp.abs(plain).max()))


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet50", "vit_s16", "vitc_s16"])
def test_bfloat16_leaves_parameters_and_statistics_in_float32(name):
    def outputs():
        encoder = create_tiny(name, dtype=jnp.bfloat16)
        options = {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
        create_projector, create_predictor = HEADS[encoder.family]
        projector = create_projector(encoder.num_features, 32, 16, **options)
        predictor = create_predictor(16, 32, **options)
        encodings = encoder(jnp.zeros((2, 32, 32, 3)), train=True)
        embeddings = projector(encodings, train=True)
        predictions = predictor(embeddings, train=True)
        return (encodings, embeddings, predictions), split(encoder)[1:], split(projector)[1:]

    computed, *kept = nnx.eval_shape(outputs)
    assert {leaf.dtype for leaf in computed} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}


def test_bfloat16_is_near_float32():
    images = jnp.asarray(torch_layouts.noise((4, 32, 32, 3), 1), jnp.float32)
    results = []
    for dtype in (None, jnp.bfloat16):
        graphdef, params, stats = split(tiny("vitc_s16", dtype=dtype, depth=1))

        @jax.jit
        def forward(params, stats, graphdef=graphdef):
            encoder = nnx.merge(graphdef, params, stats)
            encodings = encoder(images, train=True)
            return encodings, nnx.to_pure_dict(nnx.state(encoder, nnx.BatchStat))

        results.append(jax.tree.leaves(forward(params, stats)))
    for exact, rough in zip(*results, strict=True):
        error = jnp.linalg.norm(exact - rough) / jnp.linalg.norm(exact)
        assert 0 < error < 0.03


def test_position_tables():
    ours, mocov3 = (sincos_table(32, 5, 5, rows_first=rows_first) for rows_first in (False, True))
    assert ours.shape == (26, 32)
    assert ours.dtype == np.float64
    assert np.all(ours[0] == 0)
    np.testing.assert_array_equal(mocov3, np.concatenate([ours[:, 16:], ours[:, :16]], axis=1))
    for row in range(5):
        for column in range(5):
            # Patches run row by row; the column comes first in ours.
            expected = [
                function(coordinate / 10000 ** (k / 8))
                for coordinate in (column, row)
                for function in (math.sin, math.cos)
                for k in range(8)
            ]
            np.testing.assert_allclose(ours[1 + 5 * row + column], expected, atol=1e-12)
    for name, table in (("vit_s16", False), ("vit_s16_mocov3", True)):
        params = initial(lambda name=name: create_tiny(name), "pos_embed")
        expected = sincos_table(64, 4, 4, rows_first=table).astype(np.float32)
        np.testing.assert_array_equal(params["pos_embed"][0], expected)


def keys_kernel(distance, a=-0.75):
    """Keys' cubic convolution kernel (1981, equation 4 with a for -1/2)."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


@pytest.mark.parametrize(("n_in", "n_out"), [(14, 6), (14, 14), (14, 24), (4, 1)])
def test_bicubic_matrix(n_in, n_out):
    expected = np.zeros((n_out, n_in))
    for i in range(n_out):
        position = (i + 0.5) * n_in / (n_out + 0.1) - 0.5
        for j in range(math.floor(position) - 1, math.floor(position) + 3):
            expected[i, min(max(j, 0), n_in - 1)] += keys_kernel(position - j)
    np.testing.assert_allclose(bicubic_matrix(n_in, n_out), expected, atol=1e-12)
    np.testing.assert_allclose(bicubic_matrix(n_in, n_out).sum(1), 1, atol=1e-12)


def test_positions_of_the_tables_own_grid_are_untouched():
    table = jnp.asarray(torch_layouts.noise((1, 17, 8), 0), jnp.float32)
    assert resize_positions(table, 4, 4) is table
    # An oblong grid of as many patches is another grid.
    assert not np.allclose(resize_positions(table, 2, 8), table)


def test_last_cls():
    encoder = tiny("vit_s16")
    images = jnp.asarray(torch_layouts.noise((2, 32, 32, 3), 1), jnp.float32)

    @nnx.jit
    def outputs(encoder):
        tokens = encoder.last_cls(images, 2)
        last = encoder(images, train=False)
        encoder.depth = 1  # the same network with a block less
        return tokens, last, encoder(images, train=False)

    tokens, last, first = outputs(encoder)
    np.testing.assert_allclose(tokens, np.concatenate([first, last], axis=1), atol=1e-5)
    with pytest.raises(UserError, match="use 1 to 2"):
        tiny("vit_s16").last_cls(images, 3)


# Against PyTorch, in float64.


def merge(create, slots, tensors):
    """Our module with PyTorch's tensors in its slots."""
    trees = {"params": {}, "batch_stats": {}}
    for name, slot in slots.items():
        node = trees[slot.collection]
        for key in slot.path[:-1]:
            node = node.setdefault(key, {})
        node[slot.path[-1]] = jnp.asarray(slot.from_torch(tensors[name]))
    graphdef = nnx.split(nnx.eval_shape(create), nnx.Param, nnx.BatchStat)[0]
    return nnx.merge(graphdef, trees["params"], trees["batch_stats"])


def assert_close(ours, theirs):
    """Equal to 1e-9 of the largest value."""
    theirs = theirs.detach().numpy()
    assert ours.dtype == theirs.dtype == np.float64
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < 1e-9
    assert np.std(theirs, axis=0).max() > 1e-3 * np.abs(theirs).max()  # the inputs matter


def assert_equal_state(module, slots, reference):
    """Running statistics are equal to 1e-9 relative."""
    state = reference.state_dict()
    for name, slot in slots.items():
        if slot.collection == "batch_stats":
            node = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
            for key in slot.path:
                node = node[key]
            np.testing.assert_allclose(node, state[name].numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18_cifar", 32),
        ("resnet18_small", 32),
        ("resnet18", 64),
        ("resnet50", 64),
        ("vit_s16", 224),
        ("vit_s16", 96),
        ("vit_s16_mocov3", 96),
        ("vitc_s16", 224),
    ],
)
def test_encoders_equal_pytorchs(name, side):
    torch = pytest.importorskip("torch")
    import torch_models

    tensors = torch_layouts.formula(torch_layouts.ENCODERS[name]())
    images = torch_layouts.noise((2, side, side, 3), 5)
    theirs = torch_models.load(torch_models.ENCODERS[name](), tensors)
    torch_images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    table_size = 32 if name in ("resnet18_cifar", "resnet18_small") else 224
    slots = encoder_slots(EncoderSpec(name, image_size=table_size))
    with jax.enable_x64(True), torch.no_grad():
        ours = merge(
            lambda: create_encoder(name, image_size=table_size, rngs=nnx.Rngs(0)), slots, tensors
        )
        images = jnp.asarray(images)
        call = nnx.jit(
            lambda encoder, images, train: encoder(images, train=train), static_argnums=2
        )
        assert_close(call(ours, images, False), theirs.eval()(torch_images))
        if name.startswith("vit") and side == 96:
            tokens = ours.last_cls(images, 4)
            assert_close(tokens, theirs.last_cls(torch_images, 4))
        if slots and any(slot.collection == "batch_stats" for slot in slots.values()):
            assert_close(call(ours, images, True), theirs.train()(torch_images))
            assert_equal_state(ours, slots, theirs)


@pytest.mark.torch
@pytest.mark.parametrize("vit", [False, True])
@pytest.mark.parametrize("head", ["projector", "predictor"])
def test_heads_equal_pytorchs(vit, head):
    torch = pytest.importorskip("torch")
    import torch_models

    family, inputs = "vit" if vit else "convnet", torch_layouts.noise((6, 64), 3)
    if head == "projector":
        tensors = torch_layouts.formula(torch_layouts.projector(vit, 64, 128, 32))
        theirs = torch_models.projector(vit, 64, 128, 32)
        slots = projector_slots(family, 64, 128, 32)
        create = lambda: HEADS[family][0](64, 128, 32, rngs=nnx.Rngs(0))
    else:
        tensors = torch_layouts.formula(torch_layouts.predictor(vit, 64, 128))
        theirs = torch_models.predictor(vit, 64, 128)
        slots = predictor_slots(family, 64, 128)
        create = lambda: HEADS[family][1](64, 128, rngs=nnx.Rngs(0))
    theirs = torch_models.load(theirs, tensors)
    with jax.enable_x64(True), torch.no_grad():
        ours = merge(create, slots, tensors)
        for train in (False, True):
            theirs.train(train)
            assert_close(
                ours(jnp.asarray(inputs), train=train), theirs(torch.from_numpy(inputs.copy()))
            )
        assert_equal_state(ours, slots, theirs)


@pytest.mark.torch
@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (14, 7), (24, 10), (1, 2)])
def test_positions_equal_pytorchs_bicubic(rows, columns):
    torch = pytest.importorskip("torch")
    table = torch_layouts.noise((1, 197, 8), 0)
    patches = torch.from_numpy(table[:, 1:].reshape(1, 14, 14, 8).transpose(0, 3, 1, 2).copy())
    expected = torch.nn.functional.interpolate(
        patches, scale_factor=((rows + 0.1) / 14, (columns + 0.1) / 14), mode="bicubic"
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 8).numpy()
    with jax.enable_x64(True):
        ours = resize_positions(jnp.asarray(table), rows, columns)
    np.testing.assert_allclose(ours[:, 1:], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(ours[:, 0], table[:, 0])


@pytest.mark.torch
def test_initialisers_equal_pytorchs_distributions():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ours = initial(
        lambda: HEADS["convnet"][0](512, 2048, 512, rngs=nnx.Rngs(0)),
        *("linear1/kernel", "linear1/bias"),
    )
    theirs = torch.nn.Linear(512, 2048)
    for mine, other in (
        (ours["linear1/kernel"], theirs.weight),
        (ours["linear1/bias"], theirs.bias),
    ):
        assert np.std(mine) == pytest.approx(other.std().item(), rel=0.05)
        assert np.abs(mine).max() == pytest.approx(other.abs().max().item(), rel=0.01)
    conv = torch.nn.Conv2d(64, 128, 3)
    torch.nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    kernel = initial(lambda: create_tiny("resnet18", width=64), "layer2_0/conv1/kernel")
    assert np.std(kernel["layer2_0/conv1/kernel"]) == pytest.approx(
        conv.weight.std().item(), rel=0.02
    )


def test_the_names_of_the_encoders_are_those_that_are_built():
    assert set(ENCODERS) == {*encoders._SMALL_STEMS, *RESNETS, *VITS}


@pytest.mark.parametrize(
    "dtype, error", [("float64", 1e-15), ("float32", 1e-6), ("bfloat16", 0.02)]
)
def test_gelu_and_its_derivative(dtype, error):
    """Against the normal distribution of the standard library; the tails too."""
    with jax.enable_x64(True):
        x = jnp.linspace(-8, 8, 401).astype(dtype)
        exact = [float(value) for value in x]
        below = [math.erfc(-value / math.sqrt(2)) / 2 for value in exact]
        density = [math.exp(-(value**2) / 2) / math.sqrt(2 * math.pi) for value in exact]
        values, slopes = jax.vmap(jax.value_and_grad(layers.gelu))(x)
        rows = zip(exact, below, density, strict=True)
        expected = np.array([[v * p, p + v * d] for v, p, d in rows])
        assert values.dtype == slopes.dtype == x.dtype
        for found, wanted in ((values, expected[:, 0]), (slopes, expected[:, 1])):
            np.testing.assert_allclose(np.asarray(found, float), wanted, rtol=error, atol=error)


@pytest.mark.parametrize(("name", "usual"), [("resnet18_small", False), ("resnet50", True)])
def test_the_last_scale_of_a_block_starts_at_zero_on_request(name, usual):
    last = "bn3" if name == "resnet50" else "bn2"
    for asked in (None, False, True):
        overrides = [f"encoder.name={name}", f"encoder.zero_init={asked}", "encoder.width=4"]
        config = load_config("digits:simclr,smoke", overrides)
        network = build_network(config, create_method(config.method), nnx.Rngs(0))
        params = split(network.encoder)[1]
        scales = [
            np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if [key.key for key in path][-2:] == [last, "scale"]
        ]
        assert len(scales) == (16 if name == "resnet50" else 8)
        expected = usual if asked is None else asked
        assert all((scale == 0).all() == expected for scale in scales)
    with pytest.raises(UserError, match=r"encoder\.zero_init is True, but vit_s16 has none"):
        create_encoder("vit_s16", image_size=32, zero_init=True, rngs=nnx.Rngs(0))

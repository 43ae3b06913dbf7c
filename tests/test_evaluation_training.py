"""linear-imagenet and the fine-tuning protocols against statements written out anew.

Views are the centre crops of the test images, so that the other statement sees the same ones.
"""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from data_samples import prepare_tfds
from flax import nnx
from PIL import Image

from resa_jax.data.sources import open_source
from resa_jax.encoder import Encoder
from resa_jax.errors import UserError
from resa_jax.evaluation import finetune, training
from resa_jax.evaluation.linear_imagenet import linear_imagenet
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.evaluation.protocols import create_protocol
from resa_jax.evaluation.training import Subset, open_subsets
from resa_jax.models.encoders import create_encoder
from resa_jax.models.network import Network, frozen_mask, split
from resa_jax.models.spec import EncoderSpec


SPEC = EncoderSpec("resnet18_small", image_size=8, width=8, mean=(0.3,) * 3, std=(0.4,) * 3)
PREPROCESSING = Preprocessing.of(SPEC, "bilinear")


def make_encoder(spec):
    """The encoder, and its module in evaluation mode."""
    options = {"patch_size": spec.patch_size, "width": spec.width, "depth": spec.depth}
    module = create_encoder(spec.name, image_size=spec.image_size, **options, rngs=nnx.Rngs(0))
    return Encoder(spec, *split(Network(module))[1:]), module


@pytest.fixture(scope="module")
def subsets():
    source = open_source("digits")
    train, test = np.arange(0, 300, 5), np.arange(1, 200, 5)  # 60 and 40 images
    return (Subset(source, rows, source.labels[rows]) for rows in (train, test))


@pytest.fixture(autouse=True)
def centre_crops(monkeypatch):
    def same(key, images, sizes, views, mean, std, white):
        return (PREPROCESSING(images, sizes),)

    monkeypatch.setattr(training, "augment", same)


@pytest.fixture(scope="module")
def sets(subsets):
    train, test = subsets
    images = [np.stack([part.source[row] for row in part.rows]) for part in (train, test)]
    inputs = [(jnp.asarray(pixels, jnp.float32) / 255 - 0.3) / 0.4 for pixels in images]
    return train, test, inputs


def orders(seed, epochs, count):
    return [np.random.default_rng((seed, epoch)).permutation(count) for epoch in range(epochs)]


def accuracies(logits, labels):
    order = np.argsort(-logits, axis=1, kind="stable")
    hits = order == labels[:, None]
    return {"top1": 100 * hits[:, 0].mean(), "top5": 100 * hits[:, :5].any(1).mean()}


def softmax_gradient(features, targets, kernel, bias):
    logits = features @ kernel + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    error = (probabilities - targets) / len(features)
    return features.T @ error, error.sum(0)


def test_linear_imagenet_equals_slow_statement(sets):
    """Also with decay, which the protocol's default leaves out."""
    train, test, inputs = sets
    encoder, module = make_encoder(SPEC)
    fields = {"epochs": 5, "batch_size": 16, "rates": (2.0, 30.0), "milestones": (2, 4)}
    protocol = create_protocol("linear-imagenet", **fields, weight_decay=0.01)
    results = linear_imagenet(protocol, encoder, PREPROCESSING, train, test, seed=3)

    features, held_out = (
        np.asarray(module(x, train=False), np.float64) for x in inputs
    )  # the encoder in evaluation mode
    initial = 0.01 * jax.random.normal(jax.random.key(3), (features.shape[1], 10))
    assert list(results) == ["rate=2", "rate=30"]
    for rate in (2.0, 30.0):
        weights = [np.asarray(initial, np.float64), np.zeros(10)]
        trace, curve = [0, 0], []
        for epoch, order in enumerate(orders(3, 5, 60)):
            step = rate * 16 / 256 * 0.1 ** ((epoch >= 2) + (epoch >= 4))
            for start in range(0, 60, 16):  # the last batch has 12
                rows = order[start : start + 16]
                targets = np.eye(10)[train.labels[rows]]
                gradients = softmax_gradient(features[rows], targets, *weights)
                gradients = [g + 0.01 * w for g, w in zip(gradients, weights, strict=True)]
                trace = [0.9 * old + new for old, new in zip(trace, gradients, strict=True)]
                weights = [w - step * t for w, t in zip(weights, trace, strict=True)]
            curve.append(accuracies(held_out @ weights[0] + weights[1], test.labels))
        best = max(range(5), key=lambda epoch: curve[epoch]["top1"])
        assert results[f"rate={rate:g}"]["last"] == pytest.approx(curve[-1])
        assert results[f"rate={rate:g}"]["best"] == pytest.approx(curve[best] | {"epoch": best + 1})


@pytest.mark.slow
def test_finetune_equals_slow_statement(sets, tmp_path, monkeypatch):
    """Encoder and head by optax, BatchNorm in train mode.

    The eight devices fill a batch of 60 images up to 64, which BatchNorm must not see. The encoder
    has BatchNorm (in its stem) and a tensor that must not train (the positions).
    """
    train, test, inputs = sets
    spec = dataclasses.replace(SPEC, name="vitc_s16", patch_size=4, width=64, depth=1)
    network, encoder = make_encoder(spec)
    (tmp_path / "list.txt").write_text("a\n")
    fields = {"epochs": 4, "batch_size": 60, "encoder_rate": 0.1, "head_rate": 4.0}
    protocol = create_protocol("finetune-1", list_file=str(tmp_path / "list.txt"), **fields)
    logits = []
    real = finetune.logits_accuracy
    monkeypatch.setattr(finetune, "logits_accuracy", lambda *a: (logits.append(a[0]), real(*a))[1])
    result = finetune.finetune(protocol, network, PREPROCESSING, train, test, seed=2)

    graphdef, params, stats = split(encoder)
    kernel = 0.01 * jax.random.normal(jax.random.key(2), (encoder.num_features, 10))
    state = {"encoder": params, "head": {"kernel": kernel, "bias": jnp.zeros(10)}}

    def rate(peak):
        return lambda step: peak * 60 / 256 * (1 + jnp.cos(jnp.pi * step / 4)) / 2

    optimizer = optax.multi_transform(
        {
            "encoder": optax.sgd(rate(0.1), 0.9),
            "head": optax.sgd(rate(4.0), 0.9),
            "frozen": optax.set_to_zero(),
        },
        {
            "encoder": jax.tree.map(lambda _: "encoder", params) | {"pos_embed": "frozen"},
            "head": "head",
        },
    )
    moments = optimizer.init(state)

    def loss(state, stats, images, labels):
        model = nnx.merge(graphdef, state["encoder"], stats)
        outputs = model(images, train=True) @ state["head"]["kernel"] + state["head"]["bias"]
        value = optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()
        return value, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    curve = []
    for rows in orders(2, 4, 60):
        gradients, stats = gradient(state, stats, inputs[0][rows], train.labels[rows])
        updates, moments = optimizer.update(gradients, moments)
        state = optax.apply_updates(state, updates)
        model = nnx.merge(graphdef, state["encoder"], stats)
        outputs = model(inputs[1], train=False) @ state["head"]["kernel"] + state["head"]["bias"]
        curve.append(np.asarray(outputs))
    np.testing.assert_allclose(logits, curve, rtol=1e-2, atol=1e-2)
    assert result["finetune"]["last"] == pytest.approx(accuracies(logits[-1], test.labels))
    assert set(result["finetune"]["best"]) == {"top1", "top5", "epoch"}


def test_sgd_equals_slow_statement():
    """Two rates that fall, momentum and decay, in float64 NumPy."""
    rng = np.random.default_rng(0)
    start, rates = rng.normal(size=(2, 7)), np.array([0.5, 3.0])
    gradients = rng.normal(size=(6, 2, 7))
    params = jnp.asarray(start, jnp.float32)
    state = jax.vmap(training.sgd(0.0, 0.9, 0.02).init)(params)

    def move(param, state, gradient, rate):
        updates, state = training.sgd(rate, 0.9, 0.02).update(gradient, state, param)
        return optax.apply_updates(param, updates), state

    weights, trace = start.copy(), np.zeros_like(start)
    for step, gradient in enumerate(gradients):
        now = rates * 0.5**step
        params, state = jax.vmap(move)(params, state, jnp.asarray(gradient), jnp.asarray(now))
        trace = 0.9 * trace + gradient + 0.02 * weights
        weights = weights - now[:, None] * trace
    np.testing.assert_allclose(params, weights, rtol=1e-6, atol=1e-6)


def test_finetuning_decays_all_but_frozen_tensors(tmp_path):
    """Without gradients each step is p -= rate * (0.9 trace + decay * p)."""
    spec = EncoderSpec("vit_ti16", image_size=16, patch_size=8, width=64, depth=1)
    encoder, module = make_encoder(spec)
    frozen = frozen_mask(Network(module))
    assert sum(jax.tree.leaves(frozen)) == 3  # the positions, and the patches' kernel and bias
    protocol = create_protocol("finetune-1", list_file="any", weight_decay=0.1)
    params = encoder.params | {"heads": {"kernel": jnp.ones((1, 64, 3)), "bias": jnp.ones((1, 3))}}
    optimizer = finetune.create_optimizer(protocol, frozen, {"encoder": 0.5, "heads": 2.0})
    state, moved = optimizer.init(params), params
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, moved)
        moved = optax.apply_updates(moved, updates)

    def after(rate):
        first = 1 - rate * 0.1
        return first - rate * (0.9 * 0.1 + 0.1 * first)

    factors = jax.tree.map(lambda keep: 1.0 if keep else after(0.5), frozen)
    factors["heads"] = {"kernel": after(2.0), "bias": after(2.0)}
    expected = jax.tree.map(lambda factor, leaf: factor * leaf, factors, params)
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, moved, expected)


def test_rates_and_blocks_by_architecture():
    """Table 9 of the paper."""

    def resolve(protocol, spec, batch):
        return protocol.resolve(SimpleNamespace(spec=spec), None, batch)[0]

    protocol = create_protocol("linear-imagenet")
    for batch, rate in ((1024, 40.0), (256, 10.0), (None, 10.0), (128, 5.0)):
        assert resolve(protocol, SPEC, batch).rates == (rate,)
    assert resolve(protocol, SPEC, 256).blocks == 0
    assert resolve(create_protocol("linear-imagenet", rates=(1.0,)), SPEC, 256).rates == (1.0,)
    for name, rate, blocks in (("vit_s16", 0.03, 4), ("vit_b16", 0.02, 1), ("vitc_b16", 0.02, 1)):
        vit = EncoderSpec(name, image_size=32, width=64, depth=6)
        resolved = resolve(protocol, vit, 1024)
        assert (resolved.rates, resolved.blocks) == ((rate,), blocks)
    assert resolve(create_protocol("linear-imagenet", blocks=2), vit, 1024).blocks == 2
    shallow = EncoderSpec("vit_s16", image_size=32, width=64, depth=2)
    assert resolve(protocol, shallow, 1024).blocks == 2


def test_only_listed_images_train(tmp_path):
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    source = open_source(f"folder:{tmp_path / 'images'}")
    everything, _ = open_subsets(source, source)
    names = tmp_path / "names.txt"
    names.write_text("d.png\ncat/a.png\n\n")
    chosen = finetune.only_listed(everything, str(names))
    assert (chosen.rows.tolist(), chosen.labels.tolist()) == ([0, 3], [0, 1])
    names.write_text("a.png\nz.png\n")
    with pytest.raises(UserError, match=r"lists z.png, .* \(1 of 2 names"):
        finetune.only_listed(everything, str(names))
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "dog" / "a.png")
    everything, _ = open_subsets(open_source(f"folder:{tmp_path / 'images'}"), source)
    names.write_text("dog/a.png\n")
    assert finetune.only_listed(everything, str(names)).labels.tolist() == [1]
    for ambiguous in ("a.png", "bird/a.png"):
        names.write_text(f"{ambiguous}\n")
        with pytest.raises(UserError, match=f"lists {ambiguous}, .* several images of that name"):
            finetune.only_listed(everything, str(names))
    with pytest.raises(UserError, match="give a folder:PATH, or a tfds:NAME whose records"):
        finetune.only_listed(open_subsets(open_source("digits"), None)[0], str(names))


def test_lists_name_the_files_of_a_tfds_data_set(tmp_path, monkeypatch):
    """As SimCLR's lists and imagenet2012: large images, which are read on access."""
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    for number, name in enumerate(names):
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (120, 100), (60 * number, 0, 0)).save(path)
    prepare_tfds(tmp_path / "tfds", "listed", tmp_path / "images", (None, None, 3))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "names.txt").write_text("c.jpg\nb.jpg\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    source = open_source("tfds:listed")
    assert not source.in_memory and sorted(source.file_names()) == names
    chosen = finetune.only_listed(open_subsets(source, source)[0], str(tmp_path / "names.txt"))
    reds = [int(source[row][0, 0, 0]) // 50 for row in chosen.rows]
    assert dict(zip(reds, chosen.labels, strict=True)) == {1: 1, 2: 0}
    cats = open_source("tfds:listed", classes=str(tmp_path / "classes.txt"))
    assert sorted(cats.file_names()) == ["a.jpg", "c.jpg"]


def test_without_a_list_a_share_of_each_class_trains():
    labels = np.repeat([0, 1, 2], [200, 30, 4])
    everything = Subset(open_source("digits"), np.arange(500, 734), labels)
    chosen = finetune.balanced_share(everything, 0.1)
    assert np.bincount(chosen.labels).tolist() == [20, 3, 1]
    np.testing.assert_array_equal(labels[chosen.rows - 500], chosen.labels)
    assert len(set(chosen.rows)) == 24
    np.testing.assert_array_equal(finetune.balanced_share(everything, 0.1).rows, chosen.rows)
    assert len(set(chosen.rows) & set(range(500, 520))) < 20  # not the first ones
    for name, number in (("finetune-1", 4), ("finetune-10", 24)):
        protocol = create_protocol(name)
        same, train = protocol.resolve(None, everything, None)
        assert same == protocol and len(train.labels) == number

"""Feature extraction, its cache, and the protocols' own ways with images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_run import make_run
from flax import nnx
from PIL import Image

from resa_jax.checkpoint import read_subtree
from resa_jax.data.sources import open_source
from resa_jax.encoder import Encoder, load_encoder
from resa_jax.errors import UserError
from resa_jax.evaluation import features
from resa_jax.evaluation.features import encode_rows, extract
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.models.encoders import create_encoder
from resa_jax.models.network import Network, split
from resa_jax.models.spec import EncoderSpec
from resa_jax.sharding import create_mesh


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("features") / "run")


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


ROWS = np.arange(0, 1797, 40)  # 45 images: the last batch is not full


def test_encodings_are_those_of_the_encoder(workdir, digits):
    encoder = load_encoder(workdir)
    assert (encoder.step, encoder.network) == (4, "ema")
    arrays = extract(
        encoder, digits, "digits", Preprocessing.of(encoder.spec), rows=ROWS, batch_size=16
    )
    expected = encoder(np.stack([digits[row] for row in ROWS]))
    np.testing.assert_allclose(arrays["encoding"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(arrays["labels"], digits.labels[ROWS])
    np.testing.assert_array_equal(arrays["indices"], ROWS)


@pytest.mark.parametrize("rows", [ROWS, np.random.default_rng(0).permutation(ROWS)])
def test_rows_belong_together_in_any_order_of_devices(digits, rows):
    mesh = create_mesh(list(np.random.default_rng(1).permutation(jax.devices())))
    mean = lambda images, sizes: {"mean": images.astype(np.float32).mean((1, 2, 3))[:, None]}
    arrays = encode_rows(mean, digits, rows, 16, mesh)
    np.testing.assert_array_equal(arrays["indices"], rows)
    np.testing.assert_array_equal(arrays["labels"], digits.labels[rows])
    expected = [[digits[row].mean()] for row in rows]
    np.testing.assert_allclose(arrays["mean"], expected, rtol=1e-5)


def test_rows_that_come_back_in_another_order_are_sorted(digits, monkeypatch):
    """As from processes whose devices are not in the order of the batch's rows."""

    def shuffled(outputs, tiled):
        order = np.random.default_rng(0).permutation(len(outputs["labels"]))
        return {name: np.asarray(values)[order] for name, values in outputs.items()}

    monkeypatch.setattr(features.multihost_utils, "process_allgather", shuffled)
    mean = lambda images, sizes: {"mean": images.astype(np.float32).mean((1, 2, 3))[:, None]}
    arrays = encode_rows(mean, digits, ROWS, 16, create_mesh())
    np.testing.assert_array_equal(arrays["indices"], ROWS)
    np.testing.assert_array_equal(arrays["labels"], digits.labels[ROWS])
    np.testing.assert_allclose(arrays["mean"], [[digits[row].mean()] for row in ROWS], rtol=1e-5)


def test_layers_of_the_projector(workdir, digits):
    """P0, P1 and Z written out from the checkpoint's arrays and running statistics."""
    encoder = load_encoder(workdir / "checkpoints" / "2", projector=True)
    layers = ("encoding", "p0", "p1", "embedding")
    assert encoder.layer_names == layers
    arrays = extract(encoder, digits, "digits", Preprocessing.of(encoder.spec), layers, rows=ROWS)
    names = ("ema_params/projector", "ema_batch_stats/projector")
    saved = read_subtree(workdir / "checkpoints" / "2", *names)
    weights, stats = (saved[name] for name in names)

    def linear(name, x):
        return x @ weights[name]["kernel"] + weights[name]["bias"]

    def norm(name, x):
        x = (x - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
        affine = weights.get(name)
        return x if affine is None else x * affine["scale"] + affine["bias"]

    p0 = linear("linear1", arrays["encoding"])
    p1 = linear("linear2", np.maximum(norm("bn1", p0), 0))
    z = norm("bn3", linear("linear3", np.maximum(norm("bn2", p1), 0)))
    for name, expected in (("p0", p0), ("p1", p1), ("embedding", z)):
        np.testing.assert_allclose(arrays[name], expected, rtol=1e-4, atol=1e-4)


def test_export_in_its_run_has_the_projector_and_elsewhere_has_not(workdir, digits, tmp_path):
    names = ("encoding", "p0", "p1", "embedding")
    assert load_encoder(workdir / "encoder", projector=True).layer_names == names
    assert load_encoder(workdir / "encoder").layer_names == names[:1]
    (workdir / "encoder").rename(tmp_path / "encoder")
    try:
        encoder = load_encoder(tmp_path / "encoder", projector=True)
        assert (encoder.step, encoder.layer_names) == (4, names[:1])
        with pytest.raises(UserError, match="holds no layer 'p0', only encoding"):
            extract(encoder, digits, "digits", Preprocessing.of(encoder.spec), ("p0",))
    finally:
        (tmp_path / "encoder").rename(workdir / "encoder")


@pytest.mark.slow
def test_cache_serves_the_same_weights_images_and_preprocessing_only(
    workdir, digits, tmp_path, monkeypatch
):
    counted, computed = [], []
    compute = features.encode_rows

    def counting(*arguments):
        counted.append(1)
        if computed:
            return computed[0] | {"p0": computed[0]["embedding"]}
        computed.append(compute(*arguments))
        return computed[0]

    monkeypatch.setattr(features, "encode_rows", counting)

    def run(step=4, rows=ROWS, layers=("encoding",), **changes):
        encoder = load_encoder(workdir / "checkpoints" / str(step), projector=True)
        values = vars(Preprocessing.of(encoder.spec)) | changes
        preprocessing = Preprocessing(**values)
        return extract(encoder, digits, "digits", preprocessing, layers, rows=rows, cache=tmp_path)

    first = run(layers=("encoding", "embedding"))
    again = run()
    np.testing.assert_array_equal(first["encoding"], again["encoding"])
    np.testing.assert_array_equal(first["labels"], again["labels"])
    assert len(counted) == 1
    for change in ({"step": 2}, {"rows": ROWS[:-1]}, {"mean": (0.1,) * 3}, {"layers": ("p0",)}):
        run(**change)
    assert len(counted) == 5


def test_undecodable_images_have_no_row(workdir, tmp_path):
    """Large images are decoded on access, where a stand-in takes a bad one's place."""
    rng = np.random.default_rng(0)
    for n in range(5):
        pixels = rng.integers(0, 256, (120, 100, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    source = open_source(f"folder:{tmp_path}", on_bad_image="skip")
    encoder = load_encoder(workdir)
    arrays = extract(encoder, source, "folder", Preprocessing.of(encoder.spec), batch_size=2)
    assert arrays["indices"].tolist() == [0, 1, 3, 4]
    assert arrays["encoding"].shape[0] == 4
    assert arrays["labels"].tolist() == [-1] * 4


def make_vit(depth):
    spec = EncoderSpec("vit_ti16", image_size=32, width=64, depth=depth)
    module = create_encoder("vit_ti16", image_size=32, width=64, depth=depth, rngs=nnx.Rngs(0))
    return module, Encoder(spec, *split(Network(module))[1:])


def test_patches_must_divide_the_images(digits):
    _, encoder = make_vit(2)
    preprocessing = Preprocessing(24, 24, "bicubic", encoder.spec.mean, encoder.spec.std)
    with pytest.raises(UserError, match="24 x 24 do not divide into patches of 16"):
        extract(encoder, digits, "digits", preprocessing, rows=ROWS[:8])


def test_features_for_the_linear_evaluation_of_vits():
    """One block: [CLS] and the mean of the patches; several: their [CLS], each after the norm."""
    module, encoder = make_vit(3)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    x, tokens = module.tokens(images, train=False), []
    for index in range(3):
        x = getattr(module, f"blocks_{index}")(x, train=False)
        tokens.append(module.norm(x))
    one = jnp.concatenate([tokens[2][:, 0], tokens[2][:, 1:].mean(1)], axis=1)
    np.testing.assert_allclose(encoder.linear_features(images, blocks=1), one, atol=1e-5)
    two = jnp.concatenate([tokens[1][:, 0], tokens[2][:, 0]], axis=1)
    np.testing.assert_allclose(encoder.linear_features(images, blocks=2), two, atol=1e-5)


def test_linear_evaluation_of_convnets_reads_the_encoding(workdir, digits):
    encoder = load_encoder(workdir)
    images = np.stack([digits[row] for row in range(4)])
    inputs = (jnp.asarray(images, jnp.float32) / 255 - 0.3) / 0.4
    features = encoder.linear_features(inputs, blocks=0)
    np.testing.assert_allclose(features, encoder(images), rtol=1e-5, atol=1e-5)


def test_preprocessing_of_an_encoder():
    assert Preprocessing.of(EncoderSpec("resnet50", 224)).resize == 256
    assert Preprocessing.of(EncoderSpec("resnet18_cifar", 32)).resize == 32
    assert Preprocessing.of(EncoderSpec("resnet50", 224, resize=232)).resize == 232

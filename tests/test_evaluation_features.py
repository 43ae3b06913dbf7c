"""Feature extraction, its cache, and the protocols' own ways with images."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_run import make_run
from flax import nnx
from PIL import Image

from resa_jax.checkpoint import read_subtree
from resa_jax.data.sources import open_source
from resa_jax.encoder import load_encoder
from resa_jax.errors import UserError
from resa_jax.evaluation import features
from resa_jax.evaluation.features import Preprocessing, extract, last_tokens, load_network
from resa_jax.models.encoders import create_encoder
from resa_jax.models.spec import EncoderSpec


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("features") / "run")


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


ROWS = np.arange(0, 1797, 40)  # 45 images: the last batch is not full


def test_encodings_are_those_of_load_encoder(workdir, digits):
    network = load_network(workdir)
    assert (network.step, network.network) == (4, "ema")
    arrays = extract(
        network, digits, "digits", Preprocessing.of(network.spec), rows=ROWS, batch_size=16
    )
    expected = load_encoder(workdir)(np.stack([digits[row] for row in ROWS]))
    np.testing.assert_allclose(arrays["h"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(arrays["labels"], digits.labels[ROWS])
    np.testing.assert_array_equal(arrays["indices"], ROWS)


def test_layers_of_the_projector(workdir, digits):
    """P0, P1 and Z written out from the checkpoint's arrays and running statistics."""
    network = load_network(workdir / "checkpoints" / "2")
    layers = ("h", "p0", "p1", "z")
    arrays = extract(network, digits, "digits", Preprocessing.of(network.spec), layers, rows=ROWS)
    names = ("ema_params/projector", "ema_batch_stats/projector")
    saved = read_subtree(workdir / "checkpoints" / "2", *names)
    weights, stats = (saved[name] for name in names)

    def linear(name, x):
        return x @ weights[name]["kernel"] + weights[name]["bias"]

    def norm(name, x):
        x = (x - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
        affine = weights.get(name)
        return x if affine is None else x * affine["scale"] + affine["bias"]

    p0 = linear("linear1", arrays["h"])
    p1 = linear("linear2", np.maximum(norm("bn1", p0), 0))
    z = norm("bn3", linear("linear3", np.maximum(norm("bn2", p1), 0)))
    for name, expected in (("p0", p0), ("p1", p1), ("z", z)):
        np.testing.assert_allclose(arrays[name], expected, rtol=1e-4, atol=1e-4)


def test_export_in_its_run_has_the_projector_and_elsewhere_has_not(workdir, digits, tmp_path):
    assert load_network(workdir / "encoder").layers == ("h", "p0", "p1", "z")
    (workdir / "encoder").rename(tmp_path / "encoder")
    try:
        network = load_network(tmp_path / "encoder")
        assert (network.step, network.layers) == (4, ("h",))
        with pytest.raises(UserError, match="without its projector, so there is no p0"):
            extract(network, digits, "digits", Preprocessing.of(network.spec), ("p0",))
    finally:
        (tmp_path / "encoder").rename(workdir / "encoder")


def test_cache_serves_the_same_weights_images_and_preprocessing_only(
    workdir, digits, tmp_path, monkeypatch
):
    counted = []
    compute = features._compute

    def counting(*arguments):
        counted.append(1)
        return compute(*arguments)

    monkeypatch.setattr(features, "_compute", counting)

    def run(step=4, rows=ROWS, layers=("h",), **changes):
        network = load_network(workdir / "checkpoints" / str(step))
        values = vars(Preprocessing.of(network.spec)) | changes
        preprocessing = Preprocessing(**values)
        return extract(network, digits, "digits", preprocessing, layers, rows=rows, cache=tmp_path)

    first = run(layers=("h", "z"))
    again = run()
    np.testing.assert_array_equal(first["h"], again["h"])
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
    network = load_network(workdir)
    arrays = extract(network, source, "folder", Preprocessing.of(network.spec), batch_size=2)
    assert arrays["indices"].tolist() == [0, 1, 3, 4]
    assert arrays["h"].shape[0] == 4
    assert arrays["labels"].tolist() == [-1] * 4


def test_patches_must_divide_the_images():
    spec = EncoderSpec("vit_ti16", image_size=32, width=64, depth=2)
    encoder = create_encoder("vit_ti16", image_size=32, width=64, depth=2, rngs=nnx.Rngs(0))
    _, params, stats = nnx.split(encoder, nnx.Param, nnx.BatchStat)
    trees = ({"encoder": nnx.to_pure_dict(tree)} for tree in (params, stats))
    network = features.TrainedNetwork(Path("x"), "ema", None, spec, spec.build(), None, *trees)
    preprocessing = Preprocessing(24, 24, "bicubic", spec.mean, spec.std)
    with pytest.raises(UserError, match="24 x 24 do not divide into patches of 16"):
        extract(network, open_source("digits"), "digits", preprocessing, rows=ROWS[:8])


def test_tokens_for_the_linear_evaluation_of_vits():
    """One block: [CLS] and the mean of the patches; several: their [CLS], each after the norm."""
    spec = EncoderSpec("vit_ti16", image_size=32, width=64, depth=3)
    encoder = create_encoder("vit_ti16", image_size=32, width=64, depth=3, rngs=nnx.Rngs(0))
    _, params, stats = nnx.split(encoder, nnx.Param, nnx.BatchStat)
    trees = [{"encoder": nnx.to_pure_dict(tree)} for tree in (params, stats)]
    network = features.TrainedNetwork(Path("x"), "ema", None, spec, spec.build(), None, *trees)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    x, tokens = encoder.tokens(images, train=False), []
    for index in range(3):
        x = getattr(encoder, f"blocks_{index}")(x, train=False)
        tokens.append(encoder.norm(x))
    one = jnp.concatenate([tokens[2][:, 0], tokens[2][:, 1:].mean(1)], axis=1)
    np.testing.assert_allclose(last_tokens(network, *trees, images, 1), one, atol=1e-5)
    two = jnp.concatenate([tokens[1][:, 0], tokens[2][:, 0]], axis=1)
    np.testing.assert_allclose(last_tokens(network, *trees, images, 2), two, atol=1e-5)


def test_preprocessing_of_an_encoder():
    assert Preprocessing.of(EncoderSpec("resnet50", 224)).resize == 256
    assert Preprocessing.of(EncoderSpec("resnet18_cifar", 32)).resize == 32
    assert Preprocessing.of(EncoderSpec("resnet50", 224, resize=232)).resize == 232

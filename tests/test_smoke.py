"""The smoke variant of every recipe runs, on real images where there are any, and exports."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from resa_jax import load_encoder, train
from resa_jax.config import load_config


ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("RESA_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def unpack(tar, folder, every):
    """Every so many images of a tar of sample images."""
    if not tar.exists():
        pytest.skip(f"{tar} is not there; set RESA_JAX_TEST_DATA to the folder of sample images")
    with tarfile.open(tar) as archive:
        for member in archive.getmembers()[::every]:
            archive.extract(member, folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    return unpack(
        DATA / "cifar10-jpeg" / "train.tar.gz", tmp_path_factory.mktemp("cifar"), every=500
    )


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    return unpack(DATA / "imagenet-sample" / "train-000-499.tar", folder, every=25) / "train"


def test_every_recipe_is_known():
    assert {"digits", "imagenet_resnet50", "imagenet_vits", "imagenet100_resnet18"} < set(CONFIGS)
    assert {f"cifar{name}_resnet18" for name in ("10", "100", "100lt")} < set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_smoke(name, tmp_path, request, capsys):
    overrides = ["profile=(2,1)"]
    if name != "digits":
        source = request.getfixturevalue("cifar" if "cifar" in name else "imagenet")
        overrides = [f"data.source=folder:{source}", "data.workers=2"]
    config = load_config(str(ROOT / "configs" / f"{name}.py:smoke"), overrides)
    metrics = train(config, tmp_path)
    assert metrics["step"] == 3
    assert np.isfinite(metrics["loss"])
    assert 0 <= metrics["eval/knn_top1"] <= 100
    assert {f"eval/{name}_ari" for name in ("encoding", "p0", "p1", "embedding")} < set(metrics)
    assert metrics["tflops_per_device"] > 0
    assert (tmp_path / "profile").exists() == (name == "digits")
    assert "The encoder is in" in capsys.readouterr().out
    encoder = load_encoder(tmp_path)
    size = config.encoder.image_size
    encodings = encoder(np.zeros((2, size, size, 3), np.uint8))
    assert encodings.shape == (2, encoder.num_features)
    description = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    assert (description["name"], description["network"]) == (config.encoder.name, "ema")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.momentum_network=false", "method.predictor=true"],
        ["method.assignment=embedding", "precision=bfloat16"],
        ["method.assignment=momentum", "method.symmetric=true"],
    ],
)
def test_ablations(overrides, tmp_path):
    config = load_config(str(ROOT / "configs" / "digits.py:smoke"), overrides)
    metrics = train(config, tmp_path)
    assert np.isfinite(metrics["loss"])
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    exported = load_encoder(tmp_path / "encoder")(pixels)
    np.testing.assert_array_equal(load_encoder(tmp_path)(pixels), exported)


def test_unlabelled_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    overrides = [f"data.source=npz:{tmp_path / 'images.npz'}"]
    metrics = train(load_config(str(ROOT / "configs" / "digits.py:smoke"), overrides), tmp_path)
    assert "eval/knn_top1" not in metrics
    load_encoder(tmp_path / "encoder")

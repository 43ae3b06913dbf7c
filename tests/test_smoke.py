"""The smoke variant of every recipe: whole runs to the export, and every train step.

The recipes that are only traced differ from a whole run in sizes and numbers alone.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from data_samples import photographs, small_images

from resa_jax import load_encoder, train
from resa_jax.config import load_config
from resa_jax.sharding import create_mesh
from resa_jax.training import programs


ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
IMAGES = {"cifar10_resnet18": small_images, "imagenet_vits": photographs}
# Networks that others have too, or that are traced for half a minute.
RARELY = ("own_images", "cifar100_resnet18", "cifar100lt_resnet18", "imagenet_resnet50")


def load(name, *overrides):
    return load_config(str(ROOT / "configs" / f"{name}.py:smoke"), overrides)


def test_every_recipe_is_known():
    assert {"digits", "imagenet_resnet50", "imagenet_vits", "imagenet100_resnet18"} < set(CONFIGS)
    assert {f"cifar{name}_resnet18" for name in ("10", "100", "100lt")} < set(CONFIGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_vits", "digits", "cifar10_resnet18"])
def test_smoke(name, tmp_path, capsys):
    overrides = ["profile=(2,1)"] if name == "digits" else []
    if name in IMAGES:
        overrides += [f"data.source=folder:{IMAGES[name](tmp_path / 'images')}", "data.workers=2"]
    config = load(name, *overrides)
    run = tmp_path / "run"
    metrics = train(config, run)
    assert metrics["step"] == 3
    assert np.isfinite(metrics["loss"])
    assert 0 <= metrics["eval/knn_top1"] <= 100
    assert {f"eval/{name}_ari" for name in ("encoding", "p0", "p1", "embedding")} < set(metrics)
    assert metrics["tflops_per_device"] > 0
    assert (run / "profile").exists() == (name == "digits")
    assert "The encoder is in" in capsys.readouterr().out
    encoder = load_encoder(run)
    size = config.encoder.image_size
    encodings = encoder(np.zeros((2, size, size, 3), np.uint8))
    assert encodings.shape == (2, encoder.num_features)
    description = json.loads((run / "encoder" / "encoder.json").read_text())
    assert (description["name"], description["network"]) == (config.encoder.name, "ema")


def trace(config, monkeypatch):
    """The programs of a recipe, lowered for the eight devices and not compiled."""

    def uncompiled(lowered):
        function = lambda *arguments: None
        function.out_info = lowered.out_info
        return function

    monkeypatch.setattr(jax.stages.Lowered, "compile", uncompiled)
    monkeypatch.setattr(programs, "required_bytes", lambda compiled: 0)
    mesh = create_mesh()
    with jax.set_mesh(mesh):
        return programs.compile_programs(config, mesh, (64, 64, 3), 1, config.steps)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in RARELY)) for n in CONFIGS]
)
def test_train_step(name, monkeypatch):
    config = load(name, "data.mean=(0.5,0.5,0.5)", "data.std=(0.5,0.5,0.5)")
    check_shapes(trace(config, monkeypatch))


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.assignment=embedding", "precision=bfloat16"],
        ["method.assignment=momentum", "method.symmetric=true"],
    ],
)
def test_train_step_of_ablations(overrides, monkeypatch):
    small = ["encoder.name=vitc_s16", "encoder.patch_size=4", "encoder.width=64", "encoder.depth=1"]
    fixed = ["data.mean=(0.5,0.5,0.5)", "data.std=(0.5,0.5,0.5)"]
    config = load("digits", *fixed, *small, *overrides)
    check_shapes(trace(config, monkeypatch))


def check_shapes(traced):
    state, metrics = traced.train_step.out_info
    expected = traced.abstract_state
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for leaf, same in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert (leaf.shape, leaf.dtype) == (same.shape, same.dtype)
    assert (metrics["loss"].shape, metrics["loss"].dtype) == ((), np.float32)


@pytest.mark.slow
def test_without_a_momentum_network_and_without_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    overrides = [f"data.source=npz:{tmp_path / 'images.npz'}"]
    overrides += ["method.momentum_network=false", "method.predictor=true", "precision=bfloat16"]
    overrides += ["encoder.name=vitc_s16", "encoder.patch_size=4", "encoder.width=64"]
    metrics = train(load("digits", *overrides, "encoder.depth=1"), tmp_path)
    assert np.isfinite(metrics["loss"])
    assert "eval/knn_top1" not in metrics
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    exported = load_encoder(tmp_path / "encoder")(pixels)
    np.testing.assert_array_equal(load_encoder(tmp_path)(pixels), exported)

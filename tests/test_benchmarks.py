"""Benchmarks run, and count operations as the literature does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from resa_jax.config import load_config
from resa_jax.models.spec import EncoderSpec
from resa_jax.recipes import weak_view
from resa_jax.training.flops import forward_flops, train_flops


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "size", "gmac"),
    [("vit_s16", 224, 4.60), ("resnet50", 224, 4.11), ("resnet18_cifar", 32, 0.70)],
)
def test_flops_of_a_forward_pass(name, size, gmac):
    # Published multiply-accumulates. XLA leaves out those that fall on a convolution's padding,
    # most of all in small maps, and adds a little elementwise work.
    flops = forward_flops(EncoderSpec(name, image_size=size))
    assert 2e9 * gmac * 0.85 < flops < 2e9 * gmac * 1.04


@pytest.mark.slow
def test_flops_of_a_training_image():
    # Two large views with and four small ones without the EMA network; three passes online.
    config = load_config("configs/imagenet_vits.py")
    config.views = [*config.views, *(weak_view(size=96) for _ in range(4))]
    large, small = (forward_flops(EncoderSpec("vit_s16", image_size=size)) for size in (224, 96))
    assert train_flops(config, momentum_network=True) == 2 * 4 * large + 4 * 3 * small
    assert train_flops(config, momentum_network=False) == 2 * 3 * large + 4 * 3 * small


@pytest.mark.slow
def test_train_step_benchmark(tmp_path):
    output = tmp_path / "result.json"
    command = ["-m", "benchmarks.train_step", f"--output={output}", "--smoke", "--steps=1"]
    command.append("--models=vit_s16,resnet18_cifar")
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    models = json.loads(output.read_text())["models"]
    assert set(models) == {"vit_s16", "resnet18_cifar"}
    assert all(figures["images_per_second_per_device"] > 0 for figures in models.values())


@pytest.mark.torch
def test_train_step_beside_pytorch(tmp_path):
    pytest.importorskip("torch")
    output = tmp_path / "result.json"
    command = ["-m", "benchmarks.train_step", f"--output={output}", "--smoke", "--steps=1"]
    command += ["--peer=eager", "--precision=float32", "--models=resnet18_cifar"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    for figures in json.loads(output.read_text())["models"].values():
        assert figures["peer"] == "eager" and figures["times_as_fast"] > 0


def test_the_campaign_of_faults_counts(tmp_path):
    """Its quick part; the whole is `python -m benchmarks.faults`."""
    output = tmp_path / "result.json"
    command = ["-m", "benchmarks.faults", f"--output={output}", "--parts=files", "--scale=0.1"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    counts = json.loads(output.read_text())["parts"]["files"]
    assert counts["cases"] == 9 * 4 + 5 * 10 and counts["wrong"] == []
    assert not any(counts[name] for name in ("lost", "hangs", "tracebacks", "silently_wrong"))


@pytest.mark.slow
def test_collectives_of_a_method(tmp_path):
    output = tmp_path / "result.json"
    command = ["-m", "benchmarks.collectives", f"--output={output}", "--methods=vicreg"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    found = json.loads(output.read_text())["methods"]["vicreg"]
    assert found["all_gather"] == [] and found["all_reduce"].count(400) == 3

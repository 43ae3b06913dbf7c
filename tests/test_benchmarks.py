"""Benchmarks run, and count operations as the literature does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "size", "gmac"),
    [("vit_s16", 224, 4.60), ("resnet50", 224, 4.11), ("resnet18_cifar", 32, 0.70)],
)
def test_flops_of_a_forward_pass(name, size, gmac):
    # Published multiply-accumulates. XLA leaves out those that fall on a convolution's padding,
    # most of all in small maps, and adds a little elementwise work.
    code = (
        "from benchmarks.train_step import forward_flops; "
        "from resa_jax.encoder import EncoderSpec; "
        f"print(forward_flops(EncoderSpec({name!r}, image_size={size})))"
    )
    command = [sys.executable, "-c", code]
    flops = float(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert 2e9 * gmac * 0.85 < flops < 2e9 * gmac * 1.04


@pytest.mark.slow
def test_train_step_benchmark(tmp_path):
    output = tmp_path / "result.json"
    command = ["-m", "benchmarks.train_step", f"--output={output}", "--smoke", "--steps=1"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    models = json.loads(output.read_text())["models"]
    assert set(models) == {"vit_s16", "resnet50", "resnet18_cifar"}
    assert all(figures["images_per_second_per_device"] > 0 for figures in models.values())

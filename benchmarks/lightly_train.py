"""Images a second of a whole pre-training command, ours and lightly-train's, on the same images.

python -m benchmarks.lightly_train --source=FOLDER --peer_python=PYTHON --output=FILE.json
[--epochs=2] [--repetitions=5]

SimCLR of a torchvision ResNet-18 (7x7 stem) at 32 pixels, batch 64, float32, on all cores of a
CPU, each with its own default augmentations and heads, on images without labels. The time is of the
whole process, imports and compilation included; ours finds its programs in the compile cache, as
every run but a machine's first does. lightly-train lives in an environment of its own (`pip install
lightly-train`), whose Python is PYTHON. Both take turns, after a warm-up each.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from absl import flags

from resa_jax.cli import run
from resa_jax.errors import UserError


ROOT = Path(__file__).parents[1]
_BATCH = 64
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "Folder of images, at any depth.", required=True)
_PYTHON = flags.DEFINE_string("peer_python", None, "Python with lightly-train.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", 2, "Epochs of a run.", lower_bound=1)
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Runs of each.", lower_bound=1)
_PEER = """
import sys, lightly_train
if __name__ == "__main__":
    out, data, epochs, batch = sys.argv[1:]
    lightly_train.pretrain(
        out=out, data=data, model="torchvision/resnet18", method="simclr", accelerator="cpu",
        epochs=int(epochs), batch_size=int(batch), transform_args={"image_size": (32, 32)},
    )
"""


def main(arguments: list[str]) -> None:
    """Times both in turn and writes all seconds, and images a second by the medians."""
    del arguments
    source = Path(_SOURCE.value).resolve()
    count = sum(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in source.rglob("*"))
    if count < _BATCH:
        raise UserError(f"--source={source} holds {count} images; a batch has {_BATCH}.")
    images = count // _BATCH * _BATCH * _EPOCHS.value
    seconds: dict[str, list[float]] = {"resa_jax": [], "lightly_train": []}
    for repetition in range(_REPETITIONS.value + 1):
        for name, command in (("resa_jax", _ours), ("lightly_train", _peers)):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                done = subprocess.run(
                    command(Path(folder), source), cwd=ROOT, capture_output=True, text=True
                )
                taken = time.perf_counter() - start
            if done.returncode:
                raise UserError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
            print(f"{name}: {taken:.1f} s, {images / taken:.1f} images/s", flush=True)
            if repetition:
                seconds[name].append(taken)
    rates = {name: images / statistics.median(values) for name, values in seconds.items()}
    peer = "import lightly_train, torch; print(lightly_train.__version__, torch.__version__)"
    versions = subprocess.run(
        [_PYTHON.value, "-I", "-c", peer], capture_output=True, text=True, check=True
    ).stdout.split()
    result = {
        "benchmark": "lightly_train",
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "lightly_train": versions[0],
        "torch": versions[1],
        "images": count,
        "epochs": _EPOCHS.value,
        "seconds": seconds,
        "images_per_second": rates,
        "ratio": rates["resa_jax"] / rates["lightly_train"],
    }
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['ratio']:.2f} times lightly-train's. Written to {_OUTPUT.value}.")


def _ours(folder: Path, source: Path) -> list[str]:
    fields = {
        "data.source": f"folder:{source}",
        "encoder.name": "resnet18",
        "epochs": _EPOCHS.value,
        "batch_size": _BATCH,
        "warmup_epochs": 0,
    }
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    recipe = ["-m", "resa_jax.main", "--config=cifar10_resnet18:simclr"]
    return [sys.executable, *recipe, f"--workdir={folder / 'run'}", *options]


def _peers(folder: Path, source: Path) -> list[str]:
    arguments = [str(folder / "run"), str(source), str(_EPOCHS.value), str(_BATCH)]
    return [_PYTHON.value, "-I", "-c", _PEER, *arguments]  # without our paths


if __name__ == "__main__":
    run(main)

"""Convolutions on small maps on this machine's CPU: as they are here, and XLA's own.

python -m benchmarks.convolutions --output=FILE.json

For each shape the median milliseconds of five, in turn, of value and both gradients, and their
ratio; then a whole train step of ResNet-18 with the ImageNet stem at 32 pixels, batch 64, whose
last maps are 2 x 2 and 1 x 1.
"""

import json
import statistics
import time
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from resa_jax.cli import run
from resa_jax.config import load_config
from resa_jax.models import convolution
from resa_jax.training.programs import create_step


_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)

# Images, side, channels in and out, kernel, stride.
SHAPES = (
    (64, 8, 128, 256, 1, 2),
    (64, 4, 256, 512, 3, 2),
    (64, 2, 256, 256, 3, 1),
    (64, 2, 256, 512, 3, 2),
    (64, 1, 512, 512, 3, 1),
    (256, 2, 32, 32, 3, 1),
)


def main(arguments: list[str]) -> None:
    """Measures and writes the file."""
    del arguments
    shapes = []
    for shape in SHAPES:
        seconds = _in_turn(_layers(*shape))
        names = ("images", "side", "inside", "outside", "kernel", "stride")
        shapes.append(dict(zip(names, shape, strict=True)) | _figures(seconds))
    result = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "shapes": shapes,
        "resnet18_step": _figures(_in_turn(_steps())),
    }
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _figures(seconds):
    return {
        "ours_ms": seconds["ours"] * 1e3,
        "xla_ms": seconds["xla"] * 1e3,
        "xla_over_ours": seconds["xla"] / seconds["ours"],
    }


def _in_turn(calls):
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(6):  # the first one compiles
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(some) for name, some in seconds.items()}


def _layers(images, side, inside, outside, size, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(images, side, side, inside)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, inside, outside)), jnp.float32)
    pads = ((size // 2, size // 2),) * 2
    forms = {"ours": convolution.convolution, "xla": _xla}

    def layer(form, x, kernel):
        y, pull = jax.vjp(lambda *a: form(*a, (stride, stride), pads, precision=None), x, kernel)
        return y, pull(y)

    return {name: partial(jax.jit(partial(layer, form)), x, kernel) for name, form in forms.items()}


def _xla(x, kernel, strides, padding, *, precision, **rest):
    return convolution._plain(x, kernel, strides, tuple(padding), precision)


def _steps():
    overrides = ["encoder.name=resnet18", "encoder.image_size=32", "batch_size=64"]
    config = load_config("configs/cifar10_resnet18.py", [*overrides, "data.source=digits"])
    rng = np.random.default_rng(0)
    views = [jnp.asarray(rng.normal(size=(64, 32, 32, 3)), jnp.float32) for _ in range(2)]
    calls = {}
    for name in ("ours", "xla"):
        form = convolution.convolution if name == "ours" else _xla
        with mock.patch("resa_jax.models.resnet.convolution", form):
            _, init, train_step = create_step(config, 100, 1000)
            state = jax.jit(init)()
            compiled = jax.jit(train_step).lower(state, views).compile()
        calls[name] = partial(compiled, state, views)
    return calls


if __name__ == "__main__":
    run(main)

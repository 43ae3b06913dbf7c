"""The bfloat16 train step: images per second, peak memory and MFU, on the device at hand.

python -m benchmarks.train_step --output=FILE.json [--models=vit_s16,resnet50,resnet18_cifar]
[--smoke]

One step is two views through both networks, the assignment, the loss and the update, on random
images that are on the device already. An image counts once, whatever its number of views.
"""

import json
import time
from pathlib import Path

import jax
from absl import flags

from resa_jax.cli import run
from resa_jax.config import load_config
from resa_jax.sharding import batch_sharding, create_mesh
from resa_jax.training.flops import peak_flops
from resa_jax.training.programs import compile_programs


_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)
_MODELS = flags.DEFINE_list("models", ["vit_s16", "resnet50", "resnet18_cifar"], "Encoders.")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps timed, after three that are not.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Tiny networks and batches, to try the command.")

_RECIPES = {
    "vit_s16": ("configs/imagenet_vits.py", 512),
    "resnet50": ("configs/imagenet_resnet50.py", 256),
    "resnet18_cifar": ("configs/cifar10_resnet18.py", 1024),
}


def main(arguments: list[str]) -> None:
    """Measures each model, prints a line for it, and writes all to the output file."""
    device = jax.devices()[0]
    results = {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "smoke": _SMOKE.value,
        "models": {},
    }
    for name in _MODELS.value:
        results["models"][name] = figures = measure(name)
        print(name, ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    Path(_OUTPUT.value).write_text(json.dumps(results, indent=2) + "\n")


def measure(name: str) -> dict[str, float | None]:
    """The figures of one encoder's train step."""
    path, batch_size = _RECIPES[name]
    overrides = [f"batch_size={batch_size}", "precision=bfloat16"]
    if _SMOKE.value:
        path, overrides = f"{path}:smoke", ["precision=bfloat16"]
    config = load_config(path, overrides)
    mesh = create_mesh()
    size = config.encoder.image_size
    with jax.set_mesh(mesh):
        programs = compile_programs(
            config, mesh, canvas=(size, size, 3), steps_per_epoch=100, total_steps=1000
        )
        state = programs.init()
        images = jax.random.normal(jax.random.key(0), (2, config.batch_size, size, size, 3))
        views = tuple(jax.device_put(view, batch_sharding(mesh)) for view in images)
        for _ in range(3):
            state, metrics = programs.train_step(state, views)
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(_STEPS.value):
            state, metrics = programs.train_step(state, views)
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - start) / _STEPS.value
    flops = programs.flops
    rate = config.batch_size / seconds / jax.device_count()
    peak = peak_flops(jax.devices()[0])
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "batch_size": config.batch_size,
        "milliseconds_per_step": round(seconds * 1e3, 3),
        "images_per_second_per_device": round(rate, 1),
        "peak_memory_gib": None if memory is None else round(memory / 2**30, 2),
        "gflop_per_image": round(flops / 1e9, 2),
        "tflop_per_second_per_device": round(rate * flops / 1e12, 3),
        "mfu_percent": None if peak is None else round(100 * rate * flops / peak, 2),
        "last_loss": round(loss, 4),
    }


if __name__ == "__main__":
    run(main)

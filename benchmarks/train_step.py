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
import jax.numpy as jnp
from absl import flags
from flax import nnx

from resa_jax.cli import run
from resa_jax.config import load_config
from resa_jax.encoder import EncoderSpec
from resa_jax.models import create_encoder
from resa_jax.programs import compile_programs
from resa_jax.sharding import batch_sharding, create_mesh


_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)
_MODELS = flags.DEFINE_list("models", ["vit_s16", "resnet50", "resnet18_cifar"], "Encoders.")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps timed, after three that are not.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Tiny networks and batches, to try the command.")

_RECIPES = {
    "vit_s16": ("configs/imagenet_vits.py", 512),
    "resnet50": ("configs/imagenet_resnet50.py", 256),
    "resnet18_cifar": ("configs/cifar10_resnet18.py", 1024),
}
# Dense bfloat16 peaks that the makers publish, FLOP/s.
_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 920e12,
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
            config, mesh, canvas=size, steps_per_epoch=100, total_steps=1000
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
    # Two views; forward and backward (twice a forward) online, forward in the EMA network.
    flops = 2 * (3 + 1) * forward_flops(EncoderSpec.from_config(config))
    rate = config.batch_size / seconds / jax.device_count()
    kind = jax.devices()[0].device_kind
    peak = next((peak for name, peak in _PEAKS.items() if kind.startswith(name)), None)
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


def forward_flops(spec: EncoderSpec) -> float:
    """FLOPs of one image's forward pass, as XLA counts them in the program before optimisation.

    Products with a convolution's zero padding do not count (3 % of a ResNet-50's at 224 pixels,
    13 % of a ResNet-18's at 34), so the MFU of ConvNets is a little lower than by the usual count.
    """
    encoder = nnx.eval_shape(
        lambda: create_encoder(
            spec.name,
            image_size=spec.image_size,
            patch_size=spec.patch_size,
            width=spec.width,
            depth=spec.depth,
            rngs=nnx.Rngs(0),
        )
    )
    graphdef, state = nnx.split(encoder)
    image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), jnp.float32)
    forward = jax.jit(lambda state, image: nnx.merge(graphdef, state)(image, train=False))
    return forward.lower(state, image).cost_analysis()["flops"]


if __name__ == "__main__":
    run(main)

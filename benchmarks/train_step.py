"""The train step beside PyTorch's: images per second, peak memory and MFU, on the device at hand.

python -m benchmarks.train_step --output=FILE.json [--models=vit_s16,resnet50,resnet18_cifar]
    [--peer=none|eager|compiled] [--batch_size=N] [--precision=bfloat16|float32] [--smoke]

One step is two views through both networks, the assignment, the loss and the update, on random
images that are on the device already. An image counts once, whatever its number of views. With a
peer (`benchmarks.torch_peer`), which has a process of its own as its users' would, the two take
turns, five of each; medians.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from resa_jax.cli import run
from resa_jax.config import load_config
from resa_jax.freed_memory import keep_freed_memory
from resa_jax.models.resnet import RESNETS, Bottleneck
from resa_jax.models.spec import EncoderSpec
from resa_jax.models.vit import VITS
from resa_jax.sharding import batch_sharding, create_mesh
from resa_jax.training.flops import peak_flops
from resa_jax.training.programs import compile_programs


_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)
_MODELS = flags.DEFINE_list("models", ["vit_s16", "resnet50", "resnet18_cifar"], "Encoders.")
_STEPS = flags.DEFINE_integer("steps", 6, "Steps of each of five turns.", lower_bound=1)
_PEER = flags.DEFINE_enum("peer", "none", ["none", "eager", "compiled"], "PyTorch beside it.")
_BATCH = flags.DEFINE_integer("batch_size", None, "In the place of each model's own.")
_PRECISION = flags.DEFINE_enum("precision", "bfloat16", ["bfloat16", "float32"], "Of both.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Tiny networks and batches, to try the command.")

_RECIPES = {
    "vit_s16": ("configs/imagenet_vits.py", 512),
    "resnet50": ("configs/imagenet_resnet50.py", 256),
    "resnet18_cifar": ("configs/cifar10_resnet18.py", 1024),
}


def main(arguments: list[str]) -> None:
    """Measures each model, prints a line for it, and writes all to the output file."""
    del arguments
    device = jax.devices()[0]
    results = {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "smoke": _SMOKE.value,
        "models": {},
    }
    if _PEER.value != "none":
        results["torch"] = version("torch")
    for name in _MODELS.value:
        results["models"][name] = figures = measure(name)
        print(name, ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    Path(_OUTPUT.value).write_text(json.dumps(results, indent=2) + "\n")


def measure(name: str) -> dict[str, float | None]:
    """The figures of one encoder's train step."""
    path, batch_size = _RECIPES[name]
    overrides = [f"batch_size={_BATCH.value or batch_size}", f"precision={_PRECISION.value}"]
    if _SMOKE.value:
        path, overrides = f"{path}:smoke", overrides[1:]
    config = load_config(path, overrides)
    mesh = create_mesh()
    size = config.encoder.image_size
    with jax.set_mesh(mesh):
        programs = compile_programs(
            config, mesh, canvas=(size, size, 3), steps_per_epoch=100, total_steps=1000
        )
        state = programs.init()
        shape = 2, config.batch_size, size, size, 3
        images = jax.random.normal(jax.random.key(0), shape, config.precision)
        views = tuple(jax.device_put(view, batch_sharding(mesh)) for view in images)
        loss = float("nan")

        def ours(steps: int) -> float:
            nonlocal state, loss
            start = time.perf_counter()
            for _ in range(steps):
                state, metrics = programs.train_step(state, views)
            loss = float(metrics["loss"])
            jax.block_until_ready(state)
            return (time.perf_counter() - start) / steps

        sides, peer = {"ours": ours}, None
        if _PEER.value != "none":
            peer = _Peer(config, _PEER.value == "compiled")
            sides["peer"] = peer.seconds
        for side in sides.values():
            side(3)
        turns = [{key: side(_STEPS.value) for key, side in sides.items()} for _ in range(5)]
    seconds = {key: statistics.median(turn[key] for turn in turns) for key in sides}
    flops = programs.flops
    rate = config.batch_size / seconds["ours"] / jax.device_count()
    peak = peak_flops(jax.devices()[0])
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "batch_size": config.batch_size,
        "precision": config.precision,
        "milliseconds_per_step": round(seconds["ours"] * 1e3, 3),
        "images_per_second_per_device": round(rate, 1),
        "peak_memory_gib": None if memory is None else round(memory / 2**30, 2),
        "gflop_per_image": round(flops / 1e9, 2),
        "tflop_per_second_per_device": round(rate * flops / 1e12, 3),
        "mfu_percent": None if peak is None else round(100 * rate * flops / peak, 2),
        "last_loss": round(loss, 4),
    } | ({} if peer is None else _against_peer(seconds, peer.end()))


def _against_peer(seconds: dict[str, float], memory: float | None) -> dict[str, float | str | None]:
    return {
        "peer": _PEER.value,
        "peer_milliseconds_per_step": round(seconds["peer"] * 1e3, 3),
        "peer_memory_gib": None if memory is None else round(memory, 2),
        "times_as_fast": round(seconds["peer"] / seconds["ours"], 3),
    }


class _Peer:
    """PyTorch's step in another process."""

    def __init__(self, config: ConfigDict, compiled: bool):
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(theirs, config.to_dict(), compiled), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its end is seen here

    def seconds(self, steps: int) -> float:
        """Of one step, the mean of so many."""
        self._pipe.send(steps)
        return self._pipe.recv()

    def end(self) -> float | None:
        """Ends it; the most memory of a GPU that it took, in GiB."""
        memory = self.seconds(0)
        self._process.join()
        return memory


def _serve(pipe: Connection, config: dict, compiled: bool) -> None:
    """In the peer's process: times as many steps as it is told, until it is told none."""
    import torch

    step = _torch_step(ConfigDict(config), compiled)
    while steps := pipe.recv():
        pipe.send(step.seconds(steps))
    on_gpu = torch.cuda.is_available()
    pipe.send(torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None)


def _torch_step(config: ConfigDict, compiled: bool):
    """PyTorch's step of the same sizes."""
    from benchmarks import torch_peer

    spec = EncoderSpec.from_config(config)
    if spec.name in VITS:
        vit = spec.create()
        patch = vit.patch_size
        encoder = torch_peer.ViT(
            spec.image_size, patch, vit.num_features, vit.depth, vit.num_features // vit.head
        )
    else:
        base, _, stem = spec.name.partition("_")
        block, stages = RESNETS[base]
        width = spec.width or 64
        encoder = torch_peer.ResNet(stages, block is Bottleneck, stem or "imagenet", width)
    return torch_peer.Step(
        encoder,
        config.method.hidden_size,
        config.method.output_size,
        size=spec.image_size,
        batch=config.batch_size,
        predictor=config.method.predictor,
        adam=config.optimizer.name == "adamw",
        bfloat16=config.precision == "bfloat16",
        compiled=compiled,
    )


if __name__ == "__main__":
    keep_freed_memory(os.environ)  # as resa_jax.main does
    run(main)

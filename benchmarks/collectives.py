"""What each method sends between devices in a step, from the compiled program.

python -m benchmarks.collectives --output=FILE.json [--methods=resa,simclr]

A ViT of one block on eight CPU devices, a batch of 48 images, embeddings of 20 numbers: small, so
that nothing hides. `all_gather` and `all_reduce` list the numbers of elements of what comes out of
each, but for the gradients, which every method reduces, and scalars. CPU programs have no
asynchronous or merged collectives; TPU and GPU programs send the same elements.
"""

import json
import os
import re
from collections import Counter
from math import prod
from pathlib import Path

from absl import flags


os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp

from resa_jax.baselines import BASELINES
from resa_jax.cli import run
from resa_jax.config import resolve
from resa_jax.recipes import default_config
from resa_jax.sharding import batch_sharding, create_mesh, replicated
from resa_jax.training.programs import create_step


_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_METHODS = flags.DEFINE_list("methods", ["resa", *BASELINES, "mec"], "Methods.")
_BATCH = 48
_SIZES = {"hidden_size": 40, "output_size": 20, "predictor_size": 36, "num_prototypes": 28}
_SIZES |= {"queue_size": 96, "slice_size": 24, "groups": 2, "iterations": 1, "queue_epoch": 0}


def main(arguments: list[str]) -> None:
    """Compiles each method's step and writes the file."""
    del arguments
    methods = {}
    for name in _METHODS.value:
        methods[name] = _collectives(name)
        words = [_in_words(sizes) for sizes in methods[name].values()]
        print(f"| {name} | {' | '.join(words)} |", flush=True)
    record = {"benchmark": "collectives", "devices": 8, "batch": _BATCH, "jax": jax.__version__}
    Path(_OUTPUT.value).write_text(json.dumps(record | {"methods": methods}, indent=2) + "\n")


_NAMES = {48: "m", 960: "m d", 1920: "2 m d", 3072: "m f", 20: "d", 400: "d d", 40: "h", 36: "p"}
_NAMES |= {28: "k", 560: "k d"}


def _in_words(sizes: list[int]) -> str:
    """As in "2 of m d, 1 of m f"."""
    counts = Counter(_NAMES.get(size, str(size)) for size in sizes)
    return ", ".join(f"{count} of {name}" for name, count in counts.items()) or "none"


def _collectives(method: str) -> dict[str, list[int]]:
    config = default_config(method)
    config.batch_size = _BATCH
    config.method.update({k: v for k, v in _SIZES.items() if k in config.method})
    if method == "cw_rgp":
        config.method.slice_size = 8
    config.encoder.update({"name": "vit_s16", "width": 64, "depth": 1, "patch_size": 4})
    config.encoder.image_size = 8
    resolve(config)
    mesh = create_mesh()
    _, init, step = create_step(config, 1, 10)
    with jax.set_mesh(mesh):
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))
        state = jax.tree.map(place, jax.eval_shape(init))
        view = jax.ShapeDtypeStruct((_BATCH, 8, 8, 3), jnp.float32, sharding=batch_sharding(mesh))
        whole = replicated(mesh)
        compiled = jax.jit(step, out_shardings=(whole, whole)).lower(state, (view, view)).compile()
    gradients = Counter(leaf.size for leaf in jax.tree.leaves(state.params))
    found: dict[str, list[int]] = {"all_gather": [], "all_reduce": []}
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    pattern = rf"= (\(?[a-z0-9]+\[.*?) ({kinds})\("
    for shapes, kind in re.findall(pattern, compiled.as_text()):
        for dims in re.findall(r"[a-z]+[0-9]+\[([\d,]*)\]", shapes):
            size = prod(int(n) for n in dims.split(",") if n)
            if kind == "all-reduce" and (size == 1 or gradients[size] > 0):
                gradients[size] -= size > 1
                continue
            found.setdefault(kind.replace("-", "_"), []).append(size)
    return {kind: sorted(sizes) for kind, sizes in found.items()}


if __name__ == "__main__":
    run(main)

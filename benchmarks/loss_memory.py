"""Memory of ReSA's assignment, loss and gradient on one device, whole and in blocks of columns.

python -m benchmarks.loss_memory --output=FILE.json [--sizes=4096,16384,65536 --features=384
--dimension=512 --run=16384 --run_width=64]

`temporary_bytes` is what XLA compiled for this machine's device wants beside arguments and results,
`m_by_m_bytes` one float32 array of the batch by the batch. The size --run is also run, both forms
in turn, with random features: median seconds of five, and the largest relative difference of value
and gradients.
"""

import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from resa_jax.cli import run
from resa_jax.methods.resa_blocks import block_size, blocked_resa_loss, sinkhorn_potentials
from resa_jax.methods.resa_loss import resa_loss, sinkhorn_knopp
from resa_jax.methods.similarity import cosine_similarity


_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)
_SIZES = flags.DEFINE_list("sizes", ["4096", "16384", "65536"], "Batches to compile for.")
_RUN = flags.DEFINE_integer("run", 16_384, "Batch to run; 0 runs nothing.")
_RUN_WIDTH = flags.DEFINE_integer("run_width", 64, "Features and dimensions of what is run.")
_FEATURES = flags.DEFINE_integer("features", 384, "Of an encoding.")
_DIMENSION = flags.DEFINE_integer("dimension", 512, "Of an embedding.")


def main(arguments: list[str]) -> None:
    """Compiles, runs and writes the file."""
    del arguments
    sizes = [int(text) for text in _SIZES.value]
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "features": _FEATURES.value,
        "dimension": _DIMENSION.value,
        "sizes": {str(m): _compiled(m) for m in sizes},
    }
    if _RUN.value:
        result["run"] = {"m": _RUN.value, "width": _RUN_WIDTH.value} | _timed(_RUN.value)
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _forms(m):
    block = block_size(m, 1) or m

    def whole(h, h_m, a, b, a_m, b_m):
        assignment = sinkhorn_knopp(cosine_similarity(h, h_m))
        return jax.value_and_grad(lambda z: resa_loss(z, [a_m, b_m], assignment))([a, b])

    def blocks(h, h_m, a, b, a_m, b_m):
        potentials = sinkhorn_potentials(h, h_m, 0.05, block)
        loss = lambda z: blocked_resa_loss(z, [a_m, b_m], potentials, block)
        return jax.value_and_grad(loss)([a, b])

    return block, {"whole": jax.jit(whole), "blocks": jax.jit(blocks)}


def _compiled(m):
    h = jax.ShapeDtypeStruct((m, _FEATURES.value), jnp.float32)
    z = jax.ShapeDtypeStruct((m, _DIMENSION.value), jnp.float32)
    block, forms = _forms(m)
    found = {"block": block, "m_by_m_bytes": 4 * m * m}
    for name, form in forms.items():
        memory = form.lower(h, h, z, z, z, z).compile().memory_analysis()
        found[name] = {"temporary_bytes": memory.temp_size_in_bytes}
    return found


def _timed(m):
    rng = np.random.default_rng(0)
    width = _RUN_WIDTH.value
    h, h_m, *z = (jnp.asarray(rng.normal(size=(m, width)), jnp.float32) for _ in range(6))
    _, forms = _forms(m)
    values = {name: jax.block_until_ready(form(h, h_m, *z)) for name, form in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(5):
        for name, form in forms.items():
            start = time.perf_counter()
            jax.block_until_ready(form(h, h_m, *z))
            seconds[name].append(time.perf_counter() - start)
    pairs = zip(*map(jax.tree.leaves, values.values()), strict=True)
    differences = [float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(x))) for x, y in pairs]
    medians = {f"{name}_seconds": statistics.median(some) for name, some in seconds.items()}
    return medians | {"largest_relative_difference": max(differences)}


if __name__ == "__main__":
    run(main)

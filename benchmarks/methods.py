"""The train step of all thirteen methods at one size, as ratios to ReSA's.

python -m benchmarks.methods --output=FILE.json [--methods=resa,simclr] [--repetitions=5]

`configs/digits.py` with each method's heads as the recipe has them, on random views that are on the
device. The methods take turns, so that what else the machine does meets all of them; medians.
"""

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import jax
from absl import flags

from resa_jax.baselines import BASELINES
from resa_jax.cli import run
from resa_jax.recipes import get_config
from resa_jax.sharding import batch_sharding, create_mesh
from resa_jax.training.programs import compile_programs


_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)
_METHODS = flags.DEFINE_list("methods", ["resa", *BASELINES, "mec"], "Methods; the first is 1.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Turns of each.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps of a turn.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Compiles all, times them in turns, and writes medians and ratios."""
    del arguments
    mesh = create_mesh()
    with jax.set_mesh(mesh):
        runs = {name: _prepare(name, mesh) for name in _METHODS.value}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(_REPETITIONS.value):
            for name in runs:
                seconds[name].append(_time(runs[name]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = medians[_METHODS.value[0]]
    result = {
        "benchmark": "methods",
        "device": jax.devices()[0].device_kind,
        "cpu_cores": os.cpu_count(),
        "machine": platform.machine(),
        **{name: version(name) for name in ("jax", "flax", "resa_jax")},
        "batch_size": 256,
        "milliseconds_per_step": {name: round(1e3 * x, 2) for name, x in medians.items()},
        "ratio": {name: round(x / first, 3) for name, x in medians.items()},
    }
    print(json.dumps(result["ratio"]), flush=True)
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def _prepare(name: str, mesh: jax.sharding.Mesh) -> list:
    config = get_config(f"digits:{name}", **{"data.mean": (0.3,) * 3, "data.std": (0.4,) * 3})
    programs = compile_programs(config, mesh, canvas=(8, 8, 3), steps_per_epoch=7, total_steps=770)
    images = jax.random.normal(jax.random.key(0), (2, config.batch_size, 8, 8, 3))
    views = tuple(jax.device_put(view, batch_sharding(mesh)) for view in images)
    state = programs.init()
    for _ in range(3):
        state, metrics = programs.train_step(state, views)
    jax.block_until_ready(metrics)
    print(f"{name} compiled", flush=True)
    return [programs.train_step, state, views]


def _time(prepared: list) -> float:
    step, state, views = prepared
    start = time.perf_counter()
    for _ in range(_STEPS.value):
        state, metrics = step(state, views)
    jax.block_until_ready((state, metrics))
    prepared[1] = state
    return (time.perf_counter() - start) / _STEPS.value


if __name__ == "__main__":
    run(main)

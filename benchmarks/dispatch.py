"""What the host spends on handing a step's state to the device and taking it back.

python -m benchmarks.dispatch --output=FILE.json [--config=configs/imagenet_vits.py] [--repeats=5]

Calls a program that takes the recipe's train state, as a step does (compiled before, the state
donated), and only counts its step on, so that the time is that of the call: flattening the state,
checking and handing over its arrays, and building the new one. `milliseconds` is the median of the
repeats, each the mean of 200 calls; beside it `list_milliseconds`, the same arrays in a plain list,
which shows what the state's own structure adds. The encoder is as wide as one head: the number of
arrays counts, not their size.
"""

import dataclasses
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import jax
from absl import flags

from resa_jax.cli import run
from resa_jax.config import load_config
from resa_jax.training.programs import create_step


_CONFIG = flags.DEFINE_string("config", "configs/imagenet_vits.py", "Recipe.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Of each kind, taking turns.", lower_bound=1)
_CALLS = 200


def main(arguments: list[str]) -> None:
    """Measures and writes the file."""
    del arguments
    narrow = ["encoder.width=64", "method.hidden_size=64", "method.output_size=64"]
    _, init, _ = create_step(load_config(_CONFIG.value, narrow), 1000, 100_000)
    state = jax.jit(init)()
    leaves = [leaf.copy() for leaf in jax.tree.leaves(state)]

    count_on = _compiled(lambda s: dataclasses.replace(s, step=s.step + 1), state)
    next_list = _compiled(lambda arrays: [arrays[0] + 1, *arrays[1:]], leaves)
    milliseconds: dict[str, list[float]] = {"state": [], "list": []}
    for number in range(_REPEATS.value + 1):  # the first one warms up
        state, seconds = _timed(count_on, state)
        leaves, list_seconds = _timed(next_list, leaves)
        if number:
            milliseconds["state"].append(seconds * 1e3)
            milliseconds["list"].append(list_seconds * 1e3)
    median = {name: statistics.median(values) for name, values in milliseconds.items()}
    result = {
        "config": _CONFIG.value,
        "arrays": len(leaves),
        "milliseconds": median["state"],
        "list_milliseconds": median["list"],
        "milliseconds_per_300_arrays": median["state"] / len(leaves) * 300,
        "repeats": _REPEATS.value,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax")},
    }
    Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _compiled(function, state):
    return jax.jit(function, donate_argnums=0).lower(state).compile()


def _timed(step, state):
    start = time.perf_counter()
    for _ in range(_CALLS):
        state = step(state)
    jax.block_until_ready(state)
    return state, (time.perf_counter() - start) / _CALLS


if __name__ == "__main__":
    run(main)

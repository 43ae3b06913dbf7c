"""Seconds from the command to the first step's record, with an empty and a warm compile cache.

python -m benchmarks.startup --output=FILE.json [--config=configs/digits.py,...] [--repetitions=3]
[--against=OTHER_CHECKOUT]

Each run is a process of its own with a new workdir and is stopped once `metrics.jsonl` has step 1.
The first run of a pair starts with an empty JAX_COMPILATION_CACHE_DIR, the second with what the
first left there. With another checkout, such as the commit before a change, both take turns.
"""

import contextlib
import json
import os
import platform
import signal
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
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_CONFIG = flags.DEFINE_list(
    "config", ["configs/digits.py:smoke", "configs/imagenet_resnet50.py:smoke"], "Recipes."
)
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Pairs of runs of each.", lower_bound=1)
_AGAINST = flags.DEFINE_string("against", None, "Another checkout of resa_jax.")
_LIMIT = flags.DEFINE_float("limit", 900.0, "Seconds after which a run is given up.")


def main(arguments: list[str]) -> None:
    """Times every recipe in every checkout and writes all seconds, medians and ratios."""
    del arguments
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that a run is stopped on the way out
    checkouts = {"this": ROOT}
    if _AGAINST.value is not None:
        checkouts["against"] = Path(_AGAINST.value).resolve()
        if not (checkouts["against"] / "resa_jax" / "main.py").is_file():
            raise UserError(f"--against={_AGAINST.value} is no checkout of resa_jax.")
    result = {
        "benchmark": "startup",
        "device": _device(),
        "machine": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax")},
        "repetitions": _REPETITIONS.value,
        "commits": {name: _commit(checkout) for name, checkout in checkouts.items()},
        "configs": {},
    }
    for config in _CONFIG.value:
        result["configs"][config] = measure(config, checkouts)
        print(config, json.dumps(result["configs"][config]), flush=True)
    output = Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


def measure(config: str, checkouts: dict[str, Path]) -> dict:
    """Seconds of one recipe: `{checkout: {"cold": ..., "warm": ...}}` and the checkouts' ratios."""
    seconds: dict = {name: {"cold": [], "warm": []} for name in checkouts}
    for repetition in range(_REPETITIONS.value):
        # The order alternates too: whoever goes first finds the disk's cache colder.
        for name in sorted(checkouts, reverse=repetition % 2 == 0):
            with tempfile.TemporaryDirectory(prefix="resa_jax_startup_") as cache:
                for state in ("cold", "warm"):
                    taken = seconds_to_first_step(checkouts[name], config, cache)
                    seconds[name][state].append(round(taken, 2))
    medians = {
        name: {state: statistics.median(values) for state, values in states.items()}
        for name, states in seconds.items()
    }
    figures = {
        name: {"seconds": seconds[name], "median": medians[name]}
        | {"cold_over_warm": round(medians[name]["cold"] / medians[name]["warm"], 3)}
        for name in checkouts
    }
    if "against" in checkouts:
        figures["against_over_this"] = {
            state: round(medians["against"][state] / medians["this"][state], 3)
            for state in ("cold", "warm")
        }
    return figures


def seconds_to_first_step(checkout: Path, config: str, cache: str) -> float:
    """Starts a run and stops it after the first step's record.

    Raises:
      UserError: with the run's last words, if it ends or takes too long before that.
    """
    with tempfile.TemporaryDirectory(prefix="resa_jax_startup_") as folder:
        workdir, log = Path(folder) / "run", Path(folder) / "log"
        command = ["-m", "resa_jax.main", f"--config={config}", f"--workdir={workdir}"]
        environment = {"PYTHONPATH": str(checkout), "JAX_COMPILATION_CACHE_DIR": cache}
        start = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=checkout,
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its workers are stopped with it
            )
        try:
            while not _has_first_step(workdir / "metrics.jsonl"):
                ended = process.poll() is not None
                if ended or time.perf_counter() - start > _LIMIT.value:
                    words = "\n".join(log.read_text().splitlines()[-5:])
                    how = "ended" if ended else f"took more than {_LIMIT.value:g} s"
                    raise UserError(f"{config} in {checkout} {how} before its first step:\n{words}")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _has_first_step(path: Path) -> bool:
    if not path.exists():
        return False
    whole = path.read_text().split("\n")[:-1]  # evaluations before the first step have step 0
    return any(json.loads(line)["step"] == 1 for line in whole)


def _device() -> str:
    # Asked in a child, as the devices belong to the runs while they are timed.
    script = "import jax; print(jax.device_count(), jax.devices()[0].device_kind)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def _commit(checkout: Path) -> str | None:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or None


if __name__ == "__main__":
    run(main)

"""Breaks configurations, files, workdirs and processes at random, and counts what comes of it.

python -m benchmarks.faults --output=FILE.json [--parts=config,files,workdirs,kills] [--seed=0]

Each part counts its cases, what was `refused` in a sentence, what `ran` or was read, and the four
that must be 0: `lost` (a run that ends elsewhere than the unbroken one, or rows that are missing or
doubled), `hangs`, `tracebacks` and `silently_wrong`. `messages` has some of the sentences.
"""

import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from absl import flags

from benchmarks.faults.configurations import break_configurations
from benchmarks.faults.files import break_files
from benchmarks.faults.kills import kill_runs
from benchmarks.faults.workdirs import break_workdirs
from resa_jax.cli import run


_PARTS = {
    "config": break_configurations,
    "files": break_files,
    "workdirs": break_workdirs,
    "kills": kill_runs,
}
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_CHOSEN = flags.DEFINE_list("parts", list(_PARTS), "Parts of the campaign.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")
_SCALE = flags.DEFINE_float("scale", 1.0, "Of the number of files, workdirs and kills.")


def main(arguments: list[str]) -> None:
    """Runs the parts, one after the other; the file keeps the results of other parts."""
    del arguments
    path = Path(_OUTPUT.value)
    parts = json.loads(path.read_text())["parts"] if path.is_file() else {}
    for name in _CHOSEN.value:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="resa_jax_faults_") as folder:
            result = _PARTS[name](Path(folder), _SEED.value, _SCALE.value)
        parts[name] = result | {"seconds": round(time.perf_counter() - start)}
        print(name, json.dumps({k: v for k, v in result.items() if k != "messages"}), flush=True)
        record = {
            "benchmark": "faults",
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "flax", "orbax-checkpoint", "resa_jax")},
            "parts": parts,
        }
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    run(main)

"""All thirteen methods on digits with several seeds: does each beat its untrained encoder?

python -m benchmarks.digits_methods --workdir=DIR --output=FILE.json [--methods=resa,simclr]
    [--epochs=40]

Each method trains `configs/digits.py` with each seed in a folder of its own under --workdir, which
goes on where it was stopped. The file has 5-NN accuracy in percent (one image in five held out) and
adjusted Rand index, of the encodings before the first step and at the end.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import mean, pstdev

from absl import flags

from resa_jax.baselines import BASELINES
from resa_jax.cli import run
from resa_jax.recipes import get_config


_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_METHODS = flags.DEFINE_list("methods", ["resa", *BASELINES, "mec"], "Methods.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_EPOCHS = flags.DEFINE_integer("epochs", 110, "Of each run.", lower_bound=1)
_SCORES = {"knn": "eval/knn_top1", "ari": "eval/encoding_ari"}


def main(arguments: list[str]) -> None:
    """Trains what is not there yet, seed after seed, and writes the file after each run."""
    del arguments
    found: dict[str, list[dict]] = {method: [] for method in _METHODS.value}
    for seed in _SEEDS.value:
        for method in _METHODS.value:
            found[method].append(_train(method, int(seed)))
            print(method, seed, json.dumps(found[method][-1]), flush=True)
            result = {
                "benchmark": "digits_methods",
                "python": platform.python_version(),
                **{name: version(name) for name in ("jax", "flax", "resa_jax")},
                "epochs": _EPOCHS.value,
                "seeds": list(map(int, _SEEDS.value)),
                "methods": {name: _summary(rows) for name, rows in found.items() if rows},
            }
            Path(_OUTPUT.value).write_text(json.dumps(result, indent=2) + "\n")


def _train(method: str, seed: int) -> dict[str, float]:
    from resa_jax.training.loop import train

    workdir = Path(_WORKDIR.value) / f"{method}-{seed}"
    train(get_config(f"digits:{method}", seed=seed, epochs=_EPOCHS.value), workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    scores = [record for record in map(json.loads, lines) if _SCORES["ari"] in record]
    first, last = scores[0], scores[-1]
    assert first["step"] == 0 < last["step"]
    return {
        f"{when}_{name}": record[key]
        for when, record in (("untrained", first), ("trained", last))
        for name, key in _SCORES.items()
    }


def _summary(rows: list[dict[str, float]]) -> dict:
    summary = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        summary[name] = {"values": values, "mean": mean(values), "std": pstdev(values)}
    return summary


if __name__ == "__main__":
    run(main)

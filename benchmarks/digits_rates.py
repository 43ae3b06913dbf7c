"""The learning rate of each method on digits, by a search of the same budget for all.

python -m benchmarks.digits_rates --output=FILE.json [--methods=resa,simclr] [--epochs=40]

Every method trains `configs/digits.py` with each rate, the schedule as long as --epochs, seed 0.
The best rate has the highest mean of 5-NN accuracy and adjusted Rand index of the encodings at the
end, both in percent; `configs/digits.py` has the result. Results that FILE holds already are kept.
"""

import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from absl import flags

from resa_jax.baselines import BASELINES
from resa_jax.cli import run
from resa_jax.recipes import get_config


_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_METHODS = flags.DEFINE_list("methods", ["resa", *BASELINES, "mec"], "Methods.")
_RATES = flags.DEFINE_list("rates", ["0.001", "0.003", "0.01"], "Learning rates for 256 images.")
_EPOCHS = flags.DEFINE_integer("epochs", 40, "Of each run.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Trains what the file lacks and writes it after each method."""
    del arguments
    path = Path(_OUTPUT.value)
    scores = json.loads(path.read_text())["scores"] if path.is_file() else {}
    for method in _METHODS.value:
        if scores.get(method, {}).keys() >= set(_RATES.value):
            continue
        scores[method] = {rate: _score(method, float(rate)) for rate in _RATES.value}
        print(method, json.dumps(scores[method]), flush=True)
        result = {
            "benchmark": "digits_rates",
            "epochs": _EPOCHS.value,
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "flax", "resa_jax")},
            "best": {
                name: max(rows, key=lambda r: rows[r]["mean"]) for name, rows in scores.items()
            },
            "scores": scores,
        }
        path.write_text(json.dumps(result, indent=2) + "\n")


def _score(method: str, rate: float) -> dict[str, float | None]:
    from resa_jax.training.loop import train

    config = get_config(
        f"digits:{method}",
        base_lr=rate,
        epochs=_EPOCHS.value,
        **{"eval.baselines": False},
    )
    with tempfile.TemporaryDirectory(prefix="resa_jax_rates_") as workdir:
        try:
            metrics = train(config, workdir)
        except FloatingPointError:
            return {"knn": None, "ari": None, "mean": -1.0}  # diverged
    knn, ari = metrics["eval/knn_top1"], metrics["eval/encoding_ari"]
    return {"knn": knn, "ari": ari, "mean": knn / 2 + 50 * ari}


if __name__ == "__main__":
    run(main)

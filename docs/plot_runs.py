"""Draws docs/reference_runs.png from the metrics of the reference runs beside it.

python docs/plot_runs.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt


DOCS = Path(__file__).parent
CURVES = {
    "loss": "loss",
    "kl": "KL to the assignment",
    "eval/encoding_ari": "ARI of the encodings",
    "eval/encoding_silhouette_mean": "silhouette of the encodings",
    "eval/knn_top1": "5-NN accuracy, %",
    "effective_rank": "effective rank of the embeddings",
}


def main() -> None:
    """One row of panels a data set, one curve a run."""
    runs = sorted((DOCS / "reference_runs").glob("*.jsonl"))
    sets = sorted({run.stem.split("_")[0] for run in runs})
    figure, axes = plt.subplots(
        len(sets), len(CURVES), figsize=(3.2 * len(CURVES), 2.8 * len(sets)), squeeze=False
    )
    for row, name in zip(axes, sets, strict=True):
        for run in (run for run in runs if run.stem.startswith(name)):
            records = [json.loads(line) for line in run.read_text().splitlines()]
            for panel, (key, title) in zip(row, CURVES.items(), strict=True):
                points = [(r["epoch"], r[key]) for r in records if key in r]
                marker = "o-" if key.startswith("eval") else "-"
                panel.plot(*zip(*points, strict=True), marker, markersize=3, label=run.stem)
                panel.set(title=title, xlabel="epoch")
        row[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "reference_runs.png", dpi=80)


if __name__ == "__main__":
    main()

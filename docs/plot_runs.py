"""Draws reference_runs.png, components.png and long.png from the reference runs beside it.

python docs/plot_runs.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


DOCS = Path(__file__).parent
CURVES = {
    "loss": "loss",
    "kl": "KL to the assignment",
    "eval/encoding_ari": "ARI of the encodings",
    "eval/encoding_silhouette_mean": "silhouette of the encodings",
    "eval/knn_top1": "5-NN accuracy, %",
    "effective_rank": "effective rank of the embeddings",
}
COMPONENTS = {"H": "encoding", "P0": "p0", "P1": "p1", "Z": "embedding"}
SCORES = {
    "silhouette_mean": "silhouette, mean",
    "silhouette_std": "silhouette, std",
    "ari": "k-means ARI",
    "linear_top1": "linear accuracy, %",
}


def main() -> None:
    """Reads the records and draws both figures."""
    runs = {}
    for path in sorted((DOCS / "reference_runs").glob("*.jsonl")):
        runs[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
    long = {name: runs.pop(name) for name in list(runs) if name.startswith("digits-long")}
    draw_runs(runs)
    draw_components({"cifar10_seed0": runs["cifar10_seed0"]} | long)
    draw_long(long)


def draw_runs(runs: dict[str, list[dict]]) -> None:
    """One row of panels a data set, one curve a run."""
    sets = sorted({name.split("_")[0] for name in runs})
    figure, axes = plt.subplots(
        len(sets), len(CURVES), figsize=(3.2 * len(CURVES), 2.8 * len(sets)), squeeze=False
    )
    for row, name in zip(axes, sets, strict=True):
        for run, records in runs.items():
            if not run.startswith(name):
                continue
            for panel, (key, title) in zip(row, CURVES.items(), strict=True):
                draw(panel, records, key, run)
                panel.set(title=title, xlabel="epoch")
        row[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "reference_runs.png", dpi=80)


def draw_components(runs: dict[str, list[dict]]) -> None:
    """One row of panels a run, one curve for each component of the network; no empty panels."""
    figure, axes = plt.subplots(
        len(runs), len(SCORES), figsize=(4 * len(SCORES), 3 * len(runs)), squeeze=False
    )
    for row, (run, records) in zip(axes, runs.items(), strict=True):
        for panel, (score, title) in zip(row, SCORES.items(), strict=True):
            for label, component in COMPONENTS.items():
                own = "" if (label, score) == ("H", "linear_top1") else f"{component}_"
                draw(panel, records, f"eval/{own}{score}", label)
            panel.set(title=f"{run}: {title}", xlabel="epoch")
            if all(not line.get_xdata().size for line in panel.lines):
                panel.set_visible(False)
        row[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "components.png", dpi=80)


def draw_long(runs: dict[str, list[dict]]) -> None:
    """The k-means ARI of each component, one panel a seed."""
    figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 2.8), sharey=True)
    for number, (panel, records) in enumerate(zip(axes, runs.values(), strict=True)):
        for label, component in COMPONENTS.items():
            draw(panel, records, f"eval/{component}_ari", label)
        panel.set(title=f"digits, 700 epochs, seed {number}", xlabel="epoch", ylim=(0.4, 1))
    axes[0].set_ylabel("k-means ARI")
    axes[0].legend(fontsize=8, loc="lower center", ncols=4)
    figure.tight_layout()
    figure.savefig(DOCS / "long.png", dpi=80)


def draw(panel, records: list[dict], key: str, label: str) -> None:
    """A metric over the epochs; with markers where it was evaluated now and then."""
    points = [(record["epoch"], record[key]) for record in records if key in record]
    marker = "o-" if key.startswith("eval") else "-"
    panel.plot(*np.array(points).reshape(-1, 2).T, marker, markersize=3, label=label)


if __name__ == "__main__":
    main()

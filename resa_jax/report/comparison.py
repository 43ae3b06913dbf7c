"""Several runs on one page: their curves over each other, and where their recipes differ."""

from collections.abc import Sequence
from html import escape

from resa_jax.config import fields
from resa_jax.paths import absolute
from resa_jax.report.html import document, grid, plot, section
from resa_jax.report.run_record import RunRecord


# What is compared, by title; a metric that no run has is left out.
CURVES = {
    "Loss": "loss",
    "KL": "kl",
    "Effective rank of the embeddings": "effective_rank",
    "Embedding std": "embedding_std",
    "k-NN accuracy of H, %": "eval/knn_top1",
    "Linear accuracy of H, %": "eval/linear_top1",
    "ARI of H": "eval/encoding_ari",
    "ARI of Z": "eval/embedding_ari",
    "Silhouette of H": "eval/encoding_silhouette_mean",
    "Silhouette of Z": "eval/embedding_silhouette_mean",
    "Learning rate": "learning_rate",
    "Images per second": "images_per_second",
}


def render_comparison(records: Sequence[RunRecord]) -> str:
    """The page of several runs."""
    named = dict(zip(short_names(records), records, strict=True))
    plots = []
    for title, metric in CURVES.items():
        curves = {name: record.curve(metric) for name, record in named.items()}
        curves = {name: curve for name, curve in curves.items() if curve[0]}
        if curves:
            plots.append(plot(title, curves))
    sections = [
        f"<h1>{len(named)} runs</h1><p class='quiet'>{escape(', '.join(named))}</p>",
        section("Last values", _last_values(named)),
        section("Over training", grid(plots)),
        section("Where the recipes differ", _differences(named)),
    ]
    return document(f"{len(named)} runs", sections)


def short_names(records: Sequence[RunRecord]) -> list[str]:
    """A run's folder, with as many of those above it as tell it from the other runs."""
    paths = [absolute(record.workdir).parts for record in records]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in paths]


def _last_values(named):
    columns = [
        (title, metric)
        for title, metric in CURVES.items()
        if any(record.last(metric) is not None for record in named.values())
    ]
    rows = [["", "step", *(title for title, _ in columns)]]
    for name, record in named.items():
        last = record.records[-1]["step"]
        cells = []
        for _, metric in columns:
            found = record.last_at(metric)
            late = "" if found is None or found[0] == last else f" (step {found[0]})"
            cells.append("-" if found is None else f"{found[1]:.4g}{late}")
        rows.append([name, str(last), *cells])
    return _table(rows)


def _differences(named):
    recipes = {name: dict(fields(record.config)) for name, record in named.items()}
    every = dict.fromkeys(field for recipe in recipes.values() for field in recipe)
    rows = [["field", *named]]
    for field in every:
        values = [_shown(recipe, field) for recipe in recipes.values()]
        if len(set(values)) > 1:
            rows.append([field, *values])
    if len(rows) == 1:
        return "<p>The recipes are the same.</p>"
    return _table(rows)


def _shown(recipe, field):
    if field not in recipe:
        return "-"
    value = recipe[field]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(rows):
    head, *body = rows
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    return (
        f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'
    )

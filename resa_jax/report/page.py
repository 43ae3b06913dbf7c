"""The report of a run as one HTML page with everything inside."""

from html import escape
from statistics import median

from resa_jax.config import fields
from resa_jax.image_size import size_in_words
from resa_jax.paths import absolute
from resa_jax.report.figures import bars_figure
from resa_jax.report.gallery import Picture
from resa_jax.report.html import document, grid, plot, section, tile
from resa_jax.report.run_record import LAYERS, RunRecord
from resa_jax.report.tables import flatten_scores, format_score


COLORS = dict(zip(LAYERS.values(), ("#1f4e9c", "#d1793b", "#5d9c59", "#9c3c6e"), strict=True))
SCORES = {
    "silhouette_mean": "Silhouette, mean",
    "silhouette_std": "Silhouette, standard deviation",
    "ari": "k-means ARI",
    "nmi": "k-means NMI",
}
TRAINING = {
    "Loss": {"loss": "loss", "KL (floor 0)": "kl"},
    "Assignment entropy (nats)": {"entropy": "assignment_entropy"},
    "Assignment diagonal": {"diagonal": "assignment_diagonal"},
    "Embedding std": {"std": "embedding_std"},
    "Effective rank": {"rank": "effective_rank"},
    "Learning rate": {"rate": "learning_rate"},
    "EMA coefficient": {"coefficient": "ema_momentum"},
}


def render_page(record: RunRecord, gallery: list[Picture]) -> str:
    """The page, complete in itself: no script, no link, no file beside it."""
    sections = [
        _header(record),
        _curves_over_training(record),
        _scores_over_training(record),
        _protocols(record),
        _pictures(gallery),
        _time(record),
        _recipe(record),
    ]
    return document(f"{absolute(record.workdir).name} ({record.config.method.name})", sections)


def _header(record):
    config, last = record.config, record.records[-1]
    tiles = {
        "k-NN accuracy": ("eval/knn_top1", "{:.1f} %"),
        "linear probe": ("eval/linear_top1", "{:.1f} %"),
        "ARI of H": ("eval/encoding_ari", "{:z.3f}"),
        "silhouette of H": ("eval/encoding_silhouette_mean", "{:z.3f}"),
        "loss": ("loss", "{:.3f}"),
    }
    # A value that is older than the run's last step says so.
    shown = "".join(
        tile(style.format(found[1]), f"{name}, step {found[0]}")
        for name, (metric, style) in tiles.items()
        if (found := record.last_at(metric)) is not None
    )
    speeds = {"images_per_second": "{:,.0f} images per second", "mfu_percent": "{:.1f} % MFU"}
    for metric, style in speeds.items():
        if (value := _median(record, metric)) is not None:
            number, _, name = style.format(value).partition(" ")
            shown += tile(number, f"{name}, median")
    encoder = config.encoder
    return (
        f"<h1>{escape(absolute(record.workdir).name)}</h1>"
        f'<p class="quiet">{escape(config.method.name)}: {escape(encoder.name)} at '
        f"{size_in_words(encoder.image_size)} on {escape(config.data.source)}; "
        f"batch {config.batch_size}, seed {config.seed}; "
        f"step {last['step']}, epoch {last['epoch']:.1f}.</p>"
        f'<div class="tiles">{shown}</div>'
    )


def _curves_over_training(record):
    figures = []
    for title, names in TRAINING.items():
        curves = {label: record.curve(name) for label, name in names.items()}
        curves = {label: curve for label, curve in curves.items() if curve[0]}
        if curves:
            figures.append(plot(title, curves))
    return section("Training", grid(figures))


def _scores_over_training(record):
    accuracies = {
        "k-NN": record.curve("eval/knn_top1"),
        "linear probe": record.curve("eval/linear_top1"),
    }
    accuracies = {name: curve for name, curve in accuracies.items() if curve[0]}
    figures = []
    if accuracies:
        figures.append(plot("Accuracy of H, %", accuracies))
    for score, title in SCORES.items():
        curves = record.layer_curves(score)
        if curves:
            figures.append(plot(title, curves, COLORS))
    if not figures:
        return section(
            "Accuracy and clustering",
            "<p>The images have no labels to compare with, or nothing was evaluated yet.</p>",
        )
    text = (
        "<p>The claim of ReSA's paper is that encodings H cluster better than the projector's "
        "hidden layers P0 and P1 and the embedding Z; these are the scores of this run, on "
        f"L2-normalised features. {_verdict(record)}</p>"
    )
    return section("Accuracy and clustering over training", text + grid(figures))


def _verdict(record):
    """Which layer leads at the last epoch that has them all."""
    said = []
    for score, name in (("silhouette_mean", "silhouette"), ("ari", "ARI")):
        curves = record.layer_curves(score)
        if len(curves) < 2:
            continue
        epochs = set.intersection(*(set(curve[0]) for curve in curves.values()))
        if not epochs:
            continue
        epoch = max(epochs)
        values = {title: y[x.index(epoch)] for title, (x, y) in curves.items()}
        ranking = sorted(values, key=lambda title: values[title], reverse=True)
        order = ", ".join(f"{title.split()[0]} {values[title]:z.3f}" for title in ranking)
        leads = "H leads" if ranking[0].startswith("H") else "H does not lead"
        said.append(f"At epoch {epoch:.3g} the order by {name} is {order}: {leads}.")
    return " ".join(said)


def _protocols(record):
    tables = []
    for name, result in record.evaluations.items():
        if name == "baselines":
            rows, heading, note = result, "Baselines", "One function on all images."
        elif "protocol" in result and "-step" not in name:
            rows, heading = result["results"], result["protocol"]
            note = _protocol_note(result)
        else:
            continue
        tables.append(f"<h3>{escape(heading)}</h3><p class='quiet'>{note}</p>{_score_table(rows)}")
    return section("Protocols", "".join(tables)) if tables else ""


def _protocol_note(result):
    numbers = ", ".join(
        f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in result["hyperparameters"].items()
    )
    test = f", test {result['test_source']}" if result.get("test_source") else ""
    source = result.get("source") or result.get("features")
    step = f" at step {result['step']}" if result.get("step") is not None else ""
    return escape(
        f"{result.get('network', 'features')} network{step}; {source}{test}; seed "
        f"{result['seed']}; {numbers}."
    )


def _score_table(rows):
    rows = {name: flatten_scores(scores) for name, scores in rows.items()}
    columns = list(dict.fromkeys(column for scores in rows.values() for column in scores))
    head = "".join(f'<th class="number">{escape(_column(c))}</th>' for c in columns)
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(
            f'<td class="number">{format_score(column, scores.get(column))}</td>'
            for column in columns
        )
        + "</tr>"
        for name, scores in rows.items()
    )
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _column(name: str) -> str:
    return "matched accuracy" if name == "accuracy" else name.replace("_", " ")


def _pictures(gallery):
    if not gallery:
        return ""
    return section(
        "Pictures",
        "".join(
            f"<h3>{escape(picture.title)}</h3><figure>"
            f'<img alt="{escape(picture.title)}" src="{picture.uri}">'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
            for picture in gallery
        ),
    )


def _time(record):
    figures = [
        plot(title, {title: record.curve(name)})
        for title, name in (
            ("Images per second", "images_per_second"),
            ("Model TFLOP per second and device", "tflops_per_device"),
            ("Share of time spent waiting for data", "data_wait_fraction"),
        )
        if record.curve(name)[0]
    ]
    parts = record.wall_time()
    split = "<p>The wall time's parts are not on record.</p>"
    if parts:
        split = f'<img alt="Wall time" src="{bars_figure(parts)}">'
    return section("Throughput and wall time", grid(figures) + "<h3>Wall time</h3>" + split)


def _recipe(record):
    groups: dict[str, list] = {}
    for field, value in fields(record.config):
        group = field.rpartition(".")[0] or "top level"
        groups.setdefault(group, []).append((field.rpartition(".")[2], value))
    tables = "".join(
        f'<table><tr><th colspan="2">{escape(group)}</th></tr>'
        + "".join(
            f'<tr><td class="code">{escape(name)}</td>'
            f'<td class="code">{escape(_plain(value))}</td></tr>'
            for name, value in rows
        )
        + "</table>"
        for group, rows in groups.items()
    )
    return section("Recipe", f'<div class="recipe">{tables}</div>')


def _plain(value) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _median(record, name):
    values = record.curve(name)[1]
    return median(values) if values else None

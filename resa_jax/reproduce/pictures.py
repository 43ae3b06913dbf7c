"""How the paper's figures are drawn, from the folders of their runs."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure as Picture
from sklearn.manifold import TSNE

from resa_jax.data.sources import open_source
from resa_jax.encoder import load_encoder
from resa_jax.evaluation.features import extract
from resa_jax.evaluation.knn import l2_normalize
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.evaluation.superclasses import coarse_labels
from resa_jax.paths import AnyPath
from resa_jax.report.assignment import assignment_matrix, assignment_scores
from resa_jax.report.figures import STYLE, draw_hull
from resa_jax.report.run_record import LAYERS, read_run
from resa_jax.reproduce.figures import Figure
from resa_jax.workdir import checkpoint_paths


Folders = Mapping[str, AnyPath]  # of the runs, by their titles
_SUPERCLASSES = 5
_ASSIGNED = 100  # images in Figure 11


def markers(figure: Figure, folders: Folders, values: Mapping) -> Picture:
    """A panel for each score, a circle for H and a cross for Z of each method."""
    picture = Picture((11, 3.4))
    for axes, score in zip(picture.subplots(1, 3), ("SC mean", "SC std", "ARI"), strict=True):
        for layer, marker, color in (("H", "o", "#33638d"), ("Z", "x", "#c44e52")):
            heights = [values[title, f"{score} of {layer}"] for title in folders]
            axes.plot(list(folders), heights, marker, color=color, label=layer)
        axes.set_title(score)
        axes.tick_params(axis="x", rotation=60)
    axes.legend()
    return picture


def layers_over_training(figure: Figure, folders: Folders, values: Mapping) -> Picture:
    """A column for each method; accuracy, silhouette and ARI of its layers over the epochs."""
    rows = {
        "linear accuracy": "linear_top1",
        "SC mean": "silhouette_mean",
        "SC std": "silhouette_std",
        "ARI": "ari",
    }
    picture = Picture((2.7 * len(folders), 8))
    panels = picture.subplots(len(rows), len(folders), sharex=True, sharey="row", squeeze=False)
    for column, (title, folder) in enumerate(folders.items()):
        run = read_run(folder)
        for axes, (name, score) in zip(panels[:, column], rows.items(), strict=True):
            for layer, full in LAYERS.items():
                own = f"eval/{layer}_{score}"
                if score == "linear_top1" and layer == "encoding":
                    own = "eval/linear_top1"
                axes.plot(*run.curve(own), marker=".", label=full.partition(" ")[0])
            if column == 0:
                axes.set_ylabel(name)
        panels[0, column].set_title(title)
        panels[-1, column].set_xlabel("epoch")
    panels[0, 0].legend(fontsize=8)
    return picture


def bars(figure: Figure, folders: Folders, values: Mapping) -> Picture:
    """A panel for each number; a bar for each run, from where the first run's ends."""
    columns = list(dict.fromkeys(column for _, column in values))
    picture = Picture((3.2 * len(columns), 3.2))
    first = next(iter(folders))
    for axes, column in zip(np.atleast_1d(picture.subplots(1, len(columns))), columns, strict=True):
        start = values[first, column]
        heights = [values[title, column] - start for title in folders]
        colors = ["#c44e52" if height < 0 else "#33638d" for height in heights]
        axes.bar(list(folders), heights, bottom=start, color=colors)
        axes.axhline(start, color="#555555", linewidth=0.8)
        axes.set_title(column)
        axes.tick_params(axis="x", rotation=60)
    return picture


def curves(figure: Figure, folders: Folders, values: Mapping) -> Picture:
    """A panel for each number; a line for each run over the epochs."""
    names = {cell.column: cell.measure.score for cell in figure.cells if cell.measure is not None}
    picture = Picture((3.6 * len(names), 3))
    for axes, (column, name) in zip(picture.subplots(1, len(names)), names.items(), strict=True):
        for title, folder in folders.items():
            axes.plot(*read_run(folder).curve(name), label=title, linewidth=1.3)
        axes.set_title(column)
        axes.set_xlabel("epoch")
    axes.legend(fontsize=8)
    return picture


def planes(figure: Figure, folders: Folders, values: Mapping) -> Picture:
    """A panel for each method: t-SNE of the encodings, coloured by class, with hulls."""
    picture = Picture((11, 7.4))
    for axes, (title, folder) in zip(picture.subplots(2, 3).flat, folders.items(), strict=True):
        points, labels = _plane(folder, superclasses="superclasses" in figure.title)
        colors = colormaps["tab20" if len(np.unique(labels)) > 10 else "tab10"]
        for number, label in enumerate(np.unique(labels)):
            own, color = points[labels == label], colors(number % colors.N)
            axes.scatter(own[:, 0], own[:, 1], s=3, color=color, linewidths=0)
            draw_hull(axes, own, color)
        axes.set_title(title)
        axes.set_axis_off()
    return picture


def assignments(figure: Figure, folders: Folders, values: Mapping) -> Picture:
    """The assignment of 100 images, sorted by class, at each checkpoint of a run."""
    (folder,) = folders.values()
    run = read_run(folder)
    source = open_source(run.config.data.source)
    rows = np.sort(np.random.default_rng(0).permutation(len(source))[:_ASSIGNED])
    labels = np.asarray(source.labels)[rows]
    order = np.argsort(labels, kind="stable")
    checkpoints = checkpoint_paths(folder)
    picture = Picture((4.2 * len(checkpoints), 4.4))
    panels = np.atleast_1d(picture.subplots(1, len(checkpoints)))
    for axes, checkpoint in zip(panels, checkpoints, strict=True):
        matrix = assignment_matrix(checkpoint, source, rows[order])
        scores = assignment_scores(matrix, labels[order])
        axes.imshow(np.sqrt(matrix), cmap="magma", vmin=0, vmax=1)
        axes.set_title(
            f"step {checkpoint.name}: {scores['diagonal']:.2f} on the diagonal, "
            f"{scores['same_class']:.2f} on the class"
        )
        axes.set_axis_off()
    return picture


def _plane(folder, superclasses):
    """Points [n, 2] and labels [n] of a run's training images."""
    name = read_run(folder).config.data.source
    source, encoder = open_source(name), load_encoder(folder)
    cache = folder / "evaluation" / "features"
    arrays = extract(encoder, source, name, Preprocessing.of(encoder.spec), cache=cache)
    features, labels = l2_normalize(np.asarray(arrays["encoding"])), np.asarray(arrays["labels"])
    if superclasses and len(source.class_names) == 100:
        coarse = coarse_labels(labels, source.class_names)
        chosen = np.random.default_rng(0).permutation(np.unique(coarse))[:_SUPERCLASSES]
        features, labels = (x[np.isin(coarse, chosen)] for x in (features, labels))
    plane = TSNE(perplexity=30, init="pca", random_state=0)
    return plane.fit_transform(features.astype(np.float32)), labels


def draw(figure: Figure, folders: Folders, values: Mapping, path: AnyPath) -> None:
    """Draws a figure of the paper and writes it as PNG and PDF, `path` with each ending."""
    with rc_context(STYLE):
        picture = globals()[figure.picture](figure, folders, values)
        for ending in (".png", ".pdf"):
            picture.savefig(path.with_suffix(ending), dpi=130)

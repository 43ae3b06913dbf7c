"""How the paper's figures are drawn, from the folders of their runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure as Picture
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from resa_jax.data.sources import Source, open_source
from resa_jax.encoder import load_encoder
from resa_jax.evaluation.clustering import k_means
from resa_jax.evaluation.features import extract
from resa_jax.evaluation.knn import l2_normalize
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.evaluation.superclasses import coarse_labels
from resa_jax.paths import AnyPath
from resa_jax.report.assignment import assignment_matrix, assignment_scores
from resa_jax.report.figures import STYLE, draw_hull
from resa_jax.report.montage import montage
from resa_jax.report.run_record import LAYERS, read_run
from resa_jax.reproduce.figures import Figure
from resa_jax.workdir import checkpoint_paths


Folders = Mapping[str, AnyPath]  # of the runs, by their titles
_SUPERCLASSES = 5
_GROUPS, _STRIP = 4, 5  # of a class in Figure 7, and images of each
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
    rows = {"linear accuracy": "linear_top1"}
    if any(column == "k-NN" for _, column in values):
        rows["k-NN accuracy"] = "knn_top1"
    rows |= {"SC mean": "silhouette_mean", "SC std": "silhouette_std", "ARI": "ari"}
    picture = Picture((2.7 * len(folders), 2 * len(rows)))
    panels = picture.subplots(len(rows), len(folders), sharex=True, sharey="row", squeeze=False)
    for column, (title, folder) in enumerate(folders.items()):
        run = read_run(folder)
        for axes, (name, score) in zip(panels[:, column], rows.items(), strict=True):
            for layer, full in LAYERS.items():
                named = layer != "encoding" or score not in ("linear_top1", "knn_top1")
                own = f"eval/{layer}_{score}" if named else f"eval/{score}"
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
    """A panel for each method: t-SNE of the encodings, coloured by class, with hulls.

    Without superclasses, the last method's two classes that fall into groups most clearly have a
    hull for each group, and images of the groups below.
    """
    grouped = "superclasses" not in figure.title
    picture = Picture((11, 11 if grouped else 7.4))
    rows = picture.add_gridspec(3 if grouped else 2, 6)
    for number, (title, folder) in enumerate(folders.items()):
        axes = picture.add_subplot(rows[number // 3, 2 * (number % 3) : 2 * (number % 3) + 2])
        plane = _plane(folder, superclasses=not grouped)
        groups = {}
        if grouped and number == len(folders) - 1:
            groups = _clearest_groups(plane)
        _draw_plane(axes, plane, groups)
        axes.set_title(title)
        for place, (label, members) in enumerate(groups.items()):
            strips = picture.add_subplot(rows[2, 3 * place : 3 * place + 3])
            strips.imshow(_strips(plane, label, members))
            strips.set_title(f"{title}: groups of {plane.source.class_names[label]}")
            strips.set_axis_off()
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


@dataclass(frozen=True)
class _Plane:
    """Points [n, 2] of a run's training images, their labels [n] and positions [n] in a source."""

    points: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    source: Source


def _draw_plane(axes, plane, groups):
    colors = colormaps["tab20" if len(np.unique(plane.labels)) > 10 else "tab10"]
    for number, label in enumerate(np.unique(plane.labels)):
        own, color = plane.points[plane.labels == label], colors(number % colors.N)
        axes.scatter(own[:, 0], own[:, 1], s=3, color=color, linewidths=0)
        for members in _each(groups[label]) if label in groups else [slice(None)]:
            draw_hull(axes, own[members], color)
    axes.set_axis_off()


def _clearest_groups(plane):
    """The two classes whose points k-means splits best by silhouette, with each point's group.

    A split with fewer images in a group than a strip shows comes last.
    """
    found = {}
    for label in np.unique(plane.labels):
        own = plane.points[plane.labels == label]
        groups = k_means(own, _GROUPS, seed=0).labels_
        score = silhouette_score(own, groups, sample_size=2000, random_state=0)
        found[label] = (np.bincount(groups).min() >= _STRIP, score), groups
    best = sorted(found, key=lambda label: found[label][0], reverse=True)[:2]
    return {label: found[label][1] for label in best}


def _each(groups):
    return [groups == number for number in range(_GROUPS)]


def _strips(plane, label, groups):
    """A row of images for each group of a class, from the group's middle outwards."""
    own, indices = (x[plane.labels == label] for x in (plane.points, plane.indices))
    rows, captions = [], []
    for chosen in _each(groups):
        distances = np.linalg.norm(own[chosen] - own[chosen].mean(axis=0), axis=1)
        nearest = indices[chosen][np.argsort(distances, kind="stable")[:_STRIP]]
        rows.append([plane.source[int(index)] for index in nearest])
        captions.append(f"{chosen.sum()} image" + "s" * (len(nearest) > 1))
    return montage(rows, captions)


def _plane(folder, superclasses):
    name = read_run(folder).config.data.source
    source, encoder = open_source(name), load_encoder(folder)
    cache = folder / "evaluation" / "features"
    arrays = extract(encoder, source, name, Preprocessing.of(encoder.spec), cache=cache)
    features, labels, indices = (
        np.asarray(arrays[name]) for name in ("encoding", "labels", "indices")
    )
    if superclasses and len(source.class_names) == 100:
        coarse = coarse_labels(labels, source.class_names)
        chosen = np.random.default_rng(0).permutation(np.unique(coarse))[:_SUPERCLASSES]
        kept = np.isin(coarse, chosen)
        features, labels, indices = features[kept], labels[kept], indices[kept]
    plane = TSNE(perplexity=30, init="pca", random_state=0)
    points = plane.fit_transform(l2_normalize(features).astype(np.float32))
    return _Plane(points, labels, indices, source)


def draw(figure: Figure, folders: Folders, values: Mapping, path: AnyPath) -> None:
    """Draws a figure of the paper and writes it as PNG and PDF, `path` with each ending."""
    with rc_context(STYLE):
        picture = globals()[figure.picture](figure, folders, values)
        for ending in (".png", ".pdf"):
            picture.savefig(path.with_suffix(ending), dpi=130)

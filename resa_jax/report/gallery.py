"""The pictures of a trained network's features: t-SNE, sub-clusters, neighbours, assignment."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from sklearn.manifold import TSNE

from resa_jax.data.sources import Source
from resa_jax.encoder import load_encoder
from resa_jax.evaluation.clustering import k_means
from resa_jax.evaluation.features import extract
from resa_jax.evaluation.knn import l2_normalize, nearest_neighbours
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.paths import AnyPath, is_remote
from resa_jax.report.assignment import assignment_matrix, assignment_scores, makes_assignment
from resa_jax.report.figures import heat_map_figure, picture_uri, scatter_figure
from resa_jax.report.montage import montage
from resa_jax.workdir import checkpoint_paths


SHOWN_CLASSES = 10  # of a source with more, a random choice is shown
STRIP = 10  # images in a row; a class of fewer is not split into sub-clusters


@dataclass(frozen=True)
class Picture:
    """A picture for the report.

    Attributes:
      title, caption: texts.
      uri: the image itself, as a data URI.
    """

    title: str
    caption: str
    uri: str


def draw_gallery(
    workdir: AnyPath, source: Source, source_name: str, *, max_images: int, seed: int = 0
) -> list[Picture]:
    """All pictures of a run's latest checkpoint, on a sample of a source.

    Args:
      workdir: of the run.
      max_images: size of the sample; of more than ten classes, ten at random are drawn.
      seed: of the sample, t-SNE and k-means.
    """
    encoder = load_encoder(workdir)
    labels = np.asarray(source.labels) if source.is_labelled else None
    rows = sample_rows(labels, len(source), max_images, seed)
    arrays = extract(
        encoder,
        source,
        source_name,
        Preprocessing.of(encoder.spec),
        rows=rows,
        batch_size=min(256, len(rows)),
        cache=None if is_remote(workdir) else workdir / "evaluation" / "features",
    )
    features, indices = np.asarray(arrays["encoding"]), np.asarray(arrays["indices"])
    labels = np.asarray(arrays["labels"]) if source.is_labelled else None
    sample = Sample(source, features, indices, labels, seed)
    pictures = [sample.tsne()]
    if labels is None:
        pictures.append(sample.groups())
    else:
        pictures += sample.sub_clusters()
    pictures.append(sample.neighbours())
    checkpoints = checkpoint_paths(workdir)
    if makes_assignment(checkpoints[-1]):
        pictures.append(draw_assignment(checkpoints, source, labels, indices, seed))
    return pictures


def sample_rows(
    labels: Int[np.ndarray, " n"] | None, count: int, max_images: int, seed: int
) -> Int[np.ndarray, " m"]:
    """Positions, in order, of a random sample of a source, of at most ten classes."""
    rng = np.random.default_rng(seed)
    rows = np.arange(count)
    if labels is not None:
        classes = np.unique(labels)
        if len(classes) > SHOWN_CLASSES:
            rows = rows[np.isin(labels, rng.choice(classes, SHOWN_CLASSES, replace=False))]
    return np.sort(rng.permutation(rows)[:max_images])


@dataclass(frozen=True)
class Sample:
    """Some images of a source with their encodings.

    Attributes:
      features: [n, d].
      indices: [n], positions in the source.
      labels: [n], None for an unlabelled source.
      seed: of t-SNE and k-means.
    """

    source: Source
    features: np.ndarray
    indices: np.ndarray
    labels: np.ndarray | None
    seed: int

    def tsne(self) -> Picture:
        """Figures 7 and 8: scikit-learn's t-SNE of the L2-normalised encodings, hulls by class."""
        perplexity = min(30.0, (len(self.features) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init="pca", random_state=self.seed)
        points = plane.fit_transform(l2_normalize(self.features).astype(np.float32))
        caption = f"t-SNE of {len(points)} encodings (perplexity {perplexity:.3g})."
        if self.labels is not None:
            shown, there = (
                len(np.unique(x)) for x in (self.labels, np.asarray(self.source.labels))
            )
            if shown < there:
                caption += f" {shown} of the {there:,} classes, drawn at random."
            caption += " A hull holds the 90 % of its class that lie nearest to the class's median."
        return Picture(
            "Encodings in the plane",
            caption,
            scatter_figure(points, self.labels, self.source.class_names),
        )

    def sub_clusters(self, classes: int = 3, groups: int = 5) -> list[Picture]:
        """Figure 7's strips: the largest classes, each split by k-means."""
        assert self.labels is not None  # called for labelled sources alone
        numbers, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:classes]
        largest = [numbers[n] for n in order if counts[n] >= STRIP]
        pictures = []
        for label in largest:
            members = np.flatnonzero(self.labels == label)
            name = self.source.class_names[label]
            uri = self._strips(members, groups)
            caption = "A row for each of its clusters by k-means, from the centre outwards."
            pictures.append(Picture(f"Sub-clusters of {name}", caption, uri))
        return pictures

    def groups(self, groups: int = 10) -> Picture:
        """For images without labels: what k-means finds in all of them."""
        uri = self._strips(np.arange(len(self.features)), min(groups, len(self.features)))
        caption = "A row for each cluster by k-means, the largest first, from the centre outwards."
        return Picture("Groups", caption, uri)

    def neighbours(self, queries: int = 8) -> Picture:
        """The nearest neighbours (cosine) of some images, of as many classes as possible."""
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(self.features))
        if self.labels is not None:
            _, firsts = np.unique(self.labels[order], return_index=True)
            rest = np.setdiff1d(np.arange(len(order)), firsts)
            order = order[np.concatenate([firsts, rest])]
        chosen = order[:queries]
        count = min(STRIP, len(self.features) - 1)
        found, _ = nearest_neighbours(
            self.features, self.features[chosen], count + 1, metric="cosine"
        )
        strips, captions = [], []
        for row, near in zip(chosen, found, strict=True):
            near = near[near != row][:count]
            strips.append([self._image(row), *(self._image(other) for other in near)])
            captions.append(self._caption(row, near))
        caption = "The image on the left, then its nearest neighbours in the sample by cosine."
        return Picture(
            "Nearest neighbours", caption, picture_uri(montage(strips, captions, queries=True))
        )

    def _strips(self, members, groups) -> str:
        unit = l2_normalize(self.features[members])
        means = k_means(unit, groups, seed=self.seed)
        distances = np.linalg.norm(unit - means.cluster_centers_[means.labels_], axis=1)
        strips, captions = [], []
        for group in np.argsort(-np.bincount(means.labels_), kind="stable"):
            rows = np.flatnonzero(means.labels_ == group)
            nearest = rows[np.argsort(distances[rows], kind="stable")][:STRIP]
            strips.append([self._image(row) for row in members[nearest]])
            captions.append(f"{len(rows)} image" + "s" * (len(rows) > 1))
        return picture_uri(montage(strips, captions))

    def _caption(self, row, near) -> str:
        if self.labels is None:
            return f"image {self.indices[row]}"
        same = int((self.labels[near] == self.labels[row]).sum())
        return f"{self.source.class_names[self.labels[row]]}\n{same} of {len(near)} same"

    def _image(self, row: int | np.integer) -> np.ndarray:
        return self.source[int(self.indices[row])]


def draw_assignment(
    checkpoints: list[AnyPath], source: Source, labels, indices, seed: int, size: int = 100
) -> Picture:
    """Figure 11: the assignment of up to 100 images by the first and the last checkpoint kept."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(indices))[:size])
    if labels is not None:
        chosen = chosen[np.argsort(labels[chosen], kind="stable")]
    own = None if labels is None else labels[chosen]
    borders = [] if own is None else [int(row) for row in np.flatnonzero(np.diff(own)) + 1]
    matrices, lines = {}, []
    for path in dict.fromkeys((checkpoints[0], checkpoints[-1])):
        matrix = assignment_matrix(path, source, indices[chosen], seed)
        scores = assignment_scores(matrix, own)
        matrices[f"step {path.name}"] = matrix
        lines.append(f"Step {path.name}: {_describe(scores, len(chosen))}")
    caption = f"{len(chosen)} images in their weak view, batch statistics their own"
    caption += ", in the order of their classes. " if own is not None else ". "
    return Picture("Assignment", caption + " ".join(lines), heat_map_figure(matrices, borders))


def _describe(scores: dict[str, float], size: int) -> str:
    text = f"entropy {scores['entropy']:.2f} (uniform {np.log(size):.2f}), "
    text += f"diagonal {scores['diagonal']:.2f}"
    if "same_class" in scores:
        text += (
            f", weight on pairs of one class {scores['same_class']:.0%} "
            f"(by chance {scores['same_class_by_chance']:.0%})"
        )
    return text + "."

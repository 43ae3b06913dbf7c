"""What people want first with their own images: encodings in a file, neighbours, groups."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score

from resa_jax.data.decode import BadImageError, decode_image
from resa_jax.data.decoding import RGB, Decoding
from resa_jax.data.sources import Source
from resa_jax.encoder import Encoder
from resa_jax.errors import UserError
from resa_jax.evaluation.clustering import k_means
from resa_jax.evaluation.knn import l2_normalize, nearest_neighbours
from resa_jax.evaluation.preprocessing import Preprocessing
from resa_jax.report.montage import montage


GROUP_IMAGES = 10  # shown of each group
SHOWN_SETS = 40  # of near-duplicates


class Collection:
    """The images of a source with their encodings."""

    def __init__(
        self,
        source: Source,
        name: str,
        arrays: dict[str, np.ndarray],
        how: Decoding = RGB,
    ):
        """
        Args:
          name: the string that names the source.
          arrays: as `extract` gives them.
          how: queries are decoded.
        """
        self._how = how
        self._source = source
        self._arrays = arrays
        self._encodings = np.asarray(arrays["encoding"])
        indices = arrays["indices"]
        paths = source.paths
        self.titles = tuple(f"{name} {i}" if paths is None else paths[i] for i in indices)

    def save(self, path: Path) -> None:
        """Writes encodings, labels, paths and the further layers, by the path's ending.

        An npz file also holds `class_names`, a parquet file in their place the column `class`; its
        layers are lists of one length, a row for each image.
        """
        arrays: dict[str, Any] = {
            "encodings" if k == "encoding" else k: v for k, v in self._arrays.items()
        }
        del arrays["indices"]
        arrays["paths"] = np.array(self.titles)
        if path.suffix == ".parquet":
            arrays["class"] = np.array([self._class(row) for row in range(len(self.titles))])
            _write_parquet(path, arrays)
            return
        if self._source.is_labelled and self._source.class_names:
            arrays["class_names"] = np.array(self._source.class_names)
        np.savez(path, **arrays)

    def find_duplicates(self, threshold: float, output: Path) -> str:
        """Sets of images that are nearly the same: linked by cosines of at least `threshold`.

        Of each image its ten nearest others are looked at.

        Returns:
          A line that says what was written: FILE.duplicates.csv, with the similarity of each image
          to the first of its set, and FILE.duplicates.png beside `output`.
        """
        rows, similarities = self._nearest_others(10)
        linked = similarities >= threshold
        first = np.repeat(np.arange(len(rows)), linked.sum(axis=1))
        links = coo_array((np.ones(len(first)), (first, rows[linked])), shape=(len(rows),) * 2)
        sets = [s for s in _by_size(connected_components(links, directed=False)[1]) if len(s) > 1]
        unit = l2_normalize(self._encodings)
        table = [
            (number, self.titles[row], f"{unit[row] @ unit[members[0]]:.4f}", self._class(row))
            for number, members in enumerate(sets)
            for row in members
        ]
        strips = [[self._image(row) for row in members[:GROUP_IMAGES]] for members in sets]
        captions = [f"set {number}\n{len(members)} images" for number, members in enumerate(sets)]
        names = ("set", "path", "similarity", "class")
        written = self._write("duplicates", output, names, table, strips, captions)
        extra = sum(map(len, sets)) - len(sets)
        found = f"{len(sets)} sets of near-duplicates, {extra} images beyond the first of each."
        return f"{found} {written}"

    def find_outliers(self, number: int, output: Path) -> str:
        """The images that are least like their ten nearest others, by the mean cosine.

        Returns:
          A line that says what was written: FILE.outliers.csv and FILE.outliers.png beside
          `output`.
        """
        near = self._nearest_others(10)[1].mean(axis=1)
        order = np.argsort(near, kind="stable")[:number]
        table = [
            (rank, self.titles[row], f"{near[row]:.4f}", self._class(row))
            for rank, row in enumerate(order, 1)
        ]
        strips = [[self._image(row) for row in order[n : n + 10]] for n in range(0, len(order), 10)]
        captions = [f"{10 * n + 1} to {10 * n + len(strip)}" for n, strip in enumerate(strips)]
        names = ("rank", "path", "similarity", "class")
        written = self._write("outliers", output, names, table, strips, captions)
        return f"The {len(order)} images least like any other. {written}"

    def _nearest_others(
        self, count: int
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """Rows and cosines of the images nearest to each one, itself left out."""
        count = min(count, len(self.titles) - 1)
        if count < 1:
            raise UserError("One image has no others to compare it with.")
        found, similarities = nearest_neighbours(
            self._encodings, self._encodings, count + 1, metric="cosine"
        )
        own = found == np.arange(len(found))[:, None]
        own[~own.any(axis=1), -1] = True  # as many others are exactly alike
        shape = len(found), count
        return found[~own].reshape(shape), similarities[~own].reshape(shape)

    def _write(self, kind, output, names, rows, strips, captions) -> str:
        table, picture = (output.with_suffix(f".{kind}.{ending}") for ending in ("csv", "png"))
        _write_csv(table, names, rows)
        if not strips:
            return f"Written to {table}."
        montage(strips[:SHOWN_SETS], captions[:SHOWN_SETS]).save(picture)
        return f"Written to {table} and {picture}."

    def find_neighbours(
        self, queries: list[str], encode: Callable, count: int, output: Path
    ) -> str:
        """The images nearest to each query, by cosine.

        Args:
          queries: image files, or numbers of images of the source, which are not their own
            neighbours.
          encode: from an image [h, w, c] to its encoding.
          output: FILE.npz, beside which FILE.neighbours.csv and FILE.neighbours.png are written.

        Returns:
          The table as text.
        """
        if len(self.titles) < count + 1:
            raise UserError(
                f"--neighbours={count} of the {len(self.titles)} images: ask for fewer."
            )
        rows, strips, captions = [], [], []
        for query in queries:
            image, own = self._query_image(query)
            encoding = encode(image) if own is None else self._encodings[own]
            found, similarities = nearest_neighbours(
                self._encodings, encoding[None], count + 1, metric="cosine"
            )
            near = [pair for pair in zip(found[0], similarities[0], strict=True) if pair[0] != own]
            near = near[:count]
            for rank, (row, similarity) in enumerate(near, 1):
                rows.append((query, rank, f"{similarity:.4f}", self.titles[row]))
            strips.append([image, *(self._image(row) for row, _ in near)])
            captions.append(Path(query).name)
        names = ("query", "rank", "similarity", "path")
        table, picture = (
            output.with_suffix(".neighbours.csv"),
            output.with_suffix(".neighbours.png"),
        )
        _write_csv(table, names, rows)
        montage(strips, captions, queries=True).save(picture)
        lines = [f"{query}  {rank:>3}  {score}  {path}" for query, rank, score, path in rows]
        return "\n".join([*lines, f"Written to {table} and {picture}."])

    def make_groups(self, number: int, seed: int, output: Path) -> str:
        """Sorts the images by k-means on their L2-normalised encodings (n_init 10).

        k-means with another seed tells how much the groups are a matter of chance.

        Groups are numbered by size, the largest 0; each lists its images from the centre outwards.

        Returns:
          Lines that say what was written, FILE.groups.csv and FILE.groups.png beside `output`, and
          how stable the groups are.
        """
        if number > len(self.titles):
            raise UserError(f"--groups={number} is more than the {len(self.titles)} images.")
        unit = l2_normalize(self._encodings)
        means = k_means(unit, number, seed=seed)
        distances = np.linalg.norm(unit - means.cluster_centers_[means.labels_], axis=1)
        rows, strips, captions = [], [], []
        for group, members in enumerate(_by_size(means.labels_)):
            members = members[np.argsort(distances[members], kind="stable")]
            for row in members:
                rows.append((group, self.titles[row], f"{distances[row]:.4f}", self._class(row)))
            strips.append([self._image(row) for row in members[:GROUP_IMAGES]])
            captions.append(f"group {group}\n{len(members)} image" + "s" * (len(members) > 1))
        table, picture = output.with_suffix(".groups.csv"), output.with_suffix(".groups.png")
        _write_csv(table, ("group", "path", "distance", "class"), rows)
        montage(strips, captions).save(picture)
        other = k_means(unit, number, seed=seed + 1).labels_
        return (
            f"{number} groups are in {table} and {picture}.\n"
            "k-means with another seed makes groups whose adjusted Rand index with these is "
            f"{adjusted_rand_score(means.labels_, other):.2f} (1: the same groups, 0: chance)."
        )

    def _image(self, row: int | np.integer) -> UInt[np.ndarray, "_ _ _"]:
        return self._source[int(self._arrays["indices"][row])]

    def _class(self, row: int | np.integer) -> str:
        label = int(self._arrays["labels"][row])
        return "" if label < 0 else self._source.class_names[label]

    def _query_image(self, query: str) -> tuple[np.ndarray, int | None]:
        if Path(query).is_file():
            try:
                return decode_image(Path(query).read_bytes(), self._how), None
            except BadImageError as error:
                raise UserError(f"--query={query} cannot be decoded: {error}.") from error
        found = np.flatnonzero(self._arrays["indices"] == int(query))
        if not len(found):
            raise UserError(f"--query={query}: the source has images 0 to {len(self._source) - 1}.")
        return self._image(found[0]), int(found[0])


def query_encoder(
    encoder: Encoder, preprocessing: Preprocessing
) -> Callable[[UInt[np.ndarray, "h w c"]], Float[np.ndarray, " d"]]:
    """The encoding of one image of any size up to the canvas."""

    def encode(image):
        sizes = np.array([[*image.shape[:2], 0]], np.int32)
        outputs = encoder.layers(image[None], sizes, prepare=preprocessing, layers=("encoding",))
        return np.asarray(outputs["encoding"], np.float32)[0]

    return encode


def _by_size(groups: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " _"]]:
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return sorted(members, key=lambda rows: (-len(rows), rows[0]))


def _write_csv(path: Path, names: tuple[str, ...], rows: list[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([[_inert(cell) for cell in row] for row in rows])


def _write_parquet(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {}
    for name, values in arrays.items():
        flat = pyarrow.array(np.asarray(values).reshape(-1))
        rows = flat
        if np.ndim(values) == 2:
            rows = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
        columns[name] = rows
    parquet.write_table(pyarrow.table(columns), path)


def _inert(cell: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    risky = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if risky and not re.fullmatch(r"-?\d+\.\d+", cell) else cell

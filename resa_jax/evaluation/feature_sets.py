"""Labelled features: where they come from, and test labels numbered as the training ones."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Num

from resa_jax.data.sources import number_classes, read_npz
from resa_jax.errors import UserError
from resa_jax.evaluation.clustering import fixed_split


@dataclass(frozen=True)
class FeatureSet:
    """Labelled features of one source.

    Attributes:
      layers: name -> [n, d], with "encoding" among the names.
      labels: [n], from 0.
      class_names: by label.
    """

    layers: dict[str, Num[np.ndarray, "n _"]]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]

    @property
    def labelled_encodings(self) -> tuple[Num[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
        """The encodings and the labels."""
        return self.layers["encoding"], self.labels

    def only(self, names: tuple[str, ...]) -> "FeatureSet":
        """Only some layers."""
        layers = {name: self.layers[name] for name in names}
        return FeatureSet(layers, self.labels, self.class_names)

    def rows(self, chosen: Int[np.ndarray, " m"]) -> "FeatureSet":
        """Only some rows."""
        layers = {name: values[chosen] for name, values in self.layers.items()}
        return FeatureSet(layers, self.labels[chosen], self.class_names)

    def fingerprint(self) -> str:
        """A hash of the encodings and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.layers["encoding"]).tobytes())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()[:16]


def read_features(path: Path) -> FeatureSet:
    """Reads an npz file with `encodings` [n, d] and `labels` [n].

    An array `class_names` (texts, by label) is taken where there is one; without it the labels name
    themselves.

    Raises:
      UserError: not such a file.
    """
    arrays = read_npz(path, str(path))
    missing = [name for name in ("encodings", "labels") if name not in arrays]
    if missing:
        raise UserError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(arrays) or 'none'}. "
            "Features are an npz file with encodings [n, d] and labels [n]."
        )
    encodings, labels = arrays["encodings"], arrays["labels"]
    names = tuple(map(str, arrays["class_names"])) if "class_names" in arrays else None
    if encodings.ndim != 2 or encodings.dtype.kind not in "fiu" or not encodings.size:
        raise UserError(
            f"{path}: encodings must be numbers of shape [n, d]; they are {encodings.dtype} of "
            f"shape {encodings.shape}."
        )
    if labels.shape != encodings.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: labels must be integers of shape {encodings.shape[:1]}, one for each "
            f"encoding; they are {labels.dtype} of shape {labels.shape}."
        )
    if not np.isfinite(encodings).all():
        raise UserError(f"{path}: some encodings are not finite.")
    if names is None:
        labels, names = number_classes(labels, f"{path}: labels")
    elif not 0 <= labels.min() <= labels.max() < len(names):
        raise UserError(
            f"{path}: labels lie from {labels.min()} to {labels.max()}, but class_names has "
            f"{len(names)}, from 0 to {len(names) - 1}."
        )
    return FeatureSet({"encoding": encodings}, labels.astype(np.int64), names)


def split_features(features: FeatureSet) -> tuple[FeatureSet, FeatureSet]:
    """Training and test part of one set, by `fixed_split` (four to one)."""
    train, test = fixed_split(len(features.labels))
    return features.rows(train), features.rows(test)


def align_labels(
    labels: Int[np.ndarray, " n"],
    names: tuple[str, ...],
    train_labels: Int[np.ndarray, " m"],
    train_names: tuple[str, ...],
) -> Int[np.ndarray, " n"]:
    """Test labels renumbered as the training source numbers the same class names.

    Raises:
      UserError: the test source has a class of which the training source has no image.
    """
    there = {train_names[label]: label for label in np.unique(train_labels)}
    used = np.unique(labels)
    lacking = [names[label] for label in used if names[label] not in there]
    if lacking:
        shown = ", ".join(repr(name) for name in lacking[:5]) + (" ..." if lacking[5:] else "")
        raise UserError(
            f"The training source lacks {len(lacking)} of the test source's {len(used)} classes: "
            f"{shown}. Use two splits of one data set."
        )
    numbers = np.zeros(len(names), np.int64)
    numbers[used] = [there[names[label]] for label in used]
    return numbers[labels]


def train_and_test(train: FeatureSet, test: FeatureSet | None) -> tuple[FeatureSet, FeatureSet]:
    """A training and a test set, the test labels numbered as the training ones.

    Args:
      test: None holds out one sample in five, by `fixed_split`.

    Raises:
      UserError: sets of different encoders, or of different classes.
    """
    if test is None:
        return split_features(train)
    dimensions = train.layers["encoding"].shape[1], test.layers["encoding"].shape[1]
    if dimensions[0] != dimensions[1]:
        raise UserError(
            f"The training features have {dimensions[0]} numbers each and the test features "
            f"{dimensions[1]}; both must come from one encoder."
        )
    labels = align_labels(test.labels, test.class_names, train.labels, train.class_names)
    return train, FeatureSet(test.layers, labels, train.class_names)

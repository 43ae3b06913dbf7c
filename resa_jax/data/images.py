"""Where a source's images lie: in memory, in files, or in the records of a TFDS data set.

Each class has `labels`, `paths`, a length, and `read(index)`, which returns an image with its label
(-1 where there is none) or raises `BadImageError`.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from resa_jax.data.decode import BadImageError, decode_image


@dataclass
class MemoryImages:
    """Images held decoded, each in the top-left corner of its square in `pixels`."""

    pixels: UInt8[np.ndarray, "n c c 3"]
    sizes: Int32[np.ndarray, "n 2"]  # height and width
    labels: Int32[np.ndarray, "n"] | None
    paths: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        height, width = self.sizes[index]
        label = -1 if self.labels is None else int(self.labels[index])
        return self.pixels[index, :height, :width], label


@dataclass
class FolderImages:
    """Image files, decoded when they are read."""

    root: str
    names: list[str]
    labels: Int32[np.ndarray, "n"] | None
    canvas: int

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(os.path.join(self.root, name) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        try:
            with open(self.name(index), "rb") as file:
                data = file.read()
        except OSError as error:
            raise BadImageError(error.strerror) from error
        label = -1 if self.labels is None else int(self.labels[index])
        return decode_image(data, self.canvas), label


@dataclass
class TfdsImages:
    """Records of a TFDS data set, read without TensorFlow and decoded here."""

    title: str
    records: Any  # a random-access data source of encoded images
    canvas: int
    has_labels: bool
    chosen: Int32[np.ndarray, "n"] | None = None  # positions in `records`; None: all
    chosen_labels: Int32[np.ndarray, "n"] | None = None  # their labels, renumbered
    paths: None = field(default=None, init=False)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, "n"] | None:
        """All labels. Unless classes were chosen, every record is read once for this."""
        if self.chosen_labels is not None or not self.has_labels:
            return self.chosen_labels
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            labels = pool.map(lambda index: self.records[index]["label"], range(len(self.records)))
            return np.fromiter(labels, np.int32, len(self.records))

    def __len__(self) -> int:
        return len(self.records) if self.chosen is None else len(self.chosen)

    def name(self, index: int) -> str:
        return f"{self.title}, record {index if self.chosen is None else self.chosen[index]}"

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        record = self.records[index if self.chosen is None else int(self.chosen[index])]
        label = int(record["label"]) if self.has_labels else -1
        if self.chosen_labels is not None:
            label = int(self.chosen_labels[index])
        return decode_image(record["image"], self.canvas), label

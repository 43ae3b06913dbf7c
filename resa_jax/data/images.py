"""A source, and where its images lie: in memory, in files, or in the records of a data set.

Each class of images has `labels`, `paths`, a length, and `read(index)`, which returns an image with
its label (-1 where there is none) or raises `BadImageError`.
"""

import functools
import operator
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int32, UInt, UInt8

from resa_jax.data.decode import BadImageError, decode_image
from resa_jax.data.decoding import Decoding
from resa_jax.errors import UserError


_BAD_IN_A_ROW = 32  # as many are skipped at most


@dataclass
class MemoryImages:
    """Images held decoded, each in the top-left corner of its canvas in `pixels`."""

    pixels: UInt[np.ndarray, "n a b c"]
    sizes: Int32[np.ndarray, "n 2"]  # height and width
    labels: Int32[np.ndarray, "n"] | None
    paths: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> tuple[UInt[np.ndarray, "h w c"], int]:
        height, width = self.sizes[index]
        label = -1 if self.labels is None else int(self.labels[index])
        return self.pixels[index, :height, :width], label


@dataclass
class FolderImages:
    """Image files, decoded when they are read."""

    root: str
    names: list[str]
    labels: Int32[np.ndarray, "n"] | None
    decoding: Decoding

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(os.path.join(self.root, name) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])

    def read(self, index: int) -> tuple[UInt[np.ndarray, "h w c"], int]:
        try:
            with open(self.name(index), "rb") as file:
                data = file.read()
        except OSError as error:  # not a bad image: a disk that fails, or files that were moved
            raise UserError(
                f"{self.name(index)} cannot be read: {error.strerror}. See to the disk, or start "
                "again with the folder as it is now."
            ) from error
        label = -1 if self.labels is None else int(self.labels[index])
        return decode_image(data, self.decoding), label


@dataclass
class RecordImages:
    """Records of a data set of TFDS, read without TensorFlow, or of `datasets`; decoded here."""

    title: str
    records: Any  # a random-access data source of encoded images
    decoding: Decoding
    has_labels: bool
    has_file_names: bool = False  # as ImageNet's of TFDS, under "file_name"
    chosen: Int32[np.ndarray, "n"] | None = None  # positions in `records`; None: all
    chosen_labels: Int32[np.ndarray, "n"] | None = None  # theirs; None: each record has its own
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

    def file_names(self) -> tuple[str, ...] | None:
        """What the images' files were called; every record is read for this."""
        if not self.has_file_names:
            return None
        rows = range(len(self.records)) if self.chosen is None else self.chosen.tolist()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            names = pool.map(lambda index: self.records[index]["file_name"], rows)
            return tuple(os.fsdecode(name) for name in names)

    def name(self, index: int) -> str:
        return f"{self.title}, record {index if self.chosen is None else self.chosen[index]}"

    def read(self, index: int) -> tuple[UInt[np.ndarray, "h w c"], int]:
        record = self.records[index if self.chosen is None else int(self.chosen[index])]
        if self.chosen_labels is not None:
            label = int(self.chosen_labels[index])
        else:
            label = int(record["label"]) if self.has_labels else -1
        return decode_image(record["image"], self.decoding), label


class Source:
    """Images by index.

    Attributes:
      class_names: the names of the classes, by label; empty where there are no labels.
      canvas: height, width and channels of what every image fits on; those of files may have to
        lie turned for it.
      dtype: of the pixels, uint8 or uint16.
      num_bad: how many images were left out when the source was opened.
      images: where the images come from.
    """

    def __init__(
        self,
        images: MemoryImages | FolderImages | RecordImages,
        *,
        class_names: tuple[str, ...],
        skip_bad: bool = False,
        num_bad: int = 0,
    ):
        self.images = images
        self.class_names = class_names
        if isinstance(images, MemoryImages):
            self.canvas: tuple[int, ...] = images.pixels.shape[1:]
            self.dtype = str(images.pixels.dtype)
        else:
            self.canvas, self.dtype = images.decoding.shape, images.decoding.dtype
        self.num_bad = num_bad
        self._skip_bad = skip_bad

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, MemoryImages)

    @property
    def is_labelled(self) -> bool:
        """Whether `labels` is there; unlike `labels` itself, this never reads anything."""
        if isinstance(self.images, RecordImages):
            return self.images.has_labels
        return self.images.labels is not None

    @property
    def labels(self) -> Int32[np.ndarray, "n"] | None:
        return self.images.labels

    @property
    def paths(self) -> tuple[str, ...] | None:
        return self.images.paths

    def file_names(self) -> tuple[str, ...] | None:
        """The images' files, with folders where those are known; None where there are none."""
        if isinstance(self.images, RecordImages):
            return self.images.file_names()
        return self.images.paths

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> UInt[np.ndarray, "h w c"]:
        """The image; raises as `load` does."""
        return self.load(index)[0]

    def load(self, index: SupportsIndex) -> tuple[UInt[np.ndarray, "h w c"], int, int, int]:
        """The image, its label (-1: none), its index, and how many bad images were passed over.

        The index is the one asked for unless that image cannot be decoded and bad ones are skipped:
        then it is that of the next good image, after the last image the first.

        Raises:
          IndexError: no such index.
          UserError: the image cannot be decoded, or, when skipping, none can.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a source of {len(self)} images")
        for num_bad in range(min(len(self), _BAD_IN_A_ROW)):
            position = (index + num_bad) % len(self)
            try:
                image, label = self.images.read(position)
            except BadImageError as error:
                if not self._skip_bad:
                    raise bad_image(self.images.name(position), error) from error
            else:
                return image, label, position, num_bad
        if num_bad + 1 == len(self):
            raise all_bad(self.images)
        raise UserError(
            f"{num_bad + 1} images in a row cannot be decoded, from {self.images.name(index)} on. "
            "data.on_bad_image=skip is meant for single ones: see to the files."
        )


def bad_image(name: str, error: BadImageError) -> UserError:
    """What to say of an image that cannot be decoded."""
    return UserError(
        f"{name} cannot be decoded: {error}. Remove it, or set data.on_bad_image to 'skip'."
    )


def all_bad(images: MemoryImages | FolderImages | RecordImages) -> UserError:
    """What to say when no image can be decoded."""
    return UserError(f"None of the {len(images)} images can be decoded; {images.name(0)} is one.")


def visible(pixels: UInt[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """An image of any channels as RGB: the first three of them, or the first one as gray.

    Values of more than 8 bits are scaled so that the highest is white.
    """
    shown = pixels[..., : 3 if pixels.shape[2] >= 3 else 1]
    if shown.dtype != np.uint8:
        shown = (shown.astype(np.int64) * 255 // max(int(shown.max()), 1)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))

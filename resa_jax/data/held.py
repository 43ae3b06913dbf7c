"""Sets of small images, held decoded in memory."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resa_jax.data.decode import BadImageError
from resa_jax.data.images import (
    FolderImages,
    MemoryImages,
    RecordImages,
    Source,
    all_bad,
    bad_image,
)
from resa_jax.errors import UserError


HELD_SIDE = 96  # Sets of images up to this long side (pixels) are held decoded in memory.


def in_memory(
    images: list[np.ndarray],
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    paths: tuple[str, ...] | None = None,
    num_bad: int = 0,
) -> Source:
    """The source of decoded images, of any sizes."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    shape = len(images), *sizes.max(axis=0), images[0].shape[2]
    pixels = np.zeros(shape, images[0].dtype)
    for row, image in zip(pixels, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    memory = MemoryImages(pixels, sizes, labels, paths)
    return Source(memory, class_names=class_names, num_bad=num_bad)


def small_or_large(
    images: FolderImages | RecordImages, class_names: tuple[str, ...], small: bool, skip: bool
) -> Source:
    """The source of these images: decoded now where they are `small` indeed, else on access.

    Raises:
      UserError: of small ones one cannot be decoded, or, where bad ones are skipped, most cannot.
    """
    decoded = _decode_all(images, skip) if small else None
    if decoded is None:
        return Source(images, class_names=class_names, skip_bad=skip)
    pixels, labels, good = decoded
    if not pixels:
        raise all_bad(images)
    num_bad = len(images) - len(good)
    if 2 * num_bad > len(images):
        missing = sorted(set(range(len(images))) - set(good))
        raise UserError(
            f"{num_bad} of the {len(images)} images cannot be decoded; {images.name(missing[0])} "
            "is one. data.on_bad_image=skip is meant for single ones: see to the files."
        )
    has_labels = (
        images.has_labels if isinstance(images, RecordImages) else images.labels is not None
    )
    paths = images.paths
    return in_memory(
        pixels,
        np.array(labels, np.int32) if has_labels else None,
        class_names,
        paths=None if paths is None else tuple(paths[index] for index in good),
        num_bad=num_bad,
    )


def _decode_all(
    images: FolderImages | RecordImages, skip: bool
) -> tuple[list[np.ndarray], list[int], list[int]] | None:
    """All images, their labels and the indices of the good ones; None where one is not small."""

    def read(index: int) -> tuple[np.ndarray, int] | None:
        try:
            return images.read(index)
        except BadImageError as error:
            if skip:
                return None
            raise bad_image(images.name(index), error) from error

    pixels, labels, good = [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
        for start in range(0, len(images), 1024):  # an error need not wait for all the others
            chunk = range(start, min(start + 1024, len(images)))
            for index, decoded in zip(chunk, pool.map(read, chunk), strict=True):
                if decoded is None:
                    continue
                if max(decoded[0].shape[:2]) > HELD_SIDE:
                    return None
                pixels.append(decoded[0])
                labels.append(decoded[1])
                good.append(index)
    return pixels, labels, good

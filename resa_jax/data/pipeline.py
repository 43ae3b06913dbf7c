"""Batches on the host: batch i is a pure function of (seed, i), whoever computes it.

The host only decodes, in threads, since decoding releases Python's lock. grain reads ahead; neither
that nor the number of threads changes what a batch holds.
"""

import math
import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, UInt

from resa_jax.data.check import check_batch_size
from resa_jax.data.images import MemoryImages
from resa_jax.data.sources import Source
from resa_jax.errors import UserError


Batch = dict[str, Any]  # arrays by name, as `BatchReader` says, and the count `num_bad`
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Two batches at a time, so that no thread idles while the last image of one is decoded.
_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """An epoch's steps: what is left over after the last full batch waits for another epoch."""
    return num_images // batch_size


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    workers: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchIterator":
    """The training batches of steps `start_step` to `num_steps` - 1, reshuffled in each epoch.

    Args:
      batch_size: of the global batch. This process gets its `batch_size // process_count` rows.
      workers: threads that decode; None or 0: as many as `usable_cores`.

    Raises:
      UserError: the batch exceeds the source or does not divide among the processes.
    """
    check_batch_size(batch_size, len(source), "the source")
    threads = workers or usable_cores()
    reader = BatchReader(
        source, batch_size, num_steps, seed, process_index, process_count, threads=threads
    )
    return BatchIterator(grain.MapDataset.source(reader)[start_step:].to_iter_dataset(_AHEAD))


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    rows: Int[np.ndarray, "n"] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchIterator":
    """The source once, in order; the last batch is filled up with rows of index -1.

    Such rows are black images of the canvas's size with label -1. Each process gets its rows of
    each global batch, as in `batches`.

    Args:
      rows: positions in the source, to visit only these, in this order.
    """
    rows = np.arange(len(source)) if rows is None else rows
    num_steps = -(-len(rows) // batch_size)
    reader = BatchReader(
        source, batch_size, num_steps, rows, process_index, process_count, threads=usable_cores()
    )
    return BatchIterator(grain.MapDataset.source(reader).to_iter_dataset(_AHEAD))


def usable_cores() -> int:
    """How many cores this process may use: by its affinity, and by its control group's quota."""
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    quota, period = _QUOTA.read_text().split() if _QUOTA.is_file() else ("max", "1")
    return cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))


class BatchReader:
    """One process's part of every batch, by the step: a random-access source for grain.

    A batch is a dict of, with b rows and the source's canvas [h, w, c],
      images: uint8 or uint16 [b, h, w, c], each image in the top-left corner, zeros elsewhere
      sizes: int32 [b, 3], heights and widths as the images lie there, and 1 where an image lies
        turned (transposed), since the canvas has room for it in no other way, else 0
      labels: int32 [b], -1 where there is none
      indices: int32 [b], positions in the source, -1 in rows without an image
      num_bad: int, images that could not be decoded and were replaced by the next good one.

    With a seed as `order`, an epoch is a permutation of the source, cut into full batches; with an
    array of positions the batches follow it, once.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        num_steps: int,
        order: int | Int[np.ndarray, "n"],
        process_index: int,
        process_count: int,
        threads: int,
    ):
        if batch_size % process_count:
            raise UserError(
                f"batch_size={batch_size} must be divisible by the {process_count} processes."
            )
        self._source = source
        self._batch_size = batch_size
        self._num_steps = num_steps
        self._order = order
        rows = batch_size // process_count
        self._rows = slice(process_index * rows, (process_index + 1) * rows)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._canvases = Canvases((rows, *source.canvas), source.dtype)
        self._permutation: tuple[int, np.ndarray] | None = None  # of the latest epoch

    def __len__(self) -> int:
        return self._num_steps

    def __repr__(self) -> str:  # grain prints it; the default would print an address
        return f"BatchReader({len(self._source)} images, {self._num_steps} steps)"

    def __getitem__(self, step: int) -> Batch:
        indices = self._global_indices(step)[self._rows]
        if self._source.in_memory:
            return self._gather(indices)
        return self._decode(indices)

    def _global_indices(self, step: int) -> Int[np.ndarray, "batch"]:
        if isinstance(self._order, np.ndarray):
            indices = self._order[step * self._batch_size : (step + 1) * self._batch_size]
            return np.pad(indices, (0, self._batch_size - len(indices)), constant_values=-1)
        per_epoch = steps_per_epoch(len(self._source), self._batch_size)
        epoch, batch = divmod(step, per_epoch)
        latest = self._permutation  # read once: another thread may replace it
        if latest is None or latest[0] != epoch:
            generator = np.random.default_rng((self._order, epoch))
            latest = epoch, generator.permutation(len(self._source))
            self._permutation = latest
        return latest[1][batch * self._batch_size : (batch + 1) * self._batch_size]

    def _gather(self, indices: np.ndarray) -> Batch:
        memory = self._source.images
        assert isinstance(memory, MemoryImages)
        there = indices >= 0
        images, sizes = memory.pixels[indices], np.zeros((len(indices), 3), np.int32)
        sizes[:, :2] = memory.sizes[indices]
        images[~there], sizes[~there, :2] = 0, self._source.canvas[:2]
        labels = np.full(len(indices), -1, np.int32)
        if memory.labels is not None:
            labels[there] = memory.labels[indices[there]]
        return _batch(images, sizes, labels, indices, 0)

    def _decode(self, indices: np.ndarray) -> Batch:
        room = self._source.canvas[:2]
        images, used_before = self._canvases.take()
        sizes = np.tile(np.array([*room, 0], np.int32), (len(indices), 1))
        labels, used = np.full(len(indices), -1, np.int32), np.full(len(indices), -1, np.int32)

        def load(row: int) -> int:
            old_height, old_width = used_before[row]
            if indices[row] < 0:
                images[row, :old_height, :old_width] = used_before[row] = 0
                return 0
            image, labels[row], used[row], num_bad = self._source.load(int(indices[row]))
            turned = image.shape[0] > room[0]
            pixels, canvas = _whole_pixels(image), _whole_pixels(images[row])
            if turned:
                pixels = pixels.T
            height, width = pixels.shape
            sizes[row] = height, width, turned
            canvas[:height, :width] = pixels
            images[row, :height, width:old_width] = 0
            images[row, height:old_height, :old_width] = 0
            used_before[row] = height, width
            return num_bad

        num_bad = sum(self._pool.map(load, range(len(indices))))
        return _batch(images, sizes, labels, used, num_bad)


def _whole_pixels(image: UInt[np.ndarray, "h w c"]) -> np.ndarray:
    """The same memory, each pixel one element [h, w]: to turn it so takes half the time."""
    pixel = np.dtype((np.void, image.shape[2] * image.itemsize))
    return np.ascontiguousarray(image).view(pixel)[..., 0]


def _batch(
    images: np.ndarray, sizes: np.ndarray, labels: np.ndarray, indices: np.ndarray, num_bad: int
) -> Batch:
    return {
        "images": images,
        "sizes": sizes,
        "labels": labels,
        "indices": indices.astype(np.int32),
        "num_bad": num_bad,
    }


class Canvases:
    """Memory for a batch's images, used again once nothing refers to the array that had it.

    Fresh memory costs more than the copying: the system hands it out page by page.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._free: list[tuple[bytearray, np.ndarray]] = []

    def take(self) -> tuple[UInt[np.ndarray, "b h w c"], Int[np.ndarray, "b 2"]]:
        """An array, and how much of each row's canvas, from the top left, may be other than 0.

        The second is to be kept up to date.
        """
        try:
            memory, used = self._free.pop()
        except IndexError:
            memory = bytearray(math.prod(self._shape) * self._dtype.itemsize)
            used = np.zeros((self._shape[0], 2), np.int64)
        # Views of the array refer to its base, an array too, and not to the memory below.
        array = np.frombuffer(memory, self._dtype).reshape(self._shape)
        weakref.finalize(array.base, self._free.append, (memory, used))
        return array, used


class BatchIterator:
    """Iterates over batches; `close`, or leaving the `with` block, ends the reading ahead."""

    def __init__(self, stream: grain.IterDataset):
        self._iterator: grain.DatasetIterator | None = iter(stream)
        self._iterator.start_prefetch()  # batches are made while the caller compiles its step

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        return next(self._iterator)

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

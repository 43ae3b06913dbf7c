"""Batches on the host: batch i is a pure function of (seed, i), whoever computes it.

The host only decodes. grain reads ahead, in a thread, or in worker processes where images are
decoded on access; neither changes what a batch holds.
"""

import gc
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray
from jaxtyping import Int

from resa_jax.data.check import check_batch_size
from resa_jax.data.images import MemoryImages
from resa_jax.data.sources import Source
from resa_jax.errors import UserError


Batch = dict[str, Any]  # arrays by name, as `BatchReader` says, and the count `num_bad`


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
    workers: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchIterator":
    """The training batches of steps `start_step` to `num_steps` - 1, reshuffled in each epoch.

    Args:
      batch_size: of the global batch. This process gets its `batch_size // process_count` rows.
      workers: processes that decode, each of them whole batches. 0 decodes in threads of this
        process. Sources in memory use no worker.

    Raises:
      UserError: the batch exceeds the source or does not divide among the processes, or the shared
        memory cannot hold the workers' batches.
    """
    check_batch_size(batch_size, len(source), "the source")
    workers = 0 if source.in_memory else workers
    threads = max(1, (os.cpu_count() or 1) // max(1, workers))
    reader = BatchReader(
        source, batch_size, num_steps, seed, process_index, process_count, threads=threads
    )
    dataset = grain.MapDataset.source(reader)[start_step:]
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1 if workers else 2)
    stream = dataset.to_iter_dataset(ahead)
    if workers and len(dataset):
        workers = min(workers, len(dataset))
        _refuse_small_shared_memory(workers, reader.num_bytes)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its flags, also where no command parsed any
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_start_worker
        )
        stream = stream.map(_out_of_shared_memory)
        stream = grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=1)
    return BatchIterator(stream, has_workers=workers > 0)


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
    threads = os.cpu_count() or 1
    reader = BatchReader(
        source, batch_size, num_steps, rows, process_index, process_count, threads=threads
    )
    dataset = grain.MapDataset.source(reader)
    return BatchIterator(
        dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    )


class BatchReader:
    """One process's part of every batch, by the step: a random-access source for grain.

    A batch is a dict of, with b rows and the source's canvas c,
      images: uint8 [b, c, c, 3], each image in the top-left corner, zeros elsewhere
      sizes: int32 [b, 2], heights and widths
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
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._permutation: tuple[int, np.ndarray] | None = None  # of the latest epoch

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_permutation": None}

    def __len__(self) -> int:
        return self._num_steps

    def __repr__(self) -> str:  # grain prints it; the default would print an address
        return f"BatchReader({len(self._source)} images, {self._num_steps} steps)"

    @property
    def num_bytes(self) -> int:
        """The size of one batch's images."""
        return (self._rows.stop - self._rows.start) * self._source.canvas**2 * 3

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
        images, sizes = memory.pixels[indices], memory.sizes[indices]
        images[~there], sizes[~there] = 0, self._source.canvas
        labels = np.full(len(indices), -1, np.int32)
        if memory.labels is not None:
            labels[there] = memory.labels[indices[there]]
        return _batch(images, sizes, labels, indices, 0)

    def _decode(self, indices: np.ndarray) -> Batch:
        canvas = self._source.canvas
        images = np.zeros((len(indices), canvas, canvas, 3), np.uint8)
        sizes = np.full((len(indices), 2), canvas, np.int32)
        labels, used = np.full(len(indices), -1, np.int32), np.full(len(indices), -1, np.int32)

        def load(row: int) -> int:
            if indices[row] < 0:
                return 0
            image, labels[row], used[row], num_bad = self._source.load(int(indices[row]))
            height, width = sizes[row] = image.shape[:2]
            images[row, :height, :width] = image
            return num_bad

        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        num_bad = sum(self._pool.map(load, range(len(indices))))
        return _batch(images, sizes, labels, used, num_bad)


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


def _start_worker(index: int, count: int) -> None:
    """In a worker: Ctrl-C reaches all processes of a terminal, and the main one decides.

    When that one is killed, the worker ends too, and with the last of them their shared memory.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _out_of_shared_memory(batch: Batch) -> Batch:
    """Copies a worker's batch and gives its memory back at once.

    grain does that when the arrays are freed, which the last ones of each worker never are.
    """
    copy = {}
    for name, value in batch.items():
        copy[name] = np.array(value) if isinstance(value, np.ndarray) else value
        if isinstance(value, SharedMemoryArray):
            value.metadata.close_and_unlink_shm()
            value._unlink_on_del = False
    return copy


class BatchIterator:
    """Iterates over batches; `close`, or leaving the `with` block, ends the workers."""

    def __init__(self, stream: grain.IterDataset, has_workers: bool = False):
        self._has_workers = has_workers
        self._iterator: grain.DatasetIterator | None = iter(stream)
        self._iterator.start_prefetch()  # workers start while the caller compiles its step

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):  # grain has no type for it
                raise
            code = re.search(r"exit code (-?\d+)", str(error))
            raise UserError(
                f"A process that decodes images has died (exit code {code[1] if code else '?'}; -9 "
                "is mostly the system's answer to a lack of memory). Take fewer data.workers, or a "
                "machine with more memory. The same command goes on after the last checkpoint."
            ) from error

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            if self._has_workers:
                # The workers' queues lie in reference cycles. Collected at some later time, in the
                # middle of other multiprocessing calls, their semaphores could leak (Python 3.12).
                gc.collect()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _refuse_small_shared_memory(workers: int, batch_bytes: int) -> None:
    """grain hands batches over in shared memory, and a process that fills that up is killed."""
    if not os.path.isdir("/dev/shm"):
        return
    status = os.statvfs("/dev/shm")
    free = status.f_bavail * status.f_frsize
    needed = 3 * workers * batch_bytes  # made, waiting, and in use
    if needed > free:
        raise UserError(
            f"data.workers={workers} needs about {needed / 2**30:.1f} GiB of shared memory for its "
            f"batches, and /dev/shm has {free / 2**30:.1f} GiB free. Enlarge it (docker run "
            "--shm-size), or take fewer workers; data.workers=0 decodes in threads and needs none."
        )

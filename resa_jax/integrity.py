"""Whether saved arrays are whole: checksums, and one error for all that damage can look like."""

import asyncio
import gc
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from resa_jax.errors import UserError
from resa_jax.paths import AnyPath


_PATIENCE_SECONDS = 10


class DamagedError(UserError):
    """Saved arrays that cannot be read, or that are others than were saved."""


def checksums(tree: dict) -> dict[str, int]:
    """A number for each array of a tree, by its path: the sum of its bits as 32-bit words.

    It depends neither on the devices that hold an array nor on how it is cut into shards, and any
    change of one element changes it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    arrays = [leaf for _, leaf in leaves]
    if all(isinstance(array, np.ndarray) for array in arrays):
        whole = map(np.ascontiguousarray, arrays)
        sums = [int(_words(np, array).sum(dtype=np.uint32)) for array in whole]
    else:
        sums = np.asarray(_device_sums(arrays)).tolist()
    return dict(zip(names, sums, strict=True))


@jax.jit
def _device_sums(arrays):
    return jnp.stack([_words(jnp, array).sum(dtype=jnp.uint32) for array in arrays])


def _words(module, array):
    width = min(array.dtype.itemsize, 4)
    return module.atleast_1d(array).view(f"uint{8 * width}")


@contextmanager
def naming_damage(path: AnyPath) -> Iterator[None]:
    """Turns what damaged files make others raise, which is almost anything, into one error."""
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise DamagedError(f"{path} is damaged: {reason(error)}.") from error


@contextmanager
def reading_arrays(path: AnyPath) -> Iterator[None]:
    """`naming_damage` for what Orbax reads, of which nothing else is heard."""
    with _silence():
        try:
            with naming_damage(path):
                yield
        except DamagedError as error:
            sentence = str(error)
            _await_abandoned_reads(error)
            raise DamagedError(sentence) from None


@contextmanager
def _silence():
    """Orbax logs what it then raises, and its other reads complain that nobody waited for them.

    They do it from threads, of which some are not Python's, and from the collector.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "concurrent.futures")]
    were_disabled = [log.disabled for log in loggers]
    hooks = sys.excepthook, sys.unraisablehook
    for log in loggers:
        log.disabled = True
    sys.excepthook = lambda *_: None
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        for log, was_disabled in zip(loggers, were_disabled, strict=True):
            log.disabled = was_disabled


def _await_abandoned_reads(error):
    """Until none is left of the reads whose event loop Orbax closed when one of them failed."""
    _clear_frames(error)
    end = time.monotonic() + _PATIENCE_SECONDS
    while _are_abandoned_tasks() and time.monotonic() < end:
        time.sleep(0.02)


def _are_abandoned_tasks():
    gc.collect()
    tasks = (thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task))
    return any(task.get_loop().is_closed() for task in tasks)


def _clear_frames(error):
    """Lets go of what the error and those that led to it hold by their tracebacks."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """The first line of what began it, shortened."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    lines = str(error).strip().splitlines()
    return (lines[0][:200] if lines else type(error).__name__).rstrip(".")

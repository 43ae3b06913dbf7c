"""Whether saved arrays are whole: checksums, and one error for all that damage can look like."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from resa_jax.errors import UserError
from resa_jax.paths import AnyPath


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
    """Turns what Orbax raises for damaged files, which is almost anything, into one error."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)  # Orbax logs what it then raises
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise DamagedError(f"{path} is damaged: {reason(error)}.") from error
    finally:
        log.setLevel(level)


def reason(error: BaseException) -> str:
    """The first line of what began it, shortened."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    lines = str(error).strip().splitlines()
    return (lines[0][:200] if lines else type(error).__name__).rstrip(".")

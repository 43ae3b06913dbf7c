"""The disk under a run: room for its checkpoints, and a sentence when it is full or fails."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, is_remote
from resa_jax.workdir import checkpoint_paths


_FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_LOG = logging.getLogger("resa_jax")


def check_disk(workdir: AnyPath, state: Any, keep: int) -> None:
    """Refuses a run whose next checkpoint has no room, and warns where the ones to keep have none.

    Args:
      state: the train state or its shapes; a checkpoint is about as large.
      keep: how many checkpoints stay; while one is written there is one more.

    Raises:
      UserError: with how much is free and how much is needed.
    """
    if is_remote(workdir):
        return
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(workdir).free
    if free < size:
        raise UserError(
            f"--workdir={workdir} has {_size(free)} free, and a checkpoint takes "
            f"{_size(size)}. Make room, or give a folder on another disk."
        )
    needed = size * (keep + 1 - len(checkpoint_paths(workdir)))
    if free < needed:
        _LOG.warning(
            "Warning: %s has %s free, and the checkpoints to come take %s (config.checkpoint.keep "
            "is %d).",
            workdir,
            _size(free),
            _size(needed),
            keep,
        )


@contextmanager
def disk_faults_explained(workdir: str | os.PathLike) -> Iterator[None]:
    """Turns a write to a full or failing disk in the body into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_OR_BROKEN:
            raise
        raise UserError(
            f"{error.filename or workdir} could not be written: {error.strerror}. Make room, or "
            "see to the disk, and start the same command again: it goes on after the last "
            "checkpoint."
        ) from error


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"

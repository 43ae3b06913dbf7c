"""The folder of a run: who may use it, and what it says when it is done. Imports nothing heavy."""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ml_collections import ConfigDict

from resa_jax.config import fields, fields_known, from_json, read_config_file, to_json
from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, as_path, is_committed, is_remote, write_whole


METRICS = "metrics.jsonl"
_FILES = ("config.json", METRICS)
_FOLDERS = ("checkpoints", "encoder", "evaluation", "tensorboard")
_LOCK = ".lock"

_LOG = logging.getLogger("resa_jax")


def claim_workdir(
    workdir: str | os.PathLike, config: ConfigDict, *, write: bool = True, extend: bool = False
) -> AnyPath:
    """Makes sure that a run of `config` may use the folder, and writes config.json there.

    A folder with a run of another configuration is refused; fields that leave the mathematics alone
    may differ.

    Args:
      workdir: the folder; made when it does not exist.
      config: the resolved configuration.
      write: False only checks, that the folder can be written too.
      extend: the run may become longer.

    Raises:
      UserError: the folder holds another run, or cannot be written.
    """
    workdir = as_path(workdir, "--workdir=")
    path = workdir / "config.json"
    with _usable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        _refuse_wrong_kinds(workdir)
        if path.exists():
            _refuse_other_run(workdir, read_config_file(path), config, extend)
        if write:
            write_whole(path, to_json(config))
        else:
            trial = workdir / f".{socket.gethostname()}.{os.getpid()}.tmp"
            trial.write_text("")
            trial.unlink()
    return workdir


@contextmanager
def locked(workdir: str | os.PathLike) -> Iterator[None]:
    """Keeps a second run out of the folder; the lock ends with the process, however that ends.

    There are no locks in buckets. Elsewhere they hold for all processes that see the folder, as far
    as its file system knows locks.

    Raises:
      UserError: another run has it.
    """
    workdir = as_path(workdir, "--workdir=")
    if is_remote(workdir):
        yield
        return
    with _usable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / _LOCK).open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f"--workdir={workdir} is in use by another run ({file.read().strip()}). Wait "
                    "until it ends, stop it, or give another folder."
                ) from error
            _LOG.warning(
                "Warning: %s cannot be locked (%s); start no second run there.",
                workdir,
                error.strerror,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextmanager
def _usable(workdir):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be used: {error.strerror} ({error.filename}). "
            "Give a folder that can be written."
        ) from error


def _refuse_wrong_kinds(workdir):
    for names, is_kind, kind in (
        (_FILES, lambda path: path.is_file(), "file"),
        (_FOLDERS, lambda path: path.is_dir(), "folder"),
    ):
        for path in (workdir / name for name in names):
            there = path.exists() or (not is_remote(path) and path.is_symlink())
            if there and not is_kind(path):
                raise UserError(
                    f"{path} is no {kind}, where a run keeps one. Move it away, or give another "
                    "--workdir."
                )
            # In a bucket, writing is tried where it is done.
            if path.exists() and not is_remote(path) and not os.access(path, os.R_OK | os.W_OK):
                raise UserError(f"{path} cannot be read and written. Change its permissions.")


def read_records(path: AnyPath) -> tuple[dict[bytes, dict], list[int]]:
    """The records of a metrics.jsonl, by their lines as they stand there.

    Returns:
      The records, in order, and the numbers (from 1) of the lines that are none. The rest of a line
      that a killed run left is neither.
    """
    records, faults = {}, []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last end was cut off
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            faults.append(number)
        else:
            records[line] = record
    return records, faults


def _record(line: bytes) -> dict | None:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    numbers = (record.get("epoch"), *record.values())
    return record if all(isinstance(number, int | float) for number in numbers) else None


def checkpoint_paths(workdir: AnyPath) -> list[AnyPath]:
    """The folders of a run's checkpoints, in the order of their steps."""
    paths = [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    return sorted(filter(is_committed, paths), key=lambda path: int(path.name))


def _refuse_other_run(workdir, old, new, extend):
    known, longer = fields_known(new), ("epochs", "steps")
    free = {"start_step"} | set(longer if extend else ())  # which the run's own is taken for
    old = dict(fields(from_json(to_json(old))))
    for field, after in fields(from_json(to_json(new))):
        before = old.get(field)
        if before == after or known[field].resumable or after == "auto" or field in free:
            continue
        longer_hint = ", or --extend to go on for longer" if field in longer else ""
        raise UserError(
            f"--workdir={workdir} holds a run with {field} = {before}, not {after}. Use another "
            f"folder, or the same value to go on with that run{longer_hint}."
        )

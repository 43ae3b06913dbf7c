"""Files and folders by name: on this machine, or in a bucket (gs://BUCKET/NAME, s3://BUCKET/NAME).

A bucket's paths are `etils.epath`'s, which have pathlib's methods. What a bucket cannot do stays
here: an object appears whole when it is closed, is never appended to, and folders do not exist.
"""

import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from etils import epath

from resa_jax.errors import UserError


AnyPath: TypeAlias = Path | epath.Path

# What reads and writes each kind of bucket, and how it is installed.
_BACKENDS = {"gs": ("gcsfs", "pip install 'resa_jax[gcs]'"), "s3": ("s3fs", "pip install s3fs")}
_MIRROR_SECONDS = 60.0
_COMMITTED = "commit_success.txt"  # Orbax writes it last where a folder cannot be renamed


def as_path(name: str | os.PathLike, what: str = "the path ") -> AnyPath:
    """The path that a name stands for.

    Args:
      name: of a file or folder; with a scheme, as gs://BUCKET/NAME, in a bucket.
      what: how messages call it, as "--workdir=".

    Raises:
      UserError: for no name at all, for another scheme, and for one whose package is not installed.
    """
    name = os.fspath(name)
    if not name.strip() or "\0" in name:
        raise UserError(
            f"{what}{name!r} names no file or folder; is a variable of the shell unset?"
        )
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", name)
    if scheme is None:
        return Path(name)
    if not re.match(r"[a-z0-9]+://[^/]", name) or scheme[1] not in _BACKENDS:
        raise UserError(
            f"{what}{name} cannot be read or written: give a path of this machine, or "
            f"{' or '.join(f'{known}://BUCKET/NAME' for known in _BACKENDS)}."
        )
    module, install = _BACKENDS[scheme[1]]
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what}{name} needs the package {module}: {install}")
    # Etils would take TensorFlow where it is installed; and other processes write there too, so
    # that what a folder held a moment ago may not be remembered.
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec

    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return epath.Path(name)


def is_remote(path: AnyPath) -> bool:
    """Whether a path lies in a bucket."""
    return "://" in str(path)


def absolute(path: AnyPath) -> AnyPath:
    """The path from the root on; one in a bucket is."""
    return path if is_remote(path) else path.absolute()


def is_committed(checkpoint: AnyPath) -> bool:
    """Whether a checkpoint's folder is whole: in a bucket it is there from its first object on."""
    return not is_remote(checkpoint) or (checkpoint / _COMMITTED).exists()


def remove_tree(path: AnyPath) -> None:
    """Removes a folder with all that is in it, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        epath.Path(path).rmtree()


def read_text(path: AnyPath) -> str:
    """A text in UTF-8, whatever the locale.

    Raises:
      UserError: the file is not in UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is damaged: byte {error.start} is not of a text in UTF-8. Restore it from a "
            "copy."
        ) from error


def read_json(path: AnyPath) -> dict:
    """The JSON object in a file.

    Raises:
      UserError: the file holds anything else.
    """
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). Restore it from a copy.") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds {type(value).__name__} {str(value)[:40]!r}, not a JSON object. Restore "
            "it from a copy."
        )
    return value


def write_whole(path: AnyPath, text: str) -> None:
    """Writes a text so that a reader finds the old one or the new one, never a part."""
    if is_remote(path):
        path.write_bytes(text.encode("utf-8"))
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@contextmanager
def local_input(path: AnyPath) -> Iterator[AnyPath]:
    """The file or folder itself, or a copy on this machine of one in a bucket."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        _download(path, local)
        yield local


@contextmanager
def local_output(path: AnyPath) -> Iterator[AnyPath]:
    """Where to write what is to lie at `path`, and files beside it; sent to a bucket at the end."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name
        _upload(Path(folder), path.parent)


def _download(path, local):
    if path.is_dir():
        local.mkdir()
        for child in path.iterdir():
            _download(child, local / child.name)
    elif path.exists():
        local.write_bytes(path.read_bytes())


def _upload(folder, target):
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        (target / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


class Mirror:
    """The folder for files that grow as a run goes on: the run's own, or one sent to its bucket.

    Attributes:
      folder: where to write.
    """

    def __init__(self, target: AnyPath):
        """`target` is the run's folder."""
        self._target, self._remote = target, is_remote(target)
        self._last = time.monotonic()
        self._sent: dict[AnyPath, tuple[int, int]] = {}
        self._temporary = tempfile.TemporaryDirectory() if self._remote else None
        self.folder = Path(self._temporary.name) if self._temporary else target

    def fetch(self, name: str) -> None:
        """Brings a file here that an earlier run left in the bucket."""
        if self._remote:
            _download(self._target / name, self.folder / name)

    def show(self, now: bool = False) -> None:
        """Sends the files that changed: `now`, or when the last time is a minute ago."""
        if not self._remote or not (now or time.monotonic() - self._last >= _MIRROR_SECONDS):
            return
        for file in sorted(file for file in self.folder.rglob("*") if file.is_file()):
            state = file.stat().st_size, file.stat().st_mtime_ns
            if self._sent.get(file) != state:
                (self._target / file.relative_to(self.folder).as_posix()).write_bytes(
                    file.read_bytes()
                )
                self._sent[file] = state
        self._last = time.monotonic()

    def close(self) -> None:
        """Sends what is left and removes the folder here, if it is not the run's own."""
        self.show(now=True)
        if self._temporary:
            self._temporary.cleanup()

"""The folder of a run: who may use it, and what it says when it is done. Imports nothing heavy."""

import json
import os
import socket

from ml_collections import ConfigDict

from resa_jax.config import fields, fields_known, from_json, to_json
from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, as_path, is_committed, write_whole


def claim_workdir(workdir: str | os.PathLike, config: ConfigDict, *, write: bool = True) -> AnyPath:
    """Makes sure that a run of `config` may use the folder, and writes config.json there.

    A folder with a run of another configuration is refused; fields that leave the mathematics alone
    may differ.

    Args:
      workdir: the folder; made when it does not exist.
      config: the resolved configuration.
      write: False only checks, that the folder can be written too.

    Raises:
      UserError: the folder holds another run, or cannot be written.
    """
    workdir = as_path(workdir, "--workdir=")
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _refuse_other_run(workdir, from_json(path.read_text()), config)
        if write:
            write_whole(path, to_json(config))
        else:
            trial = workdir / f".{socket.gethostname()}.{os.getpid()}.tmp"
            trial.write_text("")
            trial.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be used: {error.strerror} ({error.filename}). "
            "Give a folder that can be written."
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); restore it or use another folder."
        ) from error
    return workdir


def checkpoint_paths(workdir: AnyPath) -> list[AnyPath]:
    """The folders of a run's checkpoints, in the order of their steps."""
    paths = [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    return sorted(filter(is_committed, paths), key=lambda path: int(path.name))


def is_finished(workdir: AnyPath, total_steps: int) -> bool:
    """Whether the run in `workdir` has left its encoder."""
    path = workdir / "encoder" / "encoder.json"
    return path.is_file() and json.loads(path.read_text())["step"] == total_steps


def _refuse_other_run(workdir, old, new):
    known = fields_known(new)
    old = dict(fields(from_json(to_json(old))))
    for field, after in fields(from_json(to_json(new))):
        before = old.get(field)
        if before == after or known[field].resumable or after == "auto":
            continue
        raise UserError(
            f"--workdir={workdir} holds a run with {field} = {before}, not {after}. Use another "
            "folder, or the same value to go on with that run."
        )

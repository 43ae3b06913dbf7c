"""The folder of a run: who may use it, and what it says when it is done. Imports nothing heavy."""

import json
import os
import socket
from pathlib import Path

from ml_collections import ConfigDict

from resa_jax.config import fields, fields_known, from_json, to_json
from resa_jax.errors import UserError


def claim_workdir(workdir: str | Path, config: ConfigDict, *, write: bool = True) -> Path:
    """Makes sure that a run of `config` may use the folder, and writes config.json there.

    A folder with a run of another configuration is refused; fields that leave the mathematics alone
    may differ.

    Args:
      workdir: the folder; made when it does not exist.
      config: the resolved configuration.
      write: False only checks.

    Raises:
      UserError: the folder holds another run, or cannot be written.
    """
    workdir = Path(workdir)
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _refuse_other_run(workdir, from_json(path.read_text()), config)
        # All processes of a run write it; those on other hosts may have the same number.
        temporary = workdir / f"config.json.{socket.gethostname()}.{os.getpid()}"
        temporary.write_text(to_json(config))
        if write:
            os.replace(temporary, path)
        else:
            temporary.unlink()
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


def checkpoint_paths(workdir: Path) -> list[Path]:
    """The folders of a run's checkpoints, in the order of their steps."""
    paths = [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    return sorted(paths, key=lambda path: int(path.name))


def is_finished(workdir: Path, total_steps: int) -> bool:
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

"""A run's metrics.jsonl as a resumed run finds it: cut back to its checkpoint, its faults named."""

import itertools
import logging
import re
import shutil

from jax.experimental import multihost_utils

from resa_jax.paths import AnyPath
from resa_jax.workdir import METRICS, read_records


_LOG = logging.getLogger("resa_jax")


def truncate_records(path: AnyPath, step: int, log_every: int) -> None:
    """Keeps the records up to `step`; of a run that starts over none, step 0's neither."""
    if step > 0 and not path.exists():
        _LOG.warning("Warning: %s is missing, with the records up to step %d.", path, step)
    if not path.exists():
        return
    records, faults = read_records(path)
    _speak_of_torn_end(path, step)
    kept = [line for line, record in records.items() if 0 < step >= record["step"]]
    if faults:
        copy = path.with_name("metrics.damaged.jsonl")
        shutil.copyfile(path, copy)
        _LOG.warning(
            "Warning: %s They are left out; the file as it was is %s.",
            _faults_in_words(path, faults),
            copy.name,
        )
    if step > 0 and not kept:
        _LOG.warning("Warning: %s has no record up to step %d.", path, step)
    elif step > 0:
        steps = [records[line]["step"] for line in kept]
        usual = max([log_every, *(b - a for a, b in itertools.pairwise([0, *steps]))])
        if step - steps[-1] > usual:
            _say_lost(path, steps[-1], step)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(line + b"\n" for line in kept))
    temporary.replace(path)


def _speak_of_torn_end(path, step):
    """A kill leaves half a line of a step after the checkpoint; one of a step before is damage."""
    end = path.read_bytes().rpartition(b"\n")[2]
    number = re.match(rb'\{"step": (\d+),', end)
    if number and int(number[1]) <= step:
        _LOG.warning(
            "Warning: %s ends within a record of step %d, which is lost.", path, int(number[1])
        )


def _say_lost(path, last, step):
    _LOG.warning(
        "Warning: %s ends at step %d; its records up to step %d are lost.", path, last, step
    )


def _faults_in_words(path, faults):
    shown = ", ".join(map(str, faults[:5])) + (", ..." if len(faults) > 5 else "")
    return f"{path} is damaged: {len(faults)} of its lines are no records ({shown})."


def last_metrics(workdir: AnyPath, step: int = 0) -> dict[str, int | float]:
    """The last value of every metric that the run has recorded, up to `step` at least."""
    multihost_utils.sync_global_devices("metrics.jsonl")  # process 0 may be writing still
    metrics: dict[str, int | float] = {}
    path = workdir / METRICS
    records, faults = read_records(path) if path.exists() else ({}, [])
    if faults or not records:
        _LOG.warning(
            "Warning: %s", _faults_in_words(path, faults) if faults else f"{path} has no record."
        )
    for record in records.values():
        metrics |= record
    if records and step:
        _speak_of_torn_end(path, step)
    if records and metrics["step"] < step:
        _say_lost(path, metrics["step"], step)
    return metrics

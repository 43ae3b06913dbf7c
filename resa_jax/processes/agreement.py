"""Whether all processes of a run are about to do the same.

What differs would not fail: batches would overlap, schedules would drift apart, or a collective of
one process would wait for another's for ever.
"""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import resa_jax
from resa_jax.config import fields
from resa_jax.data.images import Source
from resa_jax.errors import UserError


_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def check_agreement(
    config: ConfigDict, workdir: str | os.PathLike, sources: dict[str, Source]
) -> None:
    """Refuses to start a training run when a process differs from process 0; see `check_alike`.

    Args:
      config: the resolved configuration.
      sources: by the field that names them, as "config.data.source".
    """
    facts = {f"config.{name}": repr(value) for name, value in fields(config)}
    # They may be measured on the images, whose names say better what differs.
    measured = {name: facts.pop(name) for name in ("config.data.mean", "config.data.std")}
    check_alike({"--workdir": str(workdir)} | facts, sources, measured)


def check_alike(
    facts: dict[str, str], sources: dict[str, Source], measured: dict[str, str] | None = None
) -> None:
    """Refuses to start when a process differs from process 0; all raise, within seconds.

    Compared are the facts, the versions and code of the packages, and the images of the sources by
    number, name and order, and their classes.

    Args:
      facts: values by what names them in a sentence, as "--workdir".
      sources: by the field or flag that names them.
      measured: facts to be compared last.

    Raises:
      UserError: names the first difference, and both values.
    """
    if jax.process_count() == 1:
        return
    facts = facts | {
        f"the version of {name}": importlib.metadata.version(name) for name in _PACKAGES
    }
    facts["the code of resa_jax"] = _code()
    for name, source in sources.items():
        facts[f"the classes of {name}"] = ", ".join(source.class_names)
    _compare(facts)
    for name, source in sources.items():
        _check_names(name, source)
    _compare(measured or {})


def _compare(facts):
    everyone = [json.loads(text) for text in _gather(json.dumps(facts))]
    for process, theirs in enumerate(everyone):
        for name in everyone[0] | theirs:
            ours, other = everyone[0].get(name), theirs.get(name)
            if ours != other:
                raise UserError(_difference(name, process, ours, other))


def _difference(what, process, value_of_0, value):
    return (
        f"The processes of the run differ: {what} is {value_of_0} on process 0 and {value} on "
        f"process {process}. Start all of them alike."
    )


def _check_names(field, source):
    """Finds the first image that differs by halving, so that no list of names has to travel."""
    names = source.paths or [source.images.name(index) for index in range(len(source))]
    lengths = [int(n) for n in _gather(str(len(names)))]
    if _alike(names):
        return
    low, high = 0, max(lengths)  # the first `low` names agree everywhere, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _alike(names[:middle]) else (low, middle)
    everyone = _gather(names[low] if low < len(names) else "missing")
    process = next(i for i, name in enumerate(everyone) if name != everyone[0])
    counts = f"of {lengths[0]} and {lengths[process]}"
    what = f"image {low} of {field} ({counts})"
    raise UserError(_difference(what, process, everyone[0], everyone[process]))


def _alike(names):
    digests = _gather(hashlib.sha256("\n".join(names).encode()).hexdigest())
    return len(set(digests)) == 1


def _gather(text: str) -> list[str]:
    """The text of every process."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:n]).decode() for row, n in zip(rows, lengths, strict=True)]


def _code():
    """A digest of the package's files."""
    root = Path(resa_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return f"{resa_jax.__version__} ({digest.hexdigest()[:12]})"

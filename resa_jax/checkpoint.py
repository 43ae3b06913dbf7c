"""Train states on disk: all that the project knows of Orbax."""

import importlib.metadata
import logging
import zlib
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

import resa_jax
from resa_jax.errors import UserError
from resa_jax.integrity import DamagedError, checksums, reading_arrays, reason
from resa_jax.paths import AnyPath, absolute, is_committed


# Raised when what a checkpoint holds changes. 1 (before version 0.2) had no `buffers`, and the
# fields of ReSA lay at the config's top level; it is read (`config.from_json` moves the fields).
FORMAT = 2

_LOG = logging.getLogger("resa_jax")
# What Orbax logs as an error, with tracebacks from its threads, it raises as well.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno < logging.ERROR or "/orbax/" not in record.pathname
)

# A train state: any dataclass of trees. This module knows none of the rooms that use it.
State = TypeVar("State")


class Checkpoints:
    """Writes the checkpoints of a run, `DIRECTORY/STEP/` each; to be used as a context manager.

    Saving is asynchronous and atomic: `save` returns when the state has been copied off the
    devices, and a step's folder appears only once it is whole. Leaving the context waits for it.
    """

    def __init__(self, directory: AnyPath, keep: int, config: str):
        """
        Args:
          directory: made when it does not exist.
          keep: how many of the latest checkpoints stay.
          config: the resolved configuration as JSON, stored with every checkpoint.
        """
        libraries = ("jax", "flax", "optax", "orbax-checkpoint")
        versions = {name: importlib.metadata.version(name) for name in libraries}
        self._metadata = {
            "format": FORMAT,
            "config": config,
            "config_checksum": zlib.crc32(config.encode()),
            "versions": versions | {"resa_jax": resa_jax.__version__},
            "processes": jax.process_count(),
        }
        self._directory = absolute(directory)
        self._saving: tuple[int, Any] | None = None
        self._failed = False
        # A replica writes its share of an array by a slice, a program compiled for every shape:
        # not worth it for what is small.
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
        # A folder that cannot be made would leave threads that wait for it for 20 minutes.
        context.async_options.create_directories_asynchronously = False
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            context=context,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        if kind is KeyboardInterrupt or self._failed:
            return  # at once: what is half written counts for nothing
        try:
            self.check(wait=True)
        except UserError as error:
            if kind is None:
                raise
            _LOG.warning("%s", error)  # beside what ended the run
        else:
            self._checkpointer.close()

    @property
    def latest_step(self) -> int:
        """The step of the newest whole checkpoint, 0 when there is none."""
        latest = self._checkpointer.latest
        return 0 if latest is None else latest.step

    def save(self, state: State, step: int) -> None:
        """Starts to save `state`, whose buffers may be donated as soon as this returns.

        Raises:
          UserError: as `check`, of the save before.
        """
        self.check(wait=True)
        latest = self._checkpointer.latest
        if latest is not None and step == latest.step:
            return
        metadata = self._metadata | {"checksums": checksums(vars(state))}
        with self._explained(step):
            response = self._checkpointer.save_checkpointables_async(
                step, {"state": vars(state)}, force=True, custom_metadata=metadata
            )
        self._saving = step, response

    def check(self, wait: bool = False) -> None:
        """Notices a save that failed, or was done, since the last look.

        Args:
          wait: for the save that is under way.

        Raises:
          UserError: it failed; the checkpoints before it are whole.
        """
        if self._saving is None:
            return
        step, response = self._saving
        with self._explained(step):
            try:
                response.result(timeout=None if wait else 0)
            except TimeoutError:
                return  # still being written
        self._saving = None

    @contextmanager
    def _explained(self, step):
        try:
            yield
        except TimeoutError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            self._saving, self._failed = None, True
            raise UserError(
                f"The checkpoint of step {step} could not be written to {self._directory}: "
                f"{reason(error)}. Make room, or see to the disk, and start the same command "
                f"again: it goes on after step {self.latest_step}."
            ) from error


def restore_newest(directory: AnyPath, abstract: State) -> tuple[int, State | None]:
    """The newest intact state below `directory` and its step; (0, None) where there is none.

    The state is placed as the shardings in `abstract` say; the number of devices and processes may
    differ from that of the run that saved it. Damaged checkpoints that are newer are named in a
    warning and renamed to `damaged-STEP`, out of the way.

    Raises:
      UserError: there are checkpoints, and all are damaged, or they are of a newer format.
    """
    damaged: dict[AnyPath, str] = {}
    for path in reversed(_paths(directory)):
        state, fault = None, ""
        try:
            state = _restore(path, abstract)
        except DamagedError as error:
            fault = str(error)
        if all(_from_all_processes(state is not None)):
            _set_aside(damaged)
            return int(path.name), state
        damaged[path] = fault or f"{path} is damaged, as another process found."
    if damaged:
        raise UserError(
            f"No checkpoint in {directory} is intact. {' '.join(damaged.values())} Restore one "
            "from a copy, or start anew with another --workdir."
        )
    return 0, None


def refuse_newer_format(directory: AnyPath) -> None:
    """Raises a `UserError` where a later version of this package saved the newest checkpoint."""
    for path in reversed(_paths(directory)):
        try:
            _read_metadata(path)
        except DamagedError:
            continue
        return


def _paths(directory):
    directory = absolute(directory)
    if not directory.is_dir():
        return []
    paths = [path for path in directory.iterdir() if path.name.isdigit() and is_committed(path)]
    return sorted(paths, key=lambda path: int(path.name))


def _restore(path, abstract):
    added: dict[str, dict] = (
        {} if _read_metadata(path).get("format", 1) == FORMAT else {"buffers": {}}
    )
    wanted = {name: tree for name, tree in vars(abstract).items() if name not in added}
    with reading_arrays(path):
        loaded = ocp.load_checkpointables(path, {"state": wanted})["state"]
    _compare(path, checksums(loaded))
    return type(abstract)(**loaded, **added)


def _from_all_processes(value: bool) -> list[bool]:
    return np.ravel(multihost_utils.process_allgather(np.array(value))).tolist()


def _set_aside(damaged):
    for path, fault in damaged.items():
        number, target = 1, path.with_name(f"damaged-{path.name}")
        while target.exists():
            number, target = number + 1, path.with_name(f"damaged-{path.name}.{number}")
        _LOG.warning("Warning: %s It is now %s, and the one before is taken.", fault, target.name)
        if jax.process_index() == 0:
            path.rename(target)
    multihost_utils.sync_global_devices("damaged checkpoints")


def read_subtree(path: AnyPath, *names: str) -> dict:
    """Parts of the checkpoint in the folder `path` as NumPy arrays, whatever devices saved it.

    Args:
      path: `DIR/checkpoints/STEP`.
      *names: paths into the train state, as "ema_params/encoder"; one that the state lacks is left
        out of the result.

    Returns:
      A dict from name to nested dict.
    """
    path = absolute(path)
    with reading_arrays(path):
        saved = ocp.checkpointables_metadata(path).metadata.get("state")
    if saved is None:
        raise UserError(f"{path} is no checkpoint of a train state.")
    wanted: dict[str, Any] = {}
    found = {}
    for name in names:
        keys = name.split("/")
        node = saved
        for key in keys:
            node = node.get(key, {})
        if not node:
            continue
        found[name] = keys
        target = wanted
        for key in keys[:-1]:
            target = target.setdefault(key, {})
        target[keys[-1]] = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), node)
    if not found:
        return {}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with reading_arrays(path), context:
        state = ocp.load_checkpointables(path, {"state": wanted})["state"]
    _compare(path, checksums(state))
    return {name: _lookup(state, keys) for name, keys in found.items()}


def read_config(path: AnyPath) -> str:
    """The configuration, as JSON, of the run that saved the checkpoint in the folder `path`."""
    return _read_metadata(path)["config"]


def _compare(path, found: dict[str, int]) -> None:
    saved = _read_metadata(path).get("checksums", {})  # checkpoints before version 0.2 have none
    for name, number in found.items():
        if saved.get(name, number) != number:
            raise DamagedError(
                f"{path} is damaged: {name} does not hold the numbers that were saved."
            )


def _read_metadata(path: AnyPath) -> dict:
    path = absolute(path)
    with reading_arrays(path):
        metadata = ocp.checkpointables_metadata(path).custom_metadata
        if not metadata or "config" not in metadata:
            raise ValueError("its _CHECKPOINT_METADATA cannot be read")
        found = metadata.get("format", 1)
        if found <= FORMAT:
            config = metadata["config"].encode()
            if metadata.get("config_checksum", zlib.crc32(config)) != zlib.crc32(config):
                raise ValueError("its configuration is not the one that was saved")
            return metadata
        version = metadata["versions"]["resa_jax"]
    raise UserError(
        f"{path} was saved by resa_jax {version}, in format {found}; this version "
        f"({resa_jax.__version__}) reads up to format {FORMAT}. Use that version."
    )


def _lookup(tree, keys):
    for key in keys:
        tree = tree[key]
    return tree

"""Train states on disk: all that the project knows of Orbax."""

import importlib.metadata
from typing import Any, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

import resa_jax
from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, absolute


# Raised when what a checkpoint holds changes. 1 (before version 0.2) had no `buffers`, and the
# fields of ReSA lay at the config's top level; it is read (`config.from_json` moves the fields).
FORMAT = 2

# A train state: any dataclass of trees. This module knows none of the rooms that use it.
State = TypeVar("State")


class Checkpoints:
    """The checkpoints of a run, `DIRECTORY/STEP/` each; to be used as a context manager.

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
            "versions": versions | {"resa_jax": resa_jax.__version__},
            "processes": jax.process_count(),
        }
        self._directory = absolute(directory)
        # A replica writes its share of an array by a slice, a program compiled for every shape:
        # not worth it for what is small.
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            context=context,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._checkpointer.close()

    @property
    def latest_step(self) -> int:
        """The step of the newest whole checkpoint, 0 when there is none."""
        latest = self._checkpointer.latest
        return 0 if latest is None else latest.step

    def save(self, state: State, step: int) -> None:
        """Starts to save `state`, whose buffers may be donated as soon as this returns."""
        if step != self.latest_step:
            self._checkpointer.save_checkpointables_async(
                step, {"state": vars(state)}, force=True, custom_metadata=self._metadata
            )

    def restore(self, step: int, abstract: State) -> State:
        """The state saved at `step`, placed as the shardings in `abstract` say.

        The number of devices and processes may differ from that of the run that saved it.
        """
        path = self._directory / str(step)
        added: dict[str, dict] = (
            {} if _read_metadata(path).get("format", 1) == FORMAT else {"buffers": {}}
        )
        wanted = {name: tree for name, tree in vars(abstract).items() if name not in added}
        loaded = self._checkpointer.load_checkpointables(step, {"state": wanted})
        return type(abstract)(**loaded["state"], **added)


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
    with context:
        state = ocp.load_checkpointables(path, {"state": wanted})["state"]
    return {name: _lookup(state, keys) for name, keys in found.items()}


def read_config(path: AnyPath) -> str:
    """The configuration, as JSON, of the run that saved the checkpoint in the folder `path`."""
    return _read_metadata(path)["config"]


def _read_metadata(path: AnyPath) -> dict:
    metadata = ocp.checkpointables_metadata(absolute(path)).custom_metadata
    if metadata.get("format", 1) > FORMAT:
        version = metadata["versions"]["resa_jax"]
        raise UserError(
            f"{path} was saved by resa_jax {version}, in format {metadata['format']}; this version "
            f"({resa_jax.__version__}) reads up to format {FORMAT}. Use that version."
        )
    return metadata


def _lookup(tree, keys):
    for key in keys:
        tree = tree[key]
    return tree

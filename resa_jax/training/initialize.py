"""Starting a run from weights that are there already."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resa_jax.errors import UserError
from resa_jax.models.positions import resize_positions
from resa_jax.models.spec import EncoderSpec
from resa_jax.models.vit import VITS
from resa_jax.paths import as_path
from resa_jax.training.step import TrainState
from resa_jax.weights.networks import read_networks


_LOG = logging.getLogger("resa_jax")


def initialize_from(config: ConfigDict, state: TrainState) -> TrainState:
    """Puts the weights of `config.init_from`, where given, into a new state.

    A full checkpoint of the authors' code fills all networks; an encoder goes into both.

    Args:
      config: a resolved recipe, whose `init_from` names weights of any format that
        `resa_jax.load_encoder` reads; None leaves the state.

    Raises:
      UserError: they are of another encoder, or hold layers that the recipe lacks.
    """
    path, recipe = config.init_from, EncoderSpec.from_config(config)
    if path is None:
        return state
    spec, networks = read_networks(as_path(path, "config.init_from="), arch=recipe.name)
    if spec.name != recipe.name:
        raise UserError(
            f"config.init_from={path} holds a {spec.name}, but config.encoder.name is "
            f"{recipe.name}."
        )
    fields = vars(state)
    for part in ("params", "ema_params"):
        if "encoder" in networks.get(part, {}):
            old = state.params["encoder"]
            new = networks[part]["encoder"]
            if "pos_embed" in new and spec.grid != recipe.grid:
                new = _with_positions(new, spec.grid, recipe.grid, VITS[recipe.name].smooth)
            networks[part] = networks[part] | {"encoder": _with_channels(new, old)}
    lacking = networks["params"].keys() - state.params.keys()
    if lacking:
        raise UserError(
            f"config.init_from={path} holds a {min(lacking)}, which the recipe's method lacks; set "
            f"config.method.{min(lacking)}=true, or convert its encoder alone."
        )
    changed = {
        part: fields[part]
        | {child: _like(fields[part][child], weights, path) for child, weights in children.items()}
        for part, children in networks.items()
        if fields[part]  # a recipe without a momentum network has empty EMA trees
    }
    return TrainState(**(fields | changed))


def _with_positions(
    weights: dict, old: tuple[int, int], new: tuple[int, int], smooth: bool
) -> dict:
    """Weights whose position table is made for another grid of patches."""
    _LOG.info("The position table of %d x %d patches is made one of %d x %d.", *old, *new)
    table = jnp.asarray(weights["pos_embed"])
    resized = resize_positions(table, *new, grid=old, smooth=smooth)
    return weights | {"pos_embed": np.asarray(resized)}


def _with_channels(new: dict, old: dict) -> dict:
    """Weights whose first layer takes as many channels as the recipe's images have.

    One channel gets the sum of all, so that a gray image gives what it gave in each of them. Others
    take theirs in turn, times how many there were over how many there are (as timm does it).
    """
    wanted = {keys: leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(old)}

    def adapt(keys, kernel):
        shape = wanted.get(keys, ())
        alike = len(shape) == 4 and (*shape[:2], shape[3]) == (*kernel.shape[:2], kernel.shape[3])
        if not alike or shape == kernel.shape:
            return kernel
        there, channels = kernel.shape[2], shape[2]
        _LOG.info("The first layer's weights of %d channels are adapted to %d.", there, channels)
        if channels == 1:
            return kernel.sum(axis=2, keepdims=True)
        return kernel[:, :, np.arange(channels) % there] * (there / channels)

    first = ("conv1", "patch_embed")
    adapted = {
        name: jax.tree_util.tree_map_with_path(
            lambda keys, leaf, name=name: adapt((jax.tree_util.DictKey(name), *keys), leaf),
            new[name],
        )
        for name in first
        if name in new
    }
    return new | adapted


def _like(old, new, path):
    def place(keys, old, new):
        if old.shape != np.shape(new):
            raise UserError(
                f"config.init_from={path}: {jax.tree_util.keystr(keys)} has the shape "
                f"{np.shape(new)}, but the recipe needs {old.shape}; set encoder.image_size, "
                "patch_size, width and depth, and method.hidden_size and output_size, as the "
                "weights have them."
            )
        return jax.device_put(jnp.array(new, old.dtype, copy=True), old.sharding)

    structures: list[Any] = [jax.tree.structure(tree) for tree in (old, new)]
    if structures[0] != structures[1]:
        raise UserError(f"config.init_from={path} holds other layers than the recipe's encoder.")
    return jax.tree_util.tree_map_with_path(place, old, new)

"""Starting a run from weights that are there already."""

import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resa_jax.errors import UserError
from resa_jax.models.positions import resize_positions
from resa_jax.models.vit import VITS, ViTSize
from resa_jax.paths import as_path
from resa_jax.training.step import TrainState
from resa_jax.weights.networks import read_networks


_LOG = logging.getLogger("resa_jax")


def initialize_from(path: str | None, state: TrainState, encoder: str) -> TrainState:
    """Puts the weights of `config.init_from`, where given, into a new state.

    A full checkpoint of the authors' code fills all networks; an encoder goes into both.

    Args:
      path: weights of any format that `resa_jax.load_encoder` reads; None leaves the state.
      encoder: the name of the recipe's encoder.

    Raises:
      UserError: they are of another encoder, or hold layers that the recipe lacks.
    """
    if path is None:
        return state
    spec, networks = read_networks(as_path(path, "config.init_from="), arch=encoder)
    if spec.name != encoder:
        raise UserError(
            f"config.init_from={path} holds a {spec.name}, but config.encoder.name is {encoder}."
        )
    fields = vars(state)
    for part in ("params", "ema_params"):
        if "encoder" in networks.get(part, {}):
            networks[part]["encoder"] = _with_positions(
                networks[part]["encoder"], state.params["encoder"], VITS.get(encoder)
            )
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


def _with_positions(new: dict, old: dict, size: ViTSize | None) -> dict:
    """Weights whose position table, where there is one, is made for the recipe's image size."""
    if size is None or "pos_embed" not in old or "pos_embed" not in new:
        return new
    table, patches = new["pos_embed"], old["pos_embed"].shape[1] - 1
    if table.shape[1] - 1 == patches:
        return new
    _LOG.info(
        "The position table of %d patches is made one of %d by interpolation.",
        table.shape[1] - 1,
        patches,
    )
    grid = math.isqrt(patches)
    resized = resize_positions(jnp.asarray(table), grid, grid, smooth=size.smooth)
    return new | {"pos_embed": np.asarray(resized)}


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

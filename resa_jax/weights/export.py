"""An encoder's export: a folder with its weights and a description of what they are."""

import dataclasses
import json

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from resa_jax.errors import UserError
from resa_jax.integrity import DamagedError, checksums, naming_damage, reading_arrays
from resa_jax.models.spec import EncoderSpec
from resa_jax.paths import AnyPath, absolute, is_remote, read_json, remove_tree, write_whole


DESCRIPTION = "encoder.json"


def export_encoder(
    directory: AnyPath, spec: EncoderSpec, params: dict, batch_stats: dict, **provenance
) -> None:
    """Writes an encoder to `directory`, replacing an earlier export there only once it is whole.

    Args:
      provenance: JSON values kept with it, such as the network and step that it comes from.
    """
    # A bucket renames no folder; there the description, written last, makes an export whole.
    place = directory
    if not is_remote(directory):
        place = directory.with_name(directory.name + ".tmp")
    if jax.process_index() == 0:
        remove_tree(place)
    tree = {"params": params, "batch_stats": batch_stats}
    ocp.save(absolute(place) / "weights", tree)
    checksum = _total(tree)
    if jax.process_index() == 0:
        description = dataclasses.asdict(spec) | provenance | {"checksum": checksum}
        write_whole(place / DESCRIPTION, json.dumps(description, indent=2) + "\n")
        if place != directory:
            remove_tree(directory)
            place.rename(directory)


def is_export(path: AnyPath) -> bool:
    """Whether a folder holds an export."""
    return (path / DESCRIPTION).is_file()


def read_description(path: AnyPath) -> dict:
    """What an export says of itself."""
    return read_json(path / DESCRIPTION)


def read_export(path: AnyPath, network: str) -> tuple[EncoderSpec, dict, dict]:
    """Description, parameters and batch statistics of an export's encoder.

    Args:
      network: as `read_encoder`; "ema" takes the online encoder of a run that had no other.
    """
    description = read_description(path)
    if network == "online" and description.get("network") == "ema":
        raise UserError(
            f"{path} holds the EMA encoder; read a checkpoint of the run for the online one."
        )
    # Fields that are younger than the export have their defaults.
    younger = {"channels", "bits", "gray_max"} - description.keys()
    names = [f.name for f in dataclasses.fields(EncoderSpec) if f.name not in younger]
    with naming_damage(path / DESCRIPTION):
        spec = EncoderSpec.from_json({name: description[name] for name in names})
        spec.create()
    tree = read_tree(path / "weights")
    if _total(tree) != description.get("checksum", _total(tree)):  # exports before 0.2 have none
        raise DamagedError(
            f"{path / 'weights'} is damaged: it holds other numbers than were saved."
        )
    return spec, tree["params"], tree["batch_stats"]


def _total(tree):
    return sum(checksums(tree).values()) % 2**32


def read_tree(folder: AnyPath) -> dict:
    """A tree that Orbax saved, as NumPy arrays."""
    folder = absolute(folder)
    with reading_arrays(folder):
        abstract = jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), ocp.metadata(folder).metadata
        )
        return ocp.load(folder, abstract)

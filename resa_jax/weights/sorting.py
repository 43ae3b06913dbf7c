"""A PyTorch file's tensors sorted by network."""

import math
import re
from dataclasses import dataclass

import numpy as np

from resa_jax.errors import UserError
from resa_jax.models.spec import EncoderSpec
from resa_jax.weights.dialects import translate, unwrap
from resa_jax.weights.files import TensorFile
from resa_jax.weights.names import from_detectron2


# What the authors' and MoCo v3's training scripts call their networks, and what they are here.
_CHILDREN = {
    "encoder": "encoder",
    "base_encoder": "encoder",
    "momentum_encoder": "ema encoder",
    "projector": "projector",
    "momentum_projector": "ema projector",
    "predictor": "predictor",
}


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a PyTorch file, sorted by network.

    Attributes:
      file: where they come from.
      networks: "encoder", "ema encoder", "projector", "ema projector", "predictor" (those that are
        there; "" for an encoder alone) to tensors by name within the network.
      prefixes: how the file calls them.
      beside: names of tensors that belong to no network that is known here, such as heads.
      spec: the encoder's description, in files that resa_jax wrote.
    """

    file: TensorFile
    networks: dict[str, dict[str, np.ndarray]]
    prefixes: dict[str, str]
    beside: tuple[str, ...] = ()
    spec: EncoderSpec | None = None

    @property
    def is_full(self) -> bool:
        """Whether pre-training can go on from it: it holds the projector too."""
        return "encoder" in self.networks and "projector" in self.networks


def sort_networks(file: TensorFile) -> Checkpoint:
    """Sorts a file's tensors by network, from the prefixes of their names.

    Raises:
      UserError: two names stand for one tensor, tensors of one layer do not go together, or the
        file describes its encoder in an unknown way.
    """
    spec = _described(file)
    names = {full: re.sub(r"^((module|_orig_mod)\.)+", "", full) for full in file.tensors}
    if "stem.conv1.weight" in names.values():
        names = {full: from_detectron2(name) for full, name in names.items()}
    heads = {name.partition(".")[0] for name in names.values()}
    if heads <= _CHILDREN.keys() and "embeddings" not in heads and _are_ours(names.values()):
        places = {
            full: (_CHILDREN[name.partition(".")[0]], name.partition(".")[2])
            for full, name in names.items()
        }
        prefixes = {_CHILDREN[head]: f"{head}.*" for head in heads}
        return Checkpoint(file, _by_network(file, places), prefixes, spec=spec)

    networks, beside = {}, []
    patches = math.prod(spec.grid) if spec is not None and spec.family == "vit" else None
    for network, tensors in _by_network(file, {f: unwrap(n) for f, n in names.items()}).items():
        try:
            networks[network], left_out = translate(tensors, patches)
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"{file.path}: tensors of one layer do not go together: {error}."
            ) from error
        beside += left_out
    encoders = {network: tensors for network, tensors in networks.items() if tensors}
    if "" in encoders and len(encoders) > 1:
        stray = encoders[""]
        held = ", ".join(f"{network}.*" for network in encoders if network)
        outside = f"{count(stray, 'tensor')} outside its networks {held}: {some(stray)}"
        raise UserError(f"{file.path} holds {outside}.")
    prefixes = {network: f"the {network}" for network in encoders if network}
    return Checkpoint(file, encoders or {"": {}}, prefixes, tuple(beside), spec)


def _described(file: TensorFile) -> EncoderSpec | None:
    try:
        return None if file.spec is None else EncoderSpec.from_json(file.spec)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file.path} describes its encoder in an unknown way ({error})."
        ) from error


def _are_ours(names) -> bool:
    """Whether "encoder." is a network's name, and not that of a ViT's blocks."""
    return not any(
        re.match(r"encoder\.(layers?|pos_embedding|ln|stages)\b", name) for name in names
    )


def _by_network(file: TensorFile, places) -> dict[str, dict[str, np.ndarray]]:
    networks: dict[str, dict[str, np.ndarray]] = {}
    for full_name, (network, name) in places.items():
        tensors = networks.setdefault(network, {})
        if name in tensors:
            raise UserError(f"{file.path} holds {full_name} under two names.")
        tensors[name] = file.tensors[full_name]
    return networks


def count(items, noun: str) -> str:
    """How many there are, in words: "1 tensor", "2 tensors"."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def some(names) -> str:
    """The first ten names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more

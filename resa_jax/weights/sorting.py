"""A PyTorch file's tensors sorted by network."""

from dataclasses import dataclass

import numpy as np

from resa_jax.errors import UserError
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
    """

    file: TensorFile
    networks: dict[str, dict[str, np.ndarray]]
    prefixes: dict[str, str]

    @property
    def is_full(self) -> bool:
        """Whether pre-training can go on from it: it holds the projector too."""
        return "encoder" in self.networks and "projector" in self.networks


def sort_networks(file: TensorFile) -> Checkpoint:
    """Sorts a file's tensors by network, from the prefixes of their names.

    Raises:
      UserError: when only some of the names have a network's prefix, or two stand for one tensor.
    """
    detectron2 = "stem.conv1.weight" in file.tensors
    networks: dict[str, dict[str, np.ndarray]] = {}
    bare: dict[str, np.ndarray] = {}
    prefixes = {}
    for full_name, value in file.tensors.items():
        name = full_name.removeprefix("module.")
        name = from_detectron2(name) if detectron2 else name
        prefix, _, rest = name.partition(".")
        tensors = bare
        if prefix in _CHILDREN:
            tensors, name = networks.setdefault(_CHILDREN[prefix], {}), rest
            prefixes[_CHILDREN[prefix]] = f"{prefix}.*"
        if name in tensors:
            raise UserError(f"{file.path} holds {full_name} under two names.")
        tensors[name] = value
    if networks and bare:
        raise UserError(
            f"{file.path} holds {count(bare, 'tensor')} outside its networks "
            f"{', '.join(prefixes.values())}: {some(bare)}."
        )
    return Checkpoint(file, networks or {"": bare}, prefixes)


def count(items, noun: str) -> str:
    """How many there are, in words: "1 tensor", "2 tensors"."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def some(names) -> str:
    """The first ten names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more

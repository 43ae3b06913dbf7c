"""PyTorch's names and layouts for every tensor of our networks.

ResNets are named as in torchvision, ViTs as in timm, heads as the authors' `nn.Sequential`s. All
are one rule over the paths of our own modules, so a bijection by construction.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import numpy as np
from flax import nnx

from resa_jax.models.heads import HEADS
from resa_jax.models.network import split
from resa_jax.models.spec import EncoderSpec


_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

# Places of the layers in the authors' nn.Sequential; activations take the places between.
_PROJECTOR = {
    "convnet": {"linear1": 0, "bn1": 1, "linear2": 3, "bn2": 4, "linear3": 6, "bn3": 7},
    "vit": {"linear1": 0, "linear2": 2, "linear3": 4},
}
_PREDICTOR = {
    "convnet": {"linear1": 0, "bn1": 1, "linear2": 3},
    "vit": {"norm": 0, "linear1": 1, "linear2": 3},
}


@dataclass(frozen=True)
class Slot:
    """Where a PyTorch tensor belongs in our networks.

    Attributes:
      collection: "params" or "batch_stats".
      path: keys into the nested dicts.
      shape: of the PyTorch tensor.
    """

    collection: str
    path: tuple[str, ...]
    shape: tuple[int, ...]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array as PyTorch lays it out: convolutions OIHW for HWIO, linear maps transposed."""
        if self.path[-1] != "kernel":
            return array
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_torch`."""
        if self.path[-1] != "kernel":
            return array
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


@functools.cache  # building the abstract network takes a second
def encoder_slots(spec: EncoderSpec) -> Mapping[str, Slot]:
    """A slot for every tensor of the encoder, by its PyTorch name."""
    slots = _slots(spec.create)
    stem = sum(slot.path[1].startswith("conv") for slot in slots if slot.path[0] == "patch_embed")
    return MappingProxyType({_encoder_name(slot.path, stem): slot for slot in slots})


def projector_slots(
    family: str, in_features: int, hidden_size: int, output_size: int
) -> dict[str, Slot]:
    """A slot for every tensor of the projector, by its name in the authors' checkpoints."""
    slots = _slots(
        lambda: HEADS[family][0](in_features, hidden_size, output_size, rngs=nnx.Rngs(0))
    )
    return _by_place(slots, _PROJECTOR[family])


def predictor_slots(family: str, features: int, hidden_size: int) -> dict[str, Slot]:
    """A slot for every tensor of the predictor, by its name in the authors' checkpoints."""
    slots = _slots(lambda: HEADS[family][1](features, hidden_size, rngs=nnx.Rngs(0)))
    return _by_place(slots, _PREDICTOR[family])


def to_detectron2(name: str) -> str:
    """A ResNet's tensor by detectron2's name instead of torchvision's (layer1 is res2)."""
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def from_detectron2(name: str) -> str:
    """The inverse of `to_detectron2`."""
    name = name.removeprefix("stem.")
    name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name)
    name = re.sub(r"\bconv(\d)\.norm\.", r"bn\1.", name)
    return name.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")


def _slots(create) -> list[Slot]:
    """The slots of a module, from its abstract arrays."""
    _, params, batch_stats = split(nnx.eval_shape(create))
    slots = []
    for collection, tree in (("params", params), ("batch_stats", batch_stats)):
        for keys, leaf in jax.tree.leaves_with_path(tree):
            path, shape = tuple(str(key.key) for key in keys), tuple(leaf.shape)
            if path[-1] == "kernel":
                shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
            slots.append(Slot(collection, path, shape))
    return slots


def _encoder_name(path: tuple[str, ...], stem: int) -> str:
    """torchvision's or timm's name; `stem` counts the 3x3 convolutions of a convolutional stem."""
    *modules, leaf = path
    names = [re.sub(r"^(layer\d|blocks)_(\d+)$", r"\1.\2", module) for module in modules]
    names = [
        {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(name, name)
        for name in names
    ]
    if stem and modules[:1] == ["patch_embed"]:
        # Convolution, BatchNorm and ReLU in turn, then the 1x1 convolution.
        kind = modules[1].rstrip("0123456789")
        index = modules[1].removeprefix(kind)
        place = 3 * stem if kind == "proj" else 3 * int(index) + (kind == "bn")
        names[1] = f"proj.{place}"
    return ".".join([*names, _LEAVES.get(leaf, leaf)])


def _by_place(slots: list[Slot], places: dict[str, int]) -> dict[str, Slot]:
    return {
        f"{places[slot.path[0]]}.{_LEAVES.get(slot.path[1], slot.path[1])}": slot for slot in slots
    }

"""From PyTorch's tensors to our networks and back; every tensor is accounted for."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from resa_jax.errors import UserError
from resa_jax.models.spec import EncoderSpec
from resa_jax.weights.account import Account
from resa_jax.weights.infer import infer_spec
from resa_jax.weights.names import (
    encoder_slots,
    predictor_slots,
    projector_slots,
    to_detectron2,
)
from resa_jax.weights.sorting import Checkpoint


class TorchEncoder(NamedTuple):
    """An encoder of a PyTorch file, as `encoder_from_torch` describes."""

    encoder: tuple[EncoderSpec, dict, dict]
    tensors: dict[str, np.ndarray]
    lines: list[str]


class TorchNetworks(NamedTuple):
    """All networks of a PyTorch file, as `networks_from_torch` describes."""

    spec: EncoderSpec
    trees: dict[str, dict]
    lines: list[str]


def encoder_from_torch(
    checkpoint: Checkpoint, arch: str | None = None, network: str = "ema"
) -> TorchEncoder:
    """The encoder of a PyTorch file.

    Args:
      arch: its name, where the shapes leave it open.
      network: "ema" or "online", where the file holds both; "ema" takes what there is.

    Returns:
      `encoder`: its description, parameters and batch statistics (nested dicts of NumPy arrays in
      the file's precision); `tensors`: the file's own of that encoder; `lines` that say what became
      of the file's content.

    Raises:
      UserError: when a tensor is missing, unexpected, of another shape or not finite.
    """
    if network not in ("ema", "online"):
        raise UserError(f"network is {network!r}; it must be 'ema' or 'online'.")
    wanted = {"ema": ("ema encoder", "encoder", ""), "online": ("encoder", "")}[network]
    held = next((name for name in wanted if name in checkpoint.networks), None)
    if held is None:
        raise UserError(
            f"{checkpoint.file.path} holds no {network} encoder, only "
            f"{', '.join(checkpoint.prefixes.values())}."
        )
    spec = _spec(checkpoint, held, arch)
    account = Account(checkpoint, spec, arch)
    slots = encoder_slots(spec)
    encoder = (spec, *account.load(held, slots))
    tensors = {name: checkpoint.networks[held][name] for name in slots}
    return TorchEncoder(encoder, tensors, account.lines())


def networks_from_torch(checkpoint: Checkpoint, arch: str | None = None) -> TorchNetworks:
    """All networks of a full checkpoint of the authors' code.

    Returns:
      `spec`: the encoder's description; `trees`: "params", "batch_stats" ({encoder, projector,
      predictor}) and "ema_params", "ema_batch_stats" ({encoder, projector}; equal to the online
      ones in a file without momentum networks), as `TrainState` names them; `lines`
      that say what became of the file's content.

    Raises:
      UserError: as `encoder_from_torch`, or when the file has no projector.
    """
    if not checkpoint.is_full:
        raise UserError(f"{checkpoint.file.path} holds no projector to go on from.")
    spec = _spec(checkpoint, "encoder", arch)
    account = Account(checkpoint, spec, arch)
    projector = checkpoint.networks["projector"]
    last = "4.weight" if spec.family == "vit" else "6.weight"
    hidden, in_features = _shape(checkpoint, projector, "projector", "0.weight")
    output = _shape(checkpoint, projector, "projector", last)[0]
    slots = {
        "encoder": encoder_slots(spec),
        "projector": projector_slots(spec.family, in_features, hidden, output),
    }
    names = ("params", "batch_stats", "ema_params", "ema_batch_stats")
    trees: dict[str, dict] = {name: {} for name in names}
    for name, child_slots in slots.items():
        online = account.load(name, child_slots)
        ema_name = f"ema {name}"
        ema = account.load(ema_name, child_slots) if ema_name in checkpoint.networks else online
        trees["params"][name], trees["batch_stats"][name] = online
        trees["ema_params"][name], trees["ema_batch_stats"][name] = ema
    if "predictor" in checkpoint.networks:
        first = "1.weight" if spec.family == "vit" else "0.weight"
        tensors = checkpoint.networks["predictor"]
        hidden = _shape(checkpoint, tensors, "predictor", first)[0]
        loaded = account.load("predictor", predictor_slots(spec.family, output, hidden))
        trees["params"]["predictor"], trees["batch_stats"]["predictor"] = loaded
    for name in ("batch_stats", "ema_batch_stats"):
        trees[name] = {child: tree for child, tree in trees[name].items() if tree}
    return TorchNetworks(spec, trees, account.lines())


def encoder_to_torch(
    spec: EncoderSpec, params: dict, batch_stats: dict, *, layout: str = "torch"
) -> dict[str, np.ndarray]:
    """An encoder's tensors by PyTorch's names, in PyTorch's layouts.

    Args:
      layout: "torch" for torchvision's (ResNets) or timm's (ViTs) names, "detectron2" for its
        ResNet-50.

    Raises:
      UserError: for detectron2's layout of another architecture, or values that are not finite.
    """
    trees = {"params": params, "batch_stats": batch_stats}
    tensors = {}
    for name, slot in encoder_slots(spec).items():
        node = trees[slot.collection]
        for key in slot.path:
            node = node[key]
        tensors[name] = np.ascontiguousarray(slot.to_torch(np.asarray(node)))
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"The encoder holds values that are no finite numbers, in {name}.")
    if layout == "torch":
        return tensors
    if spec.name != "resnet50":
        raise UserError(f"detectron2's .pkl is written for resnet50 only, not for {spec.name}.")
    return {to_detectron2(name): tensor for name, tensor in tensors.items()}


def _spec(checkpoint: Checkpoint, network: str, arch: str | None) -> EncoderSpec:
    """The encoder's description: the file's own, or inferred."""
    file, spec = checkpoint.file, checkpoint.spec
    if spec is None:
        return infer_spec(
            file.path, checkpoint.networks[network], arch, full="projector" in checkpoint.networks
        )
    if arch not in (None, spec.name):
        raise UserError(f"{file.path} holds a {spec.name}, not a {arch}.")
    return spec


def _shape(checkpoint: Checkpoint, tensors: Mapping, network: str, name: str) -> tuple[int, int]:
    if name not in tensors or tensors[name].ndim != 2:
        raise UserError(
            f"{checkpoint.file.path} holds no matrix {checkpoint.prefixes[network][:-1]}{name}, "
            "which tells the sizes of the head."
        )
    return tensors[name].shape

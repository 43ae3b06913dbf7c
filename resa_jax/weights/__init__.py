"""PyTorch weights in and out: the authors' checkpoints, torchvision, timm, detectron2."""

from pathlib import Path

from resa_jax.models.spec import EncoderSpec
from resa_jax.weights.files import SUFFIXES, is_tensor_file, read_tensors, write_tensors
from resa_jax.weights.sorting import sort_networks
from resa_jax.weights.translate import encoder_from_torch, encoder_to_torch, networks_from_torch


__all__ = [
    "SUFFIXES",
    "encoder_from_torch",
    "encoder_to_torch",
    "is_tensor_file",
    "networks_from_torch",
    "read_tensors",
    "read_torch_encoder",
    "sort_networks",
    "write_tensors",
]


def read_torch_encoder(
    path: Path, arch: str | None = None, network: str = "ema"
) -> tuple[EncoderSpec, dict, dict]:
    """Description, parameters and batch statistics of the encoder in a file of PyTorch's tensors.

    Args:
      path: `.safetensors`, or `.pth`, `.pt`, `.pth.tar` (with PyTorch installed), or detectron2's
        `.pkl`.
      arch: its name, where the shapes leave it open.
      network: "ema" or "online", where the file holds both; "ema" takes what there is.

    Raises:
      UserError: for a file that cannot be read, or whose tensors are not exactly an encoder's.
    """
    return encoder_from_torch(sort_networks(read_tensors(Path(path))), arch, network).encoder

"""Encodings of a fixed input before and after a conversion."""

import importlib.util
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from resa_jax.models.network import Network, evaluate_layers, split
from resa_jax.models.spec import EncoderSpec
from resa_jax.weights.torch_forward import torch_encodings


def compare_encodings(
    encoder: tuple[EncoderSpec, dict, dict],
    written: tuple[EncoderSpec, dict, dict],
    tensors: Mapping[str, np.ndarray],
) -> list[str]:
    """Lines on how far encodings of a fixed input are from each other.

    Args:
      encoder: description, parameters and batch statistics that were converted.
      written: those read back from the output.
      tensors: PyTorch's side of the conversion, by torchvision's or timm's names.

    Returns:
      The largest difference relative to the largest encoding, between ours and PyTorch's (where it
      is installed), and between ours before and after.
    """
    spec = encoder[0]
    images = fixed_images(spec)
    graphdef = split(Network(spec.create()))[0]
    ours, after = (
        np.asarray(
            evaluate_layers(graphdef, {"encoder": params}, {"encoder": batch_stats}, images)[
                "encoding"
            ]
        )
        for _, params, batch_stats in (encoder, written)
    )
    checked = "checked: not against PyTorch, which is not installed"
    if importlib.util.find_spec("torch") is not None:
        error = _error(ours, torch_encodings(spec, tensors, images))
        checked = f"checked: encodings differ from PyTorch's by {error:.1e} (relative)"
    return [checked, f"read back: encodings differ by {_error(after, ours):.1e} (relative)"]


def fixed_images(spec: EncoderSpec) -> np.ndarray:
    """Two normalised images [2, h, w, c] by formula; float64 where JAX computes in it."""
    height, width = spec.height_width
    if spec.family == "convnet":
        height, width = min(height, 64), min(width, 64)
    row, column, channel = np.indices((height, width, spec.channels))
    images = [
        np.sin(0.7 * k * row + 0.3 * column + channel) + np.cos(0.2 * k * row) for k in (1, 2)
    ]
    return np.stack(images).astype(jax.dtypes.canonicalize_dtype(jnp.float64))


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))

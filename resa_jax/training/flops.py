"""What a train step computes, and what devices could: FLOP/s and MFU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from resa_jax.image_size import ImageSize
from resa_jax.methods.interface import MOMENTUM_VIEWS
from resa_jax.models.spec import EncoderSpec


# Dense bfloat16 peaks that the makers publish, FLOP/s, by the beginning of JAX's device kind.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 920e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 FLOP/s of a device as its maker publishes it, None for one not listed."""
    kind = device.device_kind
    return next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


def train_flops(config: ConfigDict, momentum_network: bool) -> float:
    """Model FLOPs that training takes for one image, all its views together.

    A view costs three forward passes online (the backward pass is two), and the first two views one
    more in the EMA network. Heads and the loss (under 1 %) and rematerialisation do not count.
    """
    spec = EncoderSpec.from_config(config)
    passes: dict[ImageSize, int] = {}
    for number, view in enumerate(config.views):
        ema = momentum_network and number < MOMENTUM_VIEWS
        passes[view.size] = passes.get(view.size, 0) + (4 if ema else 3)
    return sum(
        count * forward_flops(dataclasses.replace(spec, image_size=size))
        for size, count in passes.items()
    )


def forward_flops(spec: EncoderSpec) -> float:
    """FLOPs of one image's forward pass, as XLA counts them in the program before optimisation.

    Products with a convolution's zero padding do not count (3 % of a ResNet-50's at 224 pixels,
    13 % of a ResNet-18's at 34), so the MFU of ConvNets is a little lower than by the usual count.
    """
    graphdef, state = nnx.split(spec.create())
    image = jax.ShapeDtypeStruct((1, *spec.height_width, spec.channels), jnp.float32)
    forward = jax.jit(lambda state, image: nnx.merge(graphdef, state)(image, train=False))
    costs: Any = forward.lower(state, image).cost_analysis()
    return costs["flops"]

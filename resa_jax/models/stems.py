"""From an image to a ViT's patches: a linear map, or the stem of Xiao et al. (2021)."""

import math

from flax import nnx
from jaxtyping import Array, Float

from resa_jax.models.layers import CONVOLUTIONS, BatchNorm, Frozen, torch_uniform, uniform


class PatchEmbed(nnx.Module):
    """One linear map of each patch, frozen at its initial value (as in MoCo v3) or trained."""

    def __init__(
        self, channels: int, width: int, patch_size: int, *, trained: bool = False, dtype, rngs
    ):
        bound = math.sqrt(6 / (channels * patch_size**2 + width))
        self.proj = nnx.Conv(
            channels,
            width,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            kernel_init=uniform(bound),
            dtype=dtype,
            precision=CONVOLUTIONS,
            rngs=rngs,
        )
        for name in ("kernel", "bias"):
            kind = nnx.Param if trained else Frozen
            setattr(self.proj, name, kind(getattr(self.proj, name)[...]))

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n gh gw d"]:
        return self.proj(x)


class ConvStem(nnx.Module):
    """3x3 convolutions of stride 2 with BatchNorm and ReLU, then a 1x1; trained.

    There are as many as halve a patch to 1, and the channels double from width / (patch_size / 2)
    up to width. PyTorch's default initialiser.
    """

    def __init__(self, channels: int, width: int, patch_size: int, *, dtype, rngs):
        self.layers = int(math.log2(patch_size))
        for index in range(self.layers):
            features = width // (patch_size // 2) * 2**index
            conv = nnx.Conv(
                channels,
                features,
                (3, 3),
                strides=2,
                padding=((1, 1), (1, 1)),
                use_bias=False,
                kernel_init=torch_uniform,
                dtype=dtype,
                precision=CONVOLUTIONS,
                rngs=rngs,
            )
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", BatchNorm(features, dtype=dtype))
            channels = features
        self.proj = nnx.Conv(
            channels,
            width,
            (1, 1),
            kernel_init=torch_uniform,
            bias_init=uniform(1 / math.sqrt(channels)),
            dtype=dtype,
            precision=CONVOLUTIONS,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n gh gw d"]:
        for index in range(self.layers):
            x = getattr(self, f"conv{index}")(x)
            x = nnx.relu(getattr(self, f"bn{index}")(x, train=train))
        return self.proj(x)

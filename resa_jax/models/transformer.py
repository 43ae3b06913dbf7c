"""The blocks of a ViT, with timm's names."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from resa_jax.models.attention import Turns, attend
from resa_jax.models.layers import ATTENDED, PRODUCTS, gelu, uniform, xavier_linear


class Attention(nnx.Module):
    """Multi-head self-attention with one fused map to queries, keys and values, as in timm."""

    def __init__(self, width: int, heads: int, *, dtype, rngs):
        self.heads = heads
        # The three maps are initialised as if they were separate: Xavier over width to width.
        self.qkv = nnx.Linear(
            width,
            3 * width,
            kernel_init=uniform(math.sqrt(6 / (2 * width))),
            dtype=dtype,
            precision=PRODUCTS,
            rngs=rngs,
        )
        self.proj = xavier_linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n t d"], turns: Turns | None) -> Float[Array, "n t d"]:
        return self.proj(checkpoint_name(attend(self.qkv(x), turns, self.heads), ATTENDED))


class MLP(nnx.Module):
    """Linear, exact GELU, Linear back."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs):
        self.fc1 = xavier_linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = xavier_linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        return self.fc2(gelu(self.fc1(x)))


class GatedMLP(nnx.Module):
    """SwiGLU (Shazeer, 2020): half of a linear map, through SiLU, times the other; Linear back."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs):
        self.w12 = xavier_linear(width, 2 * hidden, dtype=dtype, rngs=rngs)
        self.w3 = xavier_linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(nnx.silu(gate) * value)


class LayerScale(nnx.Module):
    """A factor for each channel (Touvron et al., 2021)."""

    def __init__(self, width: int, initial: float):
        self.gamma = nnx.Param(jnp.full(width, initial))

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        return x * self.gamma[...].astype(x.dtype)


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int | None = None,
        gated: bool = False,
        layer_scale: float | None = None,
        epsilon: float = 1e-6,
        dtype,
        rngs,
    ):
        """
        Args:
          hidden: of the MLP; None: four times the width.
          gated: SwiGLU in its place.
          layer_scale: initial factor of both branches; None for no factors.
          epsilon: of the LayerNorms.
        """
        hidden = 4 * width if hidden is None else hidden
        self.norm1 = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.attn = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = (GatedMLP if gated else MLP)(width, hidden, dtype=dtype, rngs=rngs)
        self.ls1 = None if layer_scale is None else LayerScale(width, layer_scale)
        self.ls2 = None if layer_scale is None else LayerScale(width, layer_scale)

    def __call__(
        self,
        x: Float[Array, "n t d"],
        turns: Turns | None = None,
        weights: Float[Array, "n 2"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "n t d"]:
        """
        Args:
          weights: of each image's two branches, as `ViT` has them.
        """
        y = self.attn(self.norm1(x), turns)
        y = y if self.ls1 is None else self.ls1(y)
        x = x + (y if weights is None else weights[:, :1, None].astype(y.dtype) * y)
        y = self.mlp(self.norm2(x))
        y = y if self.ls2 is None else self.ls2(y)
        return x + (y if weights is None else weights[:, 1:, None].astype(y.dtype) * y)

"""Resampling as two matrix products per image, with Pillow's antialiased filters.

Pillow computes a pixel of the result as a weighted mean over the input pixels around its centre,
with a filter that widens as the image shrinks: along one side, rounded to 8 bits, then along the
other. Both passes are linear, so each is a matrix, and images of all sizes on one canvas are
resampled alike (`Image.resize`; Resample.c in its source). Here the width always comes first; since
version 13 Pillow starts with the longer side, which matters where a bicubic overshoot is clipped.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def resampling_matrix(
    start: Int[Array, "n"],
    length: Int[Array, "n"],
    *,
    size: int,
    canvas: int,
    interpolation: str,
    output_length: Int[Array, "n"] | None = None,
    output_start: Int[Array, "n"] | None = None,
) -> Float[Array, "n size canvas"]:
    """Matrices that resize the stretch [start, start + length) of a canvas side.

    The stretch is resized to `output_length` pixels (default `size`), of which `size` pixels from
    `output_start` (default 0) are computed. Pixels outside of the stretch have no weight, as if it
    had been cut out first. Each row sums to 1. Where nothing is resized, the weights are exactly 0
    and 1.

    Args:
      interpolation: "bilinear", or "bicubic" with Pillow's a = -0.5.
    """
    start, length = start[:, None, None], length[:, None, None].astype(jnp.float32)
    output = jnp.arange(size, dtype=jnp.float32)[:, None]
    if output_start is not None:
        output = output + output_start[:, None, None]
    scale = length / (size if output_length is None else output_length[:, None, None])
    center = (output + 0.5) * scale
    position = (jnp.arange(canvas) - start).astype(jnp.float32)  # within the stretch
    distance = jnp.abs(position + 0.5 - center) / jnp.maximum(scale, 1)
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weights = jnp.where((position >= 0) & (position < length), weights, 0)
    return weights / weights.sum(axis=2, keepdims=True)


def resample(
    images: Float[Array, "n c h w"],
    rows: Float[Array, "n h2 h"],
    columns: Float[Array, "n w2 w"],
    white: int = 255,
) -> Float[Array, "n c h2 w2"]:
    """Applies a matrix to each image's width, then one to its height; whole numbers after each.

    Args:
      images: whole numbers 0..white.
    """
    images = whole_numbers(_product("nxw,nchw->nchx", columns, images, white), white)
    return whole_numbers(_product("nyh,nchx->ncyx", rows, images, white), white)


def _product(
    equation: str, weights: Float[Array, "n a b"], images: Float[Array, "n c h w"], white: int
) -> Float[Array, "n c h2 w2"]:
    split = partial(_split if white <= 255 else _split_twice, equation)
    return jax.lax.platform_dependent(
        weights, images, cpu=partial(_float32_product, equation), default=split
    )


def _float32_product(equation, weights, images):
    return jnp.einsum(equation, weights, images, precision=jax.lax.Precision.HIGHEST)


def _split(equation, weights, images):
    """The product in bfloat16, in which pixels are exact: of weights in three parts, added up.

    Half of what float32 takes on a TPU, and with tensor cores on a GPU, where float32 has none.
    """
    images, total = images.astype(jnp.bfloat16), jnp.zeros((), jnp.float32)
    for _ in range(3):
        part = weights.astype(jnp.bfloat16)
        weights = weights - part
        total += jnp.einsum(equation, part, images, preferred_element_type=jnp.float32)
    return total


def _split_twice(equation, weights, images):
    """The same for pixels of 16 bits, byte by byte."""
    high = jnp.floor(images / 256)
    low = images - 256 * high
    return 256 * _split(equation, weights, high) + _split(equation, weights, low)


def whole_numbers(images: Float[Array, "..."], white: int = 255) -> Float[Array, "..."]:
    """Clips to 0..white and rounds, a half up, as Pillow does after each of its passes."""
    return jnp.floor(jnp.clip(images, 0, white) + 0.5)


def _triangle(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(1 - x, 0)


def _cubic(x: Float[Array, "..."], a: float = -0.5) -> Float[Array, "..."]:
    """Keys' cubic convolution kernel of x >= 0 (doi:10.1109/TASSP.1981.1163711, equation 4)."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))

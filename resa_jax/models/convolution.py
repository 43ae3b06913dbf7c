"""Convolutions, as matrix products where XLA's own are slow: on a CPU, where little is left.

On maps of 2 x 2 and 1 x 1 XLA's convolutions on a CPU take 8 to 80 times as long as the product of
the patches with the kernel, and so does the gradient of the step from 4 x 4 to 2 x 2; on maps from
5 x 5 on they are faster. Other platforms' programs hold the convolution alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "k l c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    precision: Any,
    **rest: Any,
) -> Float[Array, "n a b d"]:
    """`jax.lax.conv_general_dilated` in NHWC and HWIO, for `nnx.Conv`; the two agree by rounding.

    Args:
      rest: as nnx.Conv gives it; dilations and groups are not for this module.
    """
    sides = [
        (x.shape[1 + axis] + sum(padding[axis]) - kernel.shape[axis]) // strides[axis] + 1
        for axis in (0, 1)
    ]
    strides, padding = tuple(strides), tuple(padding)  # hashable
    one_by_one = kernel.shape[:2] == (1, 1)
    if min(sides) > 2 and not (one_by_one and max(strides) > 1):
        return _plain(x, kernel, strides, padding, precision)
    return _by_platform(x, kernel, strides, padding, precision)


def _plain(x, kernel, strides, padding, precision):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _patches(x, kernel, strides, padding, precision):
    """The same as one product: each place's patch, as a row, with the kernel."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    (height, width, c, d), n = kernel.shape, x.shape[0]
    down, across = strides
    a, b = (x.shape[1] - height) // down + 1, (x.shape[2] - width) // across + 1
    taps = [
        x[:, i : i + (a - 1) * down + 1 : down, j : j + (b - 1) * across + 1 : across]
        for i in range(height)
        for j in range(width)
    ]
    rows = jnp.concatenate(taps, axis=3).reshape(n * a * b, height * width * c)
    product = jnp.matmul(rows, kernel.reshape(-1, d), precision=precision)
    return product.reshape(n, a, b, d)


# With a derivative of its own: that of a choice by platform would keep what all choices need.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _by_platform(x, kernel, strides, padding, precision):
    def form(function: Callable) -> Callable:
        return lambda x, kernel: function(x, kernel, strides, padding, precision)

    return jax.lax.platform_dependent(x, kernel, cpu=form(_patches), default=form(_plain))


def _forward(x, kernel, strides, padding, precision):
    return _by_platform(x, kernel, strides, padding, precision), (x, kernel)


def _backward(strides, padding, precision, kept, gradient):
    def form(function: Callable) -> Callable:
        def gradients(x, kernel, gradient):
            convolve = lambda x, kernel: function(x, kernel, strides, padding, precision)
            return jax.vjp(convolve, x, kernel)[1](gradient)

        return gradients

    return jax.lax.platform_dependent(*kept, gradient, cpu=form(_patches), default=form(_plain))


_by_platform.defvjp(_forward, _backward)

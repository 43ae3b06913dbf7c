"""Colour operators on batches, equal to those of Pillow and torchvision on 8-bit images.

Images are float32 [n, 3, h, w] that hold whole numbers 0..255, before and after each operator:
Pillow rounds after each, and so do these. Which image gets which operator is the caller's choice.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from resa_jax.data.resample import whole_numbers


Images = Float[Array, "n 3 h w"]
Operator = Callable[[Images, Float[Array, "n"]], Images]


def grayscale(images: Images) -> Images:
    """Luma 0.299 R + 0.587 G + 0.114 B, to 16 bits, in all channels (`Image.convert("L")`)."""
    red, green, blue = images[:, 0], images[:, 1], images[:, 2]
    luma = jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)
    return jnp.broadcast_to(luma[:, None], images.shape)


def adjust_brightness(images: Images, factor: Float[Array, "n"]) -> Images:
    """Blends with black (`ImageEnhance.Brightness`)."""
    return _blend(jnp.zeros_like(images), images, factor)


def adjust_contrast(
    images: Images, factor: Float[Array, "n"], filled: Float[Array, "n"] | None = None
) -> Images:
    """Blends with the mean gray of the image, a whole number (`ImageEnhance.Contrast`).

    Args:
      filled: the share of its canvas that an image fills; the rest must be black.
    """
    mean = grayscale(images)[:, :1].mean(axis=(1, 2, 3), keepdims=True)
    if filled is not None:
        mean = mean / filled[:, None, None, None]
    return _blend(jnp.floor(mean + 0.5), images, factor)


def adjust_saturation(images: Images, factor: Float[Array, "n"]) -> Images:
    """Blends with the gray image (`ImageEnhance.Color`)."""
    return _blend(grayscale(images), images, factor)


def adjust_hue(images: Images, shift: Float[Array, "n"]) -> Images:
    """Turns the hue by `shift` of a full turn (torchvision's `adjust_hue`).

    Hue, saturation and value are whole numbers 0..255, as in Pillow's mode HSV.
    """
    hue, saturation, value = _rgb_to_hsv(images)
    turned = _wrap(hue + jnp.trunc(shift * 255)[:, None, None], 256)
    return _hsv_to_rgb(turned, saturation, value)


def color_jitter(
    images: Images,
    operators: tuple[Operator, ...],
    factors: Float[Array, "k n"],
    order: Int[Array, "n k"],
) -> Images:
    """Applies all k operators to each image, in the order of its row of `order`.

    Args:
      factors: of each operator, for each image.
      order: permutations of 0..k-1.
    """

    def apply(images: Images, chosen: Int[Array, "n"]) -> tuple[Images, None]:
        results = [
            operator(images, factor) for operator, factor in zip(operators, factors, strict=True)
        ]
        conditions = [(chosen == k)[:, None, None, None] for k in range(len(operators))]
        return jnp.select(conditions, results), None

    shape = images.shape
    if shape[3] < 32:  # rows that short leave a CPU's vector units idle
        images = images.reshape(*shape[:2], 1, -1)
    # A loop compiles the operators once, and keeps XLA from computing one place's several times.
    return jax.lax.scan(apply, images, order.T)[0].reshape(shape)


def gaussian_blur(
    images: Float[Array, "n c h w"],
    sigma: Float[Array, "n"],
    *,
    max_sigma: float,
    white: int = 255,
) -> Float[Array, "n c h w"]:
    """Pillow's `GaussianBlur`: three box filters along rows, three along columns.

    A box of fractional radius r weighs the 2 floor(r) + 1 pixels around each place alike and the
    two beyond less, and r is such that three of them have the variance sigma^2 (Gwosdek et al.,
    "Theoretical Foundations of Gaussian Convolution by Extended Box Filtering", 2011). Each pass
    rounds to whole numbers. Outside of the image its edge pixels are repeated.

    Args:
      images: whole numbers 0..white; above 255 the weights are floating-point numbers.
      sigma: standard deviations in pixels, above 0.
      max_sigma: no sigma is larger.
    """
    variance = sigma**2 / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    fraction /= 6 * (variance - (whole + 1) ** 2)
    # Weights in whole parts of 2^24, as Pillow has them: it decides how a half is rounded.
    inner = (2**24 / (2 * (whole + fraction) + 1)).astype(jnp.uint32)
    outer = (2**24 - (2 * whole.astype(jnp.uint32) + 1) * inner) // 2
    in_bytes = white == 255
    values = images.astype(jnp.uint32) if in_bytes else images
    whole, inner, outer = (x[:, None, None, None] for x in (whole, inner, outer))
    reach = int((math.sqrt(4 * max_sigma**2 + 1) - 1) / 2) + 1
    weights = [
        jnp.where(distance <= whole, inner, jnp.where(distance == whole + 1, outer, 0))
        for distance in range(1, reach + 1)
    ]
    for axis in (3, 3, 3, 2, 2, 2):
        pads = [(0, 0)] * 4
        pads[axis] = (reach, reach)
        padded, size = jnp.pad(values, pads, mode="edge"), images.shape[axis]
        total = values * inner
        for distance, weight in enumerate(weights, start=1):
            left, right = (
                jax.lax.slice_in_dim(padded, start, start + size, axis=axis)
                for start in (reach - distance, reach + distance)
            )
            total += (left + right) * weight
        values = (total + 2**23) >> 24 if in_bytes else jnp.floor(total / 2**24 + 0.5)
    return values.astype(images.dtype)


def solarize(images: Images, threshold: int = 128) -> Images:
    """Inverts all values from the threshold up (`ImageOps.solarize`)."""
    return jnp.where(images < threshold, images, 255 - images)


def _blend(background: Array, images: Images, factor: Float[Array, "n"]) -> Images:
    """`Image.blend`: it cuts the fraction off instead of rounding."""
    blended = background + factor[:, None, None, None] * (images - background)
    return jnp.floor(jnp.clip(blended, 0, 255))


def _rgb_to_hsv(images: Images) -> tuple[Float[Array, "n h w"], ...]:
    red, green, blue = images[:, 0], images[:, 1], images[:, 2]
    value = images.max(axis=1)
    spread = value - images.min(axis=1)
    divisor = jnp.where(spread == 0, 1, spread)
    # In sixths of a turn, from the channel that is largest; the first one where several are.
    sixths = jnp.where(
        red == value,
        (green - blue) / divisor,
        jnp.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = jnp.floor(_wrap(sixths / 6, 1) * 255)
    saturation = jnp.floor(spread * 255 / jnp.where(value == 0, 1, value))
    return hue, saturation, value


def _hsv_to_rgb(hue: Array, saturation: Array, value: Array) -> Images:
    sixths = hue * (6 / 255)

    def channel(turn: int) -> Float[Array, "n h w"]:
        position = _wrap(sixths + turn, 6)
        depth = jnp.clip(jnp.minimum(position, 4 - position), 0, 1)
        return whole_numbers(value - value * (saturation / 255) * depth)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=1)


def _wrap(x: Array, period: int) -> Array:
    """x modulo the period, for -period <= x < 2 period; much cheaper than `jnp.mod`."""
    return jnp.where(x < 0, x + period, jnp.where(x >= period, x - period, x))

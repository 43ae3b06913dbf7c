"""Views of a batch of images, computed on the device.

Everything is a pure function of a key and a batch. All random numbers are drawn for the whole
global batch, so that they don't depend on how it is sharded, and from keys of their own for each
view and operator, so that dropping one operator leaves the others' numbers alone.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from resa_jax.data import color
from resa_jax.data.boxes import center_boxes, random_boxes
from resa_jax.data.resample import resample, resampling_matrix
from resa_jax.data.view import Interpolation, View
from resa_jax.image_size import ImageSize, height_width


# Each operator's own number for its random key. They must never change: runs resume by them.
_CROP, _FLIP, _JITTER, _GRAYSCALE, _BLUR, _SOLARIZE = range(6)


def augment(
    key: Key[Array, ""],
    images: UInt[Array | np.ndarray, "n a b c"],
    sizes: Int[Array | np.ndarray, "n 3"],
    views: Sequence[View],
    mean: Sequence[float],
    std: Sequence[float],
    white: int = 255,
) -> tuple[Float[Array, "n ..."], ...]:
    """Makes each of the views of each image, normalised: float32 [n, h, w, c].

    The operators, their order and distributions are torchvision's on Pillow images: crop, colour
    jitter, grayscale, blur, solarise, flip; then (x / 255 - mean) / std. Jitter, grayscale
    and solarise are for RGB of 8 bits: images with other channels, or more bits, skip them.

    Args:
      images: on their canvas, in the top-left corner.
      sizes: heights and widths there, and 1 where an image lies turned, as `BatchReader` has it.
      mean, std: of the channels, for values 0..1.
      white: the pixels' highest value.
    """
    shapes = [_shape(view) for view in views]
    planes, sizes = _set_upright(_planes(images), jnp.asarray(sizes), shapes)
    results = []
    for number, view in enumerate(views):
        pixels = _make_view(jax.random.fold_in(key, number), planes, sizes, view, white)
        results.append(normalize(pixels.transpose(0, 2, 3, 1), mean, std, white))
    return tuple(results)


def normalize(
    pixels: Float[Array, "n h w c"], mean: Sequence[float], std: Sequence[float], white: int = 255
) -> Float[Array, "n h w c"]:
    """(x / white - mean) / std for pixels 0..white."""
    return (pixels / white - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)


def center_crop(
    images: UInt[Array | np.ndarray, "n a b c"],
    sizes: Int[Array | np.ndarray, "n 3"],
    *,
    size: ImageSize,
    resize: int,
    interpolation: Interpolation,
    white: int = 255,
) -> Float[Array, "n h w c"]:
    """torchvision's Resize(resize) and CenterCrop(size): whole numbers 0..white.

    The short side becomes `resize` pixels long, and `size` <= `resize` pixels of each side stay. An
    image that already is `resize` x `resize` keeps its pixels. Where `size` is no square, the image
    becomes as small as covers the same shape with a short side of `resize`.
    """
    shape = height_width(size)
    planes, sizes = _set_upright(_planes(images), jnp.asarray(sizes), (shape,))
    sizes, turned = _unpack(sizes)
    cover = [(2 * resize * side + min(shape)) // (2 * min(shape)) for side in shape]
    height, width = sizes[:, 0], sizes[:, 1]
    by_height = cover[0] * width >= cover[1] * height
    resized = jnp.stack(
        [
            jnp.where(by_height, cover[0], cover[1] * height // width),
            jnp.where(by_height, cover[0] * width // height, cover[1]),
        ],
        axis=1,
    )
    start = jnp.round((resized - jnp.array(shape)) / 2)
    rows, columns = (
        resampling_matrix(
            jnp.zeros_like(sizes[:, axis]),
            sizes[:, axis],
            size=shape[axis],
            canvas=planes.shape[2 + axis],
            interpolation=interpolation,
            output_length=resized[:, axis],
            output_start=start[:, axis].astype(jnp.int32),
        )
        for axis in (0, 1)
    )
    pixels = _upright(resample(planes, rows, columns, white), turned)
    return pixels.transpose(0, 2, 3, 1)


def _shape(view: View) -> tuple[int, int]:
    assert view.size is not None  # a recipe's views have got it by now
    return height_width(view.size)


def _planes(images: UInt[Array | np.ndarray, "n a b c"]) -> Float[Array, "n c a b"]:
    return jnp.asarray(images).transpose(0, 3, 1, 2).astype(jnp.float32)


def _unpack(
    sizes: Int[Array | np.ndarray, "n 3"],
) -> tuple[Int[Array, "n 2"], Bool[Array, "n"]]:
    """Heights and widths on the canvas, and which images lie turned there."""
    sizes = jnp.asarray(sizes)
    return sizes[:, :2], sizes[:, 2] == 1


def _set_upright(
    planes: Float[Array, "n c a b"],
    sizes: Int[Array, "n 3"],
    shapes: Sequence[tuple[int, int]],
) -> tuple[Float[Array, "n c a2 b"], Int[Array, "n 3"]]:
    """Images and sizes with none turned, where one of the shapes to be made is no square.

    A square result is turned instead, which costs less; that of another shape would be another.
    """
    height, width = planes.shape[2:]
    if height >= width or all(rows == columns for rows, columns in shapes):
        return planes, sizes
    planes = jnp.pad(planes, ((0, 0), (0, 0), (0, width - height), (0, 0)))
    turned = sizes[:, 2] == 1
    upright = jnp.where(turned[:, None], sizes[:, [1, 0]], sizes[:, :2])
    return _upright(planes, turned), jnp.pad(upright, ((0, 0), (0, 1)))


def _upright(pixels: Float[Array, "n c h w"], turned: Bool[Array, "n"]) -> Float[Array, "n c h w"]:
    if pixels.shape[2] != pixels.shape[3]:  # no image lies turned
        return pixels
    return jnp.where(turned[:, None, None, None], pixels.swapaxes(2, 3), pixels)


def _make_view(
    key: Key[Array, ""],
    planes: Float[Array, "n c a b"],
    sizes: Int[Array, "n 3"],
    view: View,
    white: int,
) -> Float[Array, "n c h w"]:
    keys = [jax.random.fold_in(key, operator) for operator in range(6)]
    num_images = len(planes)

    def some(key: Key[Array, ""], probability: float, changed: Array, images: Array) -> Array:
        chosen = jax.random.bernoulli(key, probability, (num_images,))
        return jnp.where(chosen[:, None, None, None], changed, images)

    def recolor(pixels: Array, filled: Array | None) -> Array:
        if view.has_jitter:
            choice, numbers = jax.random.split(keys[_JITTER])
            changed = _jitter(numbers, pixels, view, filled)
            pixels = some(choice, view.jitter_probability, changed, pixels)
        if view.grayscale_probability > 0:
            gray = color.grayscale(pixels)
            pixels = some(keys[_GRAYSCALE], view.grayscale_probability, gray, pixels)
        return pixels

    has_color = planes.shape[1] == 3 and white == 255
    if view.color_first and has_color:
        planes = recolor(planes, jnp.prod(sizes[:, :2], axis=1) / math.prod(planes.shape[2:]))
    pixels = _crop_and_flip(keys[_CROP], keys[_FLIP], planes, sizes, view, white)
    if not view.color_first and has_color:
        pixels = recolor(pixels, None)
    if view.blur_probability > 0:
        choice, numbers = jax.random.split(keys[_BLUR])
        low, high = view.blur_sigma
        sigma = jax.random.uniform(numbers, (num_images,), minval=low, maxval=high)
        blurred = color.gaussian_blur(pixels, sigma, max_sigma=high, white=white)
        pixels = some(choice, view.blur_probability, blurred, pixels)
    if view.solarize_probability > 0 and has_color:
        inverted = color.solarize(pixels)
        pixels = some(keys[_SOLARIZE], view.solarize_probability, inverted, pixels)
    return pixels


def _crop_and_flip(
    crop_key: Key[Array, ""],
    flip_key: Key[Array, ""],
    planes: Float[Array, "n c a b"],
    sizes: Int[Array, "n 3"],
    view: View,
    white: int,
) -> Float[Array, "n c h w"]:
    shape = _shape(view)
    sizes, turned = _unpack(sizes)

    def swapped(pairs: Array) -> Array:
        """From upright images to images as they lie, and back."""
        return jnp.where(turned[:, None], pairs[:, ::-1], pairs)

    if view.crop == "random":
        low, high = (ratio * shape[1] / shape[0] for ratio in view.crop_ratio)
        boxes = random_boxes(crop_key, swapped(sizes), view.crop_scale, (low, high))
    else:
        boxes = center_boxes(swapped(sizes), shape)
    start, length = swapped(boxes[:, :2]), swapped(boxes[:, 2:])
    rows, columns = (
        resampling_matrix(
            start[:, axis],
            length[:, axis],
            size=shape[axis],
            canvas=planes.shape[2 + axis],
            interpolation=view.interpolation,
        )
        for axis in (0, 1)
    )
    if view.flip_probability > 0:
        # The last operator, but all the others commute with it, and here it costs nothing.
        flipped = jax.random.bernoulli(flip_key, view.flip_probability, (len(sizes),))
        rows = jnp.where((flipped & turned)[:, None, None], rows[:, ::-1], rows)
        columns = jnp.where((flipped & ~turned)[:, None, None], columns[:, ::-1], columns)
    return _upright(resample(planes, rows, columns, white), turned)


def _jitter(
    key: Key[Array, ""], pixels: Float[Array, "n 3 h w"], view: View, filled: Array | None
) -> Float[Array, "n 3 h w"]:
    operators, factors, order = jitter_numbers(key, len(pixels), view)
    if filled is not None:
        contrast = partial(color.adjust_contrast, filled=filled)
        operators = tuple(contrast if o is color.adjust_contrast else o for o in operators)
    return color.color_jitter(pixels, operators, factors, order)


def jitter_numbers(
    key: Key[Array, ""], num_images: int, view: View
) -> tuple[tuple[color.Operator, ...], Float[Array, "k n"], Int[Array, "n k"]]:
    """torchvision's ColorJitter: the k operators whose range is not 0, their factors and order.

    Factors are uniform in their ranges; each image's order is a uniform permutation of 0..k-1.
    """
    ranges = (
        (color.adjust_brightness, max(0.0, 1 - view.brightness), 1 + view.brightness),
        (color.adjust_contrast, max(0.0, 1 - view.contrast), 1 + view.contrast),
        (color.adjust_saturation, max(0.0, 1 - view.saturation), 1 + view.saturation),
        (color.adjust_hue, -view.hue, view.hue),
    )
    used = [k for k, (_, low, high) in enumerate(ranges) if high > low]
    # Numbers for every operator, also a dropped one, so that dropping it changes no other's.
    factor_key, order_key = jax.random.split(key)
    uniform = jax.random.uniform(factor_key, (len(ranges), num_images))
    factors = [low + (high - low) * uniform[k] for k, (_, low, high) in enumerate(ranges)]
    ranks = jax.random.uniform(order_key, (num_images, len(ranges)))
    return (
        tuple(ranges[k][0] for k in used),
        jnp.stack([factors[k] for k in used]),
        jnp.argsort(jnp.stack([ranks[:, k] for k in used], axis=1), axis=1),
    )

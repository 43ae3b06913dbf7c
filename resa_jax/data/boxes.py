"""Where crops lie in their images."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key


_TRIES = 10


def random_boxes(
    key: Key[Array, ""],
    sizes: Int[Array | np.ndarray, "n 2"],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Int[Array, "n 4"]:
    """Boxes (top, left, height, width) distributed as torchvision's RandomResizedCrop has them.

    Of ten candidates, with the area uniform in `scale` times the image's area and the logarithm of
    width over height uniform in that of `ratio`, the first that fits inside of the image is taken,
    at a uniform place; where none fits, the largest centred box whose ratio is in range.
    """
    height, width = sizes[:, :1].astype(jnp.float32), sizes[:, 1:].astype(jnp.float32)
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    shape = (len(sizes), _TRIES)
    area = height * width * jax.random.uniform(area_key, shape, minval=scale[0], maxval=scale[1])
    log_ratio = jax.random.uniform(
        ratio_key, shape, minval=math.log(ratio[0]), maxval=math.log(ratio[1])
    )
    box_width = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio)))
    box_height = jnp.round(jnp.sqrt(area / jnp.exp(log_ratio)))
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = jnp.argmax(fits, axis=1, keepdims=True) == jnp.arange(_TRIES)
    box = jnp.stack([(box_height * first).sum(axis=1), (box_width * first).sum(axis=1)], axis=1)
    extent = jnp.concatenate([height, width], axis=1)
    uniform = jax.random.uniform(place_key, (len(sizes), 2))
    start = jnp.minimum(jnp.floor(uniform * (extent - box + 1)), extent - box)

    whole_ratio = width / height
    fallback = jnp.concatenate(
        [
            jnp.where(whole_ratio < ratio[0], jnp.round(width / ratio[0]), height),
            jnp.where(whole_ratio > ratio[1], jnp.round(height * ratio[1]), width),
        ],
        axis=1,
    )
    some_fit = fits.any(axis=1, keepdims=True)
    box = jnp.where(some_fit, box, fallback)
    start = jnp.where(some_fit, start, jnp.floor((extent - fallback) / 2))
    return jnp.concatenate([start, box], axis=1).astype(jnp.int32)


def center_boxes(
    sizes: Int[Array | np.ndarray, "n 2"], shape: tuple[int, int] = (1, 1)
) -> Int[Array, "n 4"]:
    """The largest centred box of a shape in each image, as (top, left, height, width)."""
    height, width = sizes[:, 0], sizes[:, 1]
    box = jnp.stack(
        [
            jnp.minimum(height, jnp.maximum(width * shape[0] // shape[1], 1)),
            jnp.minimum(width, jnp.maximum(height * shape[1] // shape[0], 1)),
        ],
        axis=1,
    )
    return jnp.concatenate([(sizes - box) // 2, box], axis=1)

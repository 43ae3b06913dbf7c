"""Rows of small images under captions, as one picture."""

import textwrap

import numpy as np
from jaxtyping import UInt
from PIL import Image, ImageDraw, ImageFont

from resa_jax.data.images import visible


TILE = 72  # side of an image, pixels
GAP = 4
CAPTION = 120  # width of the captions, pixels


def montage(
    rows: list[list[UInt[np.ndarray, "_ _ _"]]], captions: list[str], *, queries: bool = False
) -> Image.Image:
    """One row of images of any size for each caption, which stands to its left.

    Args:
      queries: the first image of each row stands apart from the others.
    """
    columns = max(map(len, rows))
    apart = TILE // 4 if queries else 0
    width = CAPTION + columns * (TILE + GAP) + GAP + apart
    picture = Image.new("RGB", (width, len(rows) * (TILE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12)
    for number, (images, caption) in enumerate(zip(rows, captions, strict=True)):
        top = GAP + number * (TILE + GAP)
        lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, 18)[:2]]
        middle = top + TILE / 2
        draw.multiline_text((GAP, middle), "\n".join(lines), "black", font, anchor="lm")
        for column, image in enumerate(images):
            left = CAPTION + column * (TILE + GAP) + (apart if column else 0)
            tile = _fit(image)
            offset = (TILE - tile.width) // 2, (TILE - tile.height) // 2
            picture.paste(tile, (left + offset[0], top + offset[1]))
    return picture


def _fit(image: np.ndarray) -> Image.Image:
    """The image with its long side as long as a tile; small images in whole, sharp pixels."""
    picture = Image.fromarray(visible(image))
    scale = TILE / max(picture.size)
    if scale >= 2:
        scale = int(scale)
    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BOX)

"""How large the images are that a network sees. Imports nothing heavy."""

from typing import Any

from resa_jax.fields import Rule


ImageSize = int | tuple[int, int]  # pixels: the side of a square, or height and width


def height_width(size: ImageSize) -> tuple[int, int]:
    """Of images of this size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def size_in_words(size: ImageSize) -> str:
    """As in "32 px" or "64 x 96 px", height first."""
    return " x ".join(map(str, (size,) if isinstance(size, int) else size)) + " px"


def from_list(size: Any) -> ImageSize:
    """The same where height and width may be a list, as JSON has them."""
    return size if isinstance(size, int) else (size[0], size[1])


IMAGE_SIZE = Rule(
    "a positive whole number, or height and width, (h, w), at most 8192",
    lambda x: all(0 < side <= 8192 for side in height_width(x)),
)

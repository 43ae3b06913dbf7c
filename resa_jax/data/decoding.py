"""How image files become arrays. Imports nothing heavy."""

from dataclasses import dataclass, fields
from typing import Any


LONG_SIDE = 1.5  # an image's longest, in sides of the canvas: 3 by 2 stays whole


@dataclass(frozen=True)
class Decoding:
    """How files become pixels; the fields of `config.data` with the same names.

    Attributes:
      canvas: larger images are reduced until their short side has as many pixels at most, and their
        long side at most 1.5 times as many.
      max_pixels: an image with more is refused before it is decoded.
      gray_max: the value of white in images of more than 8 bits; higher ones are white too.
      channels: of the pixels: 1 is gray, 3 RGB; others are bands or pages, as they are.
      bits: 8, for uint8 from 0 to 255; or 16, for uint16 from 0 to `gray_max`.
    """

    canvas: int = 512
    max_pixels: int = 89_478_485  # where Pillow begins to warn
    gray_max: int = 65_535
    channels: int = 3
    bits: int = 8

    @classmethod
    def of(cls, data: Any) -> "Decoding":
        """What `config.data` says."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})

    @property
    def dtype(self) -> str:
        """Of the pixels, as NumPy names it."""
        return "uint8" if self.bits == 8 else "uint16"

    @property
    def white(self) -> int:
        """The pixels' highest value."""
        return 255 if self.bits == 8 else self.gray_max

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the canvas that every image fits on, those that are higher than wide lying turned."""
        return self.canvas, int(LONG_SIDE * self.canvas), self.channels

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image is reduced to."""
        short, long = sorted((width, height))
        scale = min(1, self.canvas / short, LONG_SIDE * self.canvas / long)
        return max(round(width * scale), 1), max(round(height * scale), 1)


RGB = Decoding()

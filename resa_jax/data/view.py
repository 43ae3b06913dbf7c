"""How one view of an image is made. Imports nothing heavy; `augment` does what this says."""

from dataclasses import dataclass
from typing import Literal

from resa_jax.fields import PROBABILITY, between, field, increasing, not_negative
from resa_jax.image_size import IMAGE_SIZE


Crop = Literal["random", "center"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class View:
    """A view's augmentations; a probability or range of 0 drops its operator from the program.

    The defaults are those of the weak view: a resized crop and a flip.
    """

    size: int | tuple[int, int] | None = field(
        None, IMAGE_SIZE, "side in pixels, or (height, width); none: the encoder's image size"
    )
    crop: Crop = field(
        "random",
        "random: torchvision's RandomResizedCrop; center: the largest centred crop of the view's "
        "shape",
    )
    crop_scale: tuple[float, float] = field(
        (0.2, 1.0), increasing(1, "shares of the image's area"), "the crop's area over the image's"
    )
    crop_ratio: tuple[float, float] = field(
        (3 / 4, 4 / 3), increasing(100), "the crop's width over its height, over the view's"
    )
    interpolation: Interpolation = field("bilinear", "antialiased, as in Pillow")
    flip_probability: float = field(0.5, PROBABILITY, "of the horizontal flip")
    jitter_probability: float = field(
        0.0, PROBABILITY, "of the colour jitter, its operators in random order"
    )
    color_first: bool = field(False, "jitter and gray before the crop, on the whole image")
    brightness: float = field(0.0, not_negative(100), "factors from 1 - x (at least 0) to 1 + x")
    contrast: float = field(0.0, not_negative(100), "likewise")
    saturation: float = field(0.0, not_negative(100), "likewise")
    hue: float = field(0.0, between(0, 0.5), "shifts from -x to x, in full turns")
    grayscale_probability: float = field(0.0, PROBABILITY, "of dropping the colour")
    blur_probability: float = field(0.0, PROBABILITY, "of the Gaussian blur")
    blur_sigma: tuple[float, float] = field(
        (0.1, 2.0), increasing(100), "the blur's standard deviation, pixels"
    )
    solarize_probability: float = field(0.0, PROBABILITY, "of inverting all values from 128 up")

    @property
    def has_jitter(self) -> bool:
        """Whether the jitter changes anything."""
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        return self.jitter_probability > 0 and max(ranges) > 0

    @property
    def has_color(self) -> bool:
        """Whether some operator is for RGB of 8 bits alone."""
        return self.has_jitter or self.grayscale_probability + self.solarize_probability > 0

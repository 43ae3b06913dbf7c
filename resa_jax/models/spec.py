"""What an encoder is, apart from its weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from resa_jax.data.decoding import Decoding
from resa_jax.errors import UserError
from resa_jax.image_size import ImageSize, from_list, height_width
from resa_jax.models.encoders import create_encoder
from resa_jax.models.resnet import ResNet
from resa_jax.models.vit import VITS, ViT


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def is_small(image_size: ImageSize) -> bool:
    """Whether images are treated as CIFAR's: not cropped, and scored by its protocols."""
    return max(height_width(image_size)) <= 96


def usual_resize(image_size: ImageSize) -> int:
    """The short side before the centre crop: ImageNet's 256 for 224; small images stay whole."""
    short = min(height_width(image_size))
    return short if is_small(image_size) else round(short * 256 / 224)


@dataclass(frozen=True)
class EncoderSpec:
    """What it takes to build an encoder and to feed it.

    Attributes:
      name: architecture, one of `resa_jax.models.ENCODERS`.
      image_size: side of the images in pixels, or height and width.
      patch_size, width, depth: None where the name decides.
      channels: of the images.
      bits, gray_max: of their values, as in `Decoding`.
      mean, std: of the channels, in 0..1, by which images are normalised.
      resize: short side in pixels of what an image is resized to before its centre is cropped.
    """

    name: str
    image_size: ImageSize
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None
    channels: int = 3
    bits: int = 8
    gray_max: int = 65_535

    @property
    def height_width(self) -> tuple[int, int]:
        """Of its images, pixels."""
        return height_width(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a ViT's patches."""
        patch = self.patch_size or VITS[self.name].patch_size
        height, width = self.height_width
        return height // patch, width // patch

    @property
    def decoding(self) -> Decoding:
        """How its images are decoded; large enough for what is cropped from them."""
        short, long = sorted(self.height_width)
        resize = max(self.resize or 0, usual_resize(self.image_size))
        canvas = max(512, -(-resize * long // short))
        return Decoding(canvas, gray_max=self.gray_max, channels=self.channels, bits=self.bits)

    @property
    def family(self) -> str:
        """ "vit" or "convnet", which decides the heads and the names of the layers."""
        return "vit" if self.name in VITS else "convnet"

    @classmethod
    def from_config(cls, config: ConfigDict | dict) -> "EncoderSpec":
        """The encoder of a resolved recipe."""
        encoder, data = config["encoder"], config["data"]
        return cls(
            name=encoder["name"],
            image_size=from_list(encoder["image_size"]),
            patch_size=encoder["patch_size"],
            width=encoder["width"],
            depth=encoder["depth"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            resize=data["resize"],
            channels=data["channels"],
            bits=data["bits"],
            gray_max=data["gray_max"],
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EncoderSpec":
        """From its fields as JSON has them, tuples as lists.

        Raises:
          IndexError, KeyError, TypeError, ValueError: they are others.
        """
        tuples: dict[str, Any] = {name: tuple(map(float, values[name])) for name in ("mean", "std")}
        tuples["image_size"] = from_list(values["image_size"])
        return cls(**{**values, **tuples})

    def normalized(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> "EncoderSpec":
        """The same encoder with another mean and standard deviation, where they are given.

        Raises:
          UserError: not one number for each channel, or numbers that make no sense.
        """
        given = {"mean": mean, "std": std}
        for name, numbers in given.items():
            if numbers is None:
                continue
            if len(numbers) != self.channels:
                raise UserError(
                    f"{name} has {len(numbers)} numbers; the encoder takes images of "
                    f"{self.channels} channels."
                )
            if not all(0 <= n <= 1 and (name == "mean" or n > 0) for n in numbers):
                says = "between 0 and 1" if name == "mean" else "above 0, at most 1"
                raise UserError(f"{name} is {tuple(numbers)}; it must be numbers {says}.")
        changes: dict[str, Any] = {
            name: tuple(map(float, n)) for name, n in given.items() if n is not None
        }
        return dataclasses.replace(self, **changes)

    def create(self) -> ResNet | ViT:
        """The network with the shapes of its arrays in their place."""
        return nnx.eval_shape(
            lambda: create_encoder(
                self.name,
                image_size=self.image_size,
                patch_size=self.patch_size,
                width=self.width,
                depth=self.depth,
                channels=self.channels,
                rngs=nnx.Rngs(0),
            )
        )

    def build(self) -> nnx.GraphDef:
        """The network's structure, to be merged with its arrays."""
        return nnx.split(self.create(), nnx.Param, nnx.BatchStat)[0]

"""Encoders by name."""

import difflib

from flax import nnx

from resa_jax.errors import UserError
from resa_jax.image_size import ImageSize, height_width
from resa_jax.models.names import ENCODERS
from resa_jax.models.resnet import ResNet
from resa_jax.models.vit import VITS, ViT, ViTSize


# The authors' stem for CIFAR, and a true 3x3 stem for small images.
_SMALL_STEMS = {"resnet18_cifar": "cifar", "resnet18_small": "small"}


def create_encoder(
    name: str,
    *,
    image_size: ImageSize,
    patch_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    channels: int = 3,
    zero_init: bool | None = None,
    dtype=None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> ResNet | ViT:
    """An encoder: `encoder(images [n, h, w, channels], train=...)` gives encodings [n,
    encoder.num_features].

    name: one of ENCODERS; it decides the stem and the initialisation.
    image_size: pixels of a side, or (height, width); sets a ViT's position table. Other sizes can
    be passed to any encoder.
    patch_size, depth: of a ViT, if other than the name's; depth counts blocks.
    width: channels of a ResNet's stem (64 by name) or a ViT's embedding, whose heads keep their
    size by name.
    channels: of the images.
    zero_init: whether the last scale of a ResNet's blocks starts at 0; None: not in a ResNet-18.
    dtype: None computes in the type of images and parameters; jnp.bfloat16 computes in it with
    float32 parameters.
    remat: compute each block's activations anew in the backward pass, for memory.

    Raises UserError for an unknown name (naming the nearest), an option that the architecture
    lacks, or sizes that do not divide.
    """
    check_encoder_name(name)
    if name in VITS:
        if zero_init is not None:
            raise UserError(f"encoder.zero_init is {zero_init}, but {name} has none: leave it out.")
        size = _vit_size(name, image_size, patch_size, width, depth)
        return ViT(
            size, image_size=image_size, channels=channels, dtype=dtype, remat=remat, rngs=rngs
        )
    for option, value in (("patch_size", patch_size), ("depth", depth)):
        if value is not None:
            raise UserError(
                f"encoder.{option} is {value}, but {name} has no {option}: leave it out."
            )
    if width is not None and width < 1:
        raise UserError(f"encoder.width is {width}; it must be at least 1.")
    base = name.split("_")[0]
    return ResNet(
        base,
        stem=_SMALL_STEMS.get(name, "imagenet"),
        zero_init=base != "resnet18" if zero_init is None else zero_init,
        channels=channels,
        width=64 if width is None else width,
        dtype=dtype,
        remat=remat,
        rngs=rngs,
    )


def check_encoder_name(name: str) -> None:
    """Raises UserError for an unknown encoder name."""
    if name not in ENCODERS:
        nearest = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0)[0]
        raise UserError(
            f"There is no encoder named {name!r}; the nearest is {nearest!r}. "
            f"Known are: {', '.join(ENCODERS)}."
        )


def _vit_size(
    name: str, image_size: ImageSize, patch_size: int | None, width: int | None, depth: int | None
) -> ViTSize:
    """The named ViT's sizes with the given ones in their place, checked."""
    size = VITS[name]
    if patch_size is not None:
        size = size._replace(patch_size=patch_size)
    if depth is not None:
        size = size._replace(depth=depth)
    if width is not None:
        head = size.width // size.heads
        heads = size.heads if width % head else width // head
        size = size._replace(width=width, heads=heads)
    patch = size.patch_size
    if size.depth < 1:
        raise UserError(f"encoder.depth is {size.depth}; a ViT has at least 1 block.")
    if patch < 1 or any(side < patch or side % patch for side in height_width(image_size)):
        raise UserError(
            f"encoder.image_size is {image_size}, which patches of {patch} px do not divide: "
            f"use a multiple of {patch}."
        )
    if size.width < 4 or size.width % 4 or size.width % size.heads:
        raise UserError(
            f"encoder.width is {size.width}; it must be divisible by 4 (positions) and "
            f"by {size.heads} (heads)."
        )
    if size.conv_stem and (patch < 2 or patch & (patch - 1) or size.width % (patch // 2)):
        raise UserError(
            "A convolutional stem needs a patch_size that is a power of 2 and a width divisible by "
            f"its half, but encoder.patch_size is {patch} and encoder.width {size.width}."
        )
    return size

"""Which of our architectures a set of PyTorch tensors is, told from names and shapes."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resa_jax.errors import UserError
from resa_jax.models.encoders import ENCODERS, check_encoder_name
from resa_jax.models.positions import sincos_table
from resa_jax.models.resnet import RESNETS, Bottleneck
from resa_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, is_small, usual_resize
from resa_jax.models.vit import VITS


# Of CIFAR-10, as the authors train with (their evaluation rounds the std: 0.247, 0.243, 0.261).
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2470, 0.2435, 0.2616)


def infer_spec(
    path: Path, tensors: Mapping[str, np.ndarray], arch: str | None, *, full: bool
) -> EncoderSpec:
    """The encoder that the tensors are of: its name, and the sizes that a name leaves open.

    Left open are a ResNet's width and a ViT's patch and image size. Nothing in a file says how its
    images were normalised: ImageNet's statistics are taken, CIFAR-10's for the 3x3 stems.

    Args:
      path: for messages.
      tensors: of the encoder, by torchvision's or timm's names.
      arch: the name if the user has given one; then nothing is inferred but sizes.
      full: the tensors come from a checkpoint of the authors' code, whose 3x3 stem is
        `resnet18_cifar`'s.

    Raises:
      UserError: when no architecture, or more than one, has tensors of these names and shapes; it
        names the nearest, or the candidates.
    """
    if arch is not None:
        check_encoder_name(arch)
        return _sized(arch, tensors)
    distances = {name: _distance(name, tensors) for name in ENCODERS}
    smallest = min(distances.values())
    if smallest == math.inf:
        first = ", ".join(list(tensors)[:3])
        raise UserError(f"{path} holds neither a ResNet nor a ViT; its first tensors are {first}.")
    names = [name for name, distance in distances.items() if distance == smallest]
    if smallest > 0:
        raise UserError(
            f"{path} holds no architecture known here ({_describe(tensors)}); the nearest is "
            f"{names[0]}. Known are: {', '.join(ENCODERS)}."
        )
    if "vit_s16_mocov3" in names:
        return _sized(find_table(tensors) or "vit_s16", tensors)
    if full and "resnet18_cifar" in names:
        return _sized("resnet18_cifar", tensors)
    if len(names) > 1:
        raise UserError(
            f"{path} could be {' or '.join(names)}, which have tensors of the same shapes: "
            f"say which by --arch={names[0]}."
        )
    return _sized(names[0], tensors)


def nearest_arch(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The architecture most like the tensors, None if they are neither a ResNet's nor a ViT's."""
    distances = {name: _distance(name, tensors) for name in ENCODERS}
    name = min(distances, key=lambda name: distances[name])
    return None if distances[name] == math.inf else name


def find_table(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Whose position table this is: that of "vit_s16", of "vit_s16_mocov3", or None for another.

    A grid of one patch has the same table in both, which says nothing.
    """
    table, grid = tensors.get("pos_embed"), _grid(tensors)
    if table is None or table.ndim != 3 or table.shape[2] % 4 or grid < 2:
        return None
    for name in ("vit_s16", "vit_s16_mocov3"):
        known = sincos_table(table.shape[2], grid, grid, rows_first=VITS[name].rows_first)
        if table.shape[1:] == known.shape and np.allclose(table[0], known, atol=1e-4):
            return name
    return None


def _sized(name: str, tensors: Mapping[str, np.ndarray]) -> EncoderSpec:
    """The named encoder with the sizes that the tensors show, where a name leaves them open."""
    if name in VITS:
        patch = _patch_size(tensors) or VITS[name].patch_size
        size = (_grid(tensors) or 14) * patch
        own = patch == VITS[name].patch_size
        return EncoderSpec(
            name,
            image_size=size,
            patch_size=None if own else patch,
            resize=None if is_small(size) else usual_resize(size),
            **_channels(tensors, IMAGENET_MEAN, IMAGENET_STD),
        )
    width = _length(tensors, "conv1.weight", 0)
    width = None if width == 64 else width
    if name in RESNETS:
        channels = _channels(tensors, IMAGENET_MEAN, IMAGENET_STD)
        return EncoderSpec(name, image_size=224, width=width, resize=usual_resize(224), **channels)
    channels = _channels(tensors, _CIFAR_MEAN, _CIFAR_STD)
    return EncoderSpec(name, image_size=32, width=width, **channels)


def _channels(tensors, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """How many channels the first layer takes, and their statistics: of others than three the mean
    of the three.
    """
    first = ("conv1.weight", "patch_embed.proj.weight", "patch_embed.proj.0.weight")
    lengths = [_length(tensors, name, 1) for name in first]
    channels = next(filter(None, lengths), 3)
    if channels != 3:
        mean, std = ((round(sum(x) / 3, 4),) * channels for x in (mean, std))
    return {"channels": channels, "mean": mean, "std": std}


def _distance(name: str, tensors: Mapping[str, np.ndarray]) -> float:
    """How far the named architecture is from the tensors: 0 where all that tells it apart fits."""
    if name in VITS:
        blocks = _count("blocks.", tensors)
        if not blocks:
            return math.inf
        size = VITS[name]
        width = _length(tensors, "norm.weight", 0) or size.width
        scaled = "blocks.0.ls1.gamma" in tensors
        named = size.layer_scale is not None
        return (
            10 * abs(math.log(width / size.width))
            + abs(blocks - size.depth)
            + (("patch_embed.proj.0.weight" in tensors) != size.conv_stem)
            + (scaled != named)
            + (("blocks.0.mlp.w12.weight" in tensors) != size.gated)
            + (("pos_embed" not in tensors) != size.rotary)
            + ((_length(tensors, "register_tokens", 1) or 0) != size.registers)
            # DeiT III and DINOv2 differ in their patches alone; of others these are left open.
            + (scaled and named and _patch_size(tensors) != size.patch_size)
        )
    stages = [_count(f"layer{stage}.", tensors) for stage in range(1, 5)]
    if not any(stages):
        return math.inf
    block, own_stages = RESNETS[name.split("_")[0]]
    bottleneck = any(re.fullmatch(r"layer1\.\d+\.conv3\.weight", key) for key in tensors)
    distance = 10 * (bottleneck != (block is Bottleneck))
    distance += sum(abs(a - b) for a, b in zip(stages, own_stages, strict=True))
    kernel = _length(tensors, "conv1.weight", 3)
    return float(distance + (kernel not in (None, 7 if name in RESNETS else 3)))


def _count(prefix: str, tensors: Mapping[str, np.ndarray]) -> int:
    """How many numbered children the prefix has: the highest number plus one."""
    rest = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    numbers = [int(name.split(".")[0]) for name in rest if name.split(".")[0].isdigit()]
    return max(numbers, default=-1) + 1


def _patch_size(tensors: Mapping[str, np.ndarray]) -> int | None:
    if "patch_embed.proj.weight" in tensors:
        return _length(tensors, "patch_embed.proj.weight", 3)
    # A convolutional stem halves the image with each 3x3 convolution; the 1x1 comes after them.
    layers = _count("patch_embed.proj.", tensors) // 3
    return 2**layers if layers else None


def _grid(tensors: Mapping[str, np.ndarray]) -> int:
    """Patches on a side of the position table, 0 if there is none."""
    return math.isqrt(max((_length(tensors, "pos_embed", 1) or 1) - 1, 0))


def _length(tensors: Mapping[str, np.ndarray], name: str, axis: int) -> int | None:
    """The length of a tensor's axis, None where there is no such tensor or axis."""
    if name not in tensors or tensors[name].ndim <= axis:
        return None
    return tensors[name].shape[axis]


def _describe(tensors: Mapping[str, np.ndarray]) -> str:
    if blocks := _count("blocks.", tensors):
        return f"a ViT with {blocks} blocks of width {_length(tensors, 'norm.weight', 0)}"
    stages = [_count(f"layer{stage}.", tensors) for stage in range(1, 5)]
    return f"a ResNet with {'-'.join(map(str, stages))} blocks"

"""A folder as timm and Hugging Face release it: weights, and a config.json that says what they are.

The configuration tells what no tensor does: the architecture of a ResNet, the number of heads, how
large images are, and how they are normalised.
"""

import dataclasses
import re
from typing import Any

from resa_jax.errors import UserError
from resa_jax.image_size import ImageSize
from resa_jax.models.spec import EncoderSpec, is_small, usual_resize
from resa_jax.models.vit import VITS
from resa_jax.paths import AnyPath, read_json


_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.safetensors")
# Architectures of timm, without the tag of their training, that are those of this package.
_TIMM = re.compile(
    r"resnet(18|34|50|101)|(vit|deit|deit3)_(tiny|small|base|large|huge|giant)(_plus)?"
    r"_patch\d+(_reg4)?(_dinov[23](_qkvb)?|_\d+)?"
)
_HUGGING_FACE = {
    *("vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_msn"),
    "resnet",
}


def released_weights(path: AnyPath) -> AnyPath | None:
    """The file of weights in such a folder, None where the folder is no such one."""
    if not (path / "config.json").is_file():
        return None
    return next((path / name for name in _WEIGHTS if (path / name).is_file()), None)


@dataclasses.dataclass(frozen=True)
class Release:
    """What a folder's configuration says.

    Attributes:
      path: of the configuration.
      heads: of a ViT, None where it does not say.
      width: of a ViT, None where it does not say.
      mean, std: by which images are normalised, None where it does not say.
      image_size: side of the images, or height and width; None where it does not say.
    """

    path: AnyPath
    heads: int | None = None
    width: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: ImageSize | None = None

    @property
    def arch(self) -> str | None:
        """The architecture where the number of heads decides it."""
        return "vit_s16_mocov3" if (self.heads, self.width) == (12, 384) else None

    def described(self, spec: EncoderSpec) -> EncoderSpec:
        """The encoder's description with what the configuration says of it.

        Its image size counts here for ResNets and rotary ViTs; a position table has its own.

        Raises:
          UserError: it has another number of heads.
        """
        named = VITS.get(spec.name)
        if named is not None and self.heads not in (None, named.heads):
            raise UserError(
                f"{self.path} says that its ViT has {self.heads} heads; a {spec.name} has "
                f"{named.heads}, and other numbers of heads are not known here."
            )
        spec = dataclasses.replace(spec, mean=self.mean or spec.mean, std=self.std or spec.std)
        size = self.image_size
        if size in (None, spec.image_size) or not (named is None or named.rotary):
            return spec
        resize = None if is_small(size) else usual_resize(size)
        return dataclasses.replace(spec, image_size=size, resize=resize)


def read_release(folder: AnyPath) -> Release:
    """Reads config.json, and preprocessor_config.json where there is one.

    Raises:
      UserError: the architecture is another than those of this package, or a file is damaged.
    """
    path = folder / "config.json"
    config = read_json(path)
    timm, kind = config.get("architecture"), config.get("model_type")
    if isinstance(timm, str):
        if _TIMM.fullmatch(timm.partition(".")[0]) is None:
            raise UserError(
                f"{path} says that its architecture is {timm}, which is not known here: its "
                "weights would be read as another one's."
            )
        mean, std = _statistics(config.get("pretrained_cfg"), "mean", "std")
        sizes = config.get("model_args")
        sizes = sizes if isinstance(sizes, dict) else {}
        size = _size(config.get("pretrained_cfg"), "input_size")
        return Release(path, sizes.get("num_heads"), sizes.get("embed_dim"), mean, std, size)
    if not isinstance(kind, str) or kind not in _HUGGING_FACE:
        raise UserError(
            f"{path} says that its model_type is {kind!r}; known here are "
            f"{', '.join(sorted(_HUGGING_FACE))}, and timm's ResNets and ViTs."
        )
    preprocessor = folder / "preprocessor_config.json"
    said = read_json(preprocessor) if preprocessor.is_file() else None
    other = config.get("downsample_in_bottleneck") or config.get("hidden_act", "relu") != "relu"
    if kind == "resnet" and other:
        raise UserError(f"{path} describes a ResNet with other strides or activations than here.")
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    mean, std = _statistics(said, "image_mean", "image_std")
    cropped = not isinstance(said, dict) or said.get("do_center_crop", True)
    size = (_size(said, "crop_size") if cropped else None) or _size(said, "size")
    return Release(path, heads, width, mean, std, size or _size(config, "image_size"))


def _size(said: Any, name: str) -> ImageSize | None:
    """A side in pixels or height and width: a number, a list, or a mapping; None for others.

    Of a list the last two count, as in [channels, height, width].
    """
    value = said.get(name) if isinstance(said, dict) else None
    if isinstance(value, dict):
        value = value.get(
            "shortest_edge", [value.get("height"), value.get("width", value.get("height"))]
        )
    sides = value[-2:] if isinstance(value, list) and len(value) in (2, 3) else [value, value]
    height, width = (x if type(x) is int and 0 < x <= 8192 else None for x in sides)
    if height is None or width is None:
        return None
    return height if height == width else (height, width)


def _statistics(said: Any, *names: str) -> list[tuple[float, ...] | None]:
    values: list[Any] = [said.get(name) if isinstance(said, dict) else None for name in names]
    return [tuple(map(float, value)) if _are_three(value) else None for value in values]


def _are_three(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(x, int | float) and 0 <= x < 1000 for x in value)
    )

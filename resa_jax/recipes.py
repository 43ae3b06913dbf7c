"""What recipes are made of: defaults, the two views, variants, the smoke size."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from resa_jax.config import load_config
from resa_jax.data.view import View
from resa_jax.errors import UserError
from resa_jax.fields import defaults
from resa_jax.schema import GROUPS, Top, method_group


# A method's sizes for batches of 8 (W-MSE: fewer features than images).
_SMOKE = {
    "hidden_size": 32,
    "output_size": 16,
    "predictor_size": 16,
    "num_prototypes": 24,
    "queue_size": 16,
    "slice_size": 8,
    "groups": 2,
}


def get_config(recipe: str, **fields: Any) -> ConfigDict:
    """A recipe for `train`, with some fields changed.

    Args:
      recipe: as for `load_config`.
      fields: values by name; nested ones as in `**{"data.source": "folder:images"}`.

    Raises:
      UserError: with what is wrong and what would be right.

    Examples:
      >>> config = get_config("cifar10_resnet18:simclr", **{"method.temperature": 0.1})
      >>> config.method.temperature, config.batch_size
      (0.1, 256)
    """
    spelled = {name: "none" if value is None else value for name, value in fields.items()}
    return load_config(recipe, [f"{name}={value}" for name, value in spelled.items()])


def default_config(method: str = "resa") -> ConfigDict:
    """All fields of a recipe with their defaults, for one of the methods."""
    groups = {
        name: ConfigDict(defaults(group), type_safe=False)
        for name, group in (GROUPS | {"method": method_group(method)}).items()
        if name not in ("", "views")
    }
    views = {"views": [weak_view(), standard_view()]}
    # Not type-safe, since some fields take several types; check_config knows which.
    return ConfigDict(defaults(Top) | groups | views, type_safe=False).lock()


def weak_view(**changes) -> ConfigDict:
    """The view that the assignment is made of: resized crop (bilinear) and flip."""
    return ConfigDict(defaults(View) | changes, type_safe=False)


def standard_view(**changes) -> ConfigDict:
    """The strongly augmented view: bicubic crop, jitter, grayscale, blur, solarise, flip."""
    strong = {
        "interpolation": "bicubic",
        "jitter_probability": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale_probability": 0.2,
        "blur_probability": 0.5,
        "solarize_probability": 0.2,
    }
    return weak_view(**(strong | changes))


def cifar_config(method: str = "resa") -> ConfigDict:
    """What the CIFAR recipes share (Table 8): ResNet-18, 1,000 epochs, no blur, no predictor."""
    config = default_config(method)
    config.epochs = 1000
    config.base_lr = 0.3
    config.weight_decay = 1e-4
    config.encoder.update({"name": "resnet18_cifar", "image_size": 32})
    config.views = [weak_view(), standard_view(blur_probability=0.0)]
    config.eval.every_epochs = 20
    config.checkpoint.every_epochs = 10
    return config


def imagenet100_config(method: str = "resa") -> ConfigDict:
    """What the ImageNet-100 recipes share: ResNet-18, 400 epochs, bfloat16."""
    config = default_config(method)
    config.epochs = 400
    config.precision = "bfloat16"
    config.encoder.name = "resnet18"
    config.data.resize = 256
    config.eval.every_epochs = 20
    return config


def parse_variant(
    variant: str | None, methods: Sequence[str] = (), **options: bool | int
) -> ConfigDict:
    """Reads the words after a config's colon, as in `imagenet_resnet50.py:bs1024,epochs=200`.

    Args:
      variant: words separated by commas, each `name` (a switch) or `name=value`.
      methods: names of methods that are words too, as is "resa" then; the result's `method` is the
        one given, or "resa".
      **options: the words that the config knows, with their defaults: False for a switch, or a
        whole number.
    """
    values: dict[str, Any] = {"method": "resa"} | options
    methods = ("resa", *methods) if methods else ()
    for word in filter(None, (variant or "").split(",")):
        name, _, text = word.partition("=")
        if word in methods:
            if values["method"] not in ("resa", word):
                raise UserError(f"Variant {variant!r} names two methods; a run has one.")
            values["method"] = word
            continue
        if name not in options:
            words = (*(f"{n}={v}" if v is not False else n for n, v in options.items()), *methods)
            known = ", ".join(words)
            raise UserError(f"This config has no variant {name!r}; it knows: {known}.")
        if options[name] is False:
            if text:
                raise UserError(f"Variant {word} takes no value: write {name}.")
            values[name] = True
            continue
        try:
            values[name] = int(text)
        except ValueError:
            raise UserError(f"Variant {name}={text} needs a whole number.") from None
    return ConfigDict(values)


def apply_smoke(config: ConfigDict, **encoder) -> ConfigDict:
    """Shrinks a recipe to some seconds on a CPU: same code paths, tiny networks, a few steps.

    The images are scikit-learn's digits unless another source is given.

    Args:
      encoder: its sizes, if not a stem of 8 channels.
    """
    if config.final_lr is not None:
        config.final_lr *= 8 / config.batch_size
    config.steps = 3
    config.batch_size = 8
    config.warmup_epochs = 0
    config.log_every = 1
    config.warmup_steps = config.lr_drops = None
    small = _SMOKE | ({"output_size": 4} if config.method.name == "wmse" else {})
    config.method.update({name: n for name, n in small.items() if name in config.method})
    config.data.update({"source": "digits", "test_source": None, "classes": None})
    config.data.long_tail = None
    config.eval.update({"max_images": 64, "batch_size": 32})
    config.encoder.update(encoder or {"width": 8})
    return config

"""Recipes: every field with its default, overrides from the command line, and their checks.

Nothing heavy is imported here, so that a mistake is answered before JAX starts.
"""

import ast
import difflib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from resa_jax.errors import UserError


# Fields that leave the mathematics alone: these alone may change when a run is resumed.
RESUMABLE = ("log_every", "sharding", "data.workers", "data.test_source", "eval.", "checkpoint.")

# Fields that may be None, with the type that they take otherwise.
_OPTIONAL = {
    "steps": int,
    "final_lr": float,
    "init_from": str,
    "encoder.patch_size": int,
    "encoder.width": int,
    "encoder.depth": int,
    "data.test_source": str,
    "data.resize": int,
    "data.classes": str,
    "data.long_tail": float,
}
_CHOICES = {
    "assignment": ("encoding", "embedding", "momentum"),
    "precision": ("float32", "bfloat16"),
    "sharding": ("dp", "fsdp"),
    "optimizer.name": ("sgd", "adamw"),
    "data.on_bad_image": ("error", "skip"),
    "crop": ("random", "center"),
    "interpolation": ("bilinear", "bicubic"),
}
_POSITIVE = (
    *("epochs", "steps", "batch_size", "base_lr", "temperature", "epsilon", "log_every", "size"),
    *("encoder.image_size", "encoder.patch_size", "encoder.width", "encoder.depth"),
    *("projector.hidden_size", "projector.output_size", "data.canvas", "data.resize"),
    *("eval.max_images", "eval.batch_size", "checkpoint.every_epochs", "checkpoint.keep"),
)
_NOT_NEGATIVE = ("warmup_epochs", "weight_decay", "data.workers", "eval.every_epochs")


def default_config() -> ConfigDict:
    """All fields of a recipe, with the values that most of them share."""
    return ConfigDict(
        {
            "seed": 0,
            "epochs": 100,
            "steps": None,  # instead of epochs x steps per epoch
            "batch_size": 256,  # global
            "base_lr": 0.5,  # lr = base_lr x batch_size / 256
            "final_lr": None,  # None: 0.1 x lr
            "warmup_epochs": 2,
            "weight_decay": 1e-5,
            "temperature": 0.4,
            "epsilon": 0.05,
            "ema_momentum": 0.996,
            "symmetric": False,
            "assignment": "encoding",
            "momentum_network": True,
            "predictor": False,
            "precision": "float32",
            "sharding": "dp",
            "init_from": None,  # an encoder to start both networks from
            "log_every": 50,  # steps
            "optimizer": {"name": "sgd"},
            "encoder": {
                "name": "resnet18",
                "image_size": 224,
                "patch_size": None,  # None: by the name; likewise width and depth
                "width": None,
                "depth": None,
                "remat": False,
            },
            "projector": {"hidden_size": 2048, "output_size": 512},
            "views": [weak_view(), standard_view()],
            "data": {
                "source": "digits",
                "test_source": None,
                "mean": (0.485, 0.456, 0.406),  # or "auto": measured on the source
                "std": (0.229, 0.224, 0.225),
                "canvas": 512,  # long side to which large images are reduced, pixels
                "resize": None,  # short side before the centre crop; None: the encoder's image size
                "classes": None,  # a file that lists the classes to keep
                "long_tail": None,  # ratio of the largest class to the smallest
                "on_bad_image": "error",
                "workers": 2,
            },
            "eval": {
                "every_epochs": 0,  # 0: only after the last step
                "max_images": 10_000,  # of each source; the first ones of a fixed shuffle
                "batch_size": 256,
                "baselines": False,  # also show pixels and the random encoder at the end
            },
            "checkpoint": {"every_epochs": 1, "keep": 2},
        },
        type_safe=False,  # check_config knows which fields take several types
    ).lock()


def weak_view(size: int | None = None, **fields) -> ConfigDict:
    """The view that the assignment is made of: resized crop (bilinear) and flip."""
    return ConfigDict(
        {
            "size": size,  # pixels; None: the encoder's image size
            "crop": "random",  # or "center": the largest centred square (Figure 6)
            "crop_scale": (0.2, 1.0),  # share of the area
            "crop_ratio": (3 / 4, 4 / 3),  # width / height
            "interpolation": "bilinear",
            "flip_probability": 0.5,
            "jitter_probability": 0.0,
            "brightness": 0.0,
            "contrast": 0.0,
            "saturation": 0.0,
            "hue": 0.0,
            "grayscale_probability": 0.0,
            "blur_probability": 0.0,
            "blur_sigma": (0.1, 2.0),  # pixels
            "solarize_probability": 0.0,
        }
        | fields
    )


def standard_view(size: int | None = None, **fields) -> ConfigDict:
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
    return weak_view(size, **(strong | fields))


def parse_variant(variant: str | None, **options) -> ConfigDict:
    """Reads the words after a config's colon, as in `imagenet_resnet50.py:bs1024,epochs=200`.

    Args:
      variant: words separated by commas, each `name` (a switch) or `name=value`.
      **options: the words that the config knows, with their defaults, whose type a value takes.
    """
    values = dict(options)
    for word in filter(None, (variant or "").split(",")):
        name, _, text = word.partition("=")
        if name not in options:
            known = ", ".join(f"{n}={v}" if v is not False else n for n, v in options.items())
            raise UserError(f"This config has no variant {name!r}; it knows: {known}.")
        kind = type(options[name])
        try:
            values[name] = True if kind is bool and not text else kind(text)
        except ValueError:
            raise UserError(f"Variant {name}={text} needs {_KINDS[kind]}.") from None
    return ConfigDict(values)


def apply_smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks a recipe to some seconds on a CPU: same code paths, tiny networks, a few steps.

    The images are scikit-learn's digits unless another source is given.
    """
    config.steps = 3
    config.batch_size = 8
    config.warmup_epochs = 0
    config.log_every = 1
    config.projector = ConfigDict({"hidden_size": 32, "output_size": 16})
    config.data.update({"source": "digits", "test_source": None, "workers": 0, "classes": None})
    config.data.long_tail = None
    config.eval.update({"max_images": 64, "batch_size": 32})
    if config.encoder.name.startswith("vit"):
        config.encoder.update({"width": 64, "depth": 2})
    else:
        config.encoder.width = 8
    return config


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads `FILE.py` or `FILE.py:VARIANT`, applies overrides, and checks the result.

    Args:
      path: a Python file with `get_config(variant)`.
      overrides: `field=value` each, as in `views[0].crop_scale=(0.5,1.0)`.

    Raises:
      UserError: with what is wrong and what would be right.
    """
    file, _, variant = path.partition(":")
    if not Path(file).is_file():
        nearby = [str(p) for p in Path("configs").glob("*.py")]
        raise UserError(f"--config={file}: there is no such file.{_nearest(file, nearby)}")
    spec = importlib.util.spec_from_file_location("recipe", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={file}: the file does not define get_config(variant).")
    config = module.get_config(variant or None)
    for override in overrides:
        field, _, text = override.partition("=")
        set_field(config, field, text)
    resolve(config)
    check_config(config)
    return config


def resolve(config: ConfigDict) -> None:
    """Fills in the fields that follow from others."""
    if config.final_lr is None:
        config.final_lr = 0.1 * config.base_lr * config.batch_size / 256
    if config.data.resize is None:
        config.data.resize = config.encoder.image_size
    for view in config.views:
        view.size = view.size or config.encoder.image_size


def check_config(config: ConfigDict) -> None:
    """Raises a `UserError` for the first field whose value makes no sense."""
    for field, value in fields(config):
        name = re.sub(r"^views\[\d+\]\.", "", field)
        wrong = None
        if name in _CHOICES and value not in _CHOICES[name]:
            wrong = f"one of {', '.join(_CHOICES[name])}"
        elif name.endswith("_probability") and not 0 <= value <= 1:
            wrong = "a probability between 0 and 1"
        elif isinstance(value, tuple) and len(value) == 2 and not 0 < value[0] <= value[1]:
            wrong = "two positive numbers, the smaller first"
        elif name == "crop_scale" and value[1] > 1:
            wrong = "shares of the image's area, at most 1"
        elif name in ("ema_momentum",) and not 0 <= value <= 1:
            wrong = "a number between 0 and 1"
        elif name in _NOT_NEGATIVE and value < 0:
            wrong = "0 or more"
        elif name in _POSITIVE and value is not None and not value > 0:
            wrong = "a positive number"
        elif name in ("data.mean", "data.std") and value != "auto" and len(value) != 3:
            wrong = "three numbers, one a channel, or auto"
        if wrong:
            raise UserError(f"config.{field} is {value!r}; it must be {wrong}.")
    if len(config.views) < 2:
        raise UserError(f"config.views has {len(config.views)} view; ReSA needs two at least.")


def set_field(config: ConfigDict, field: str, text: str) -> None:
    """Sets a field, named as in `views[0].crop_scale`, to the value that `text` spells."""
    known = dict(fields(config))
    if field not in known:
        inside = [name for name in known if name.startswith((f"{field}.", f"{field}["))]
        if inside:
            raise UserError(f"config.{field} is a group; set a field of it, as config.{inside[0]}.")
        raise UserError(f"The config has no field {field!r}.{_nearest(field, known)}")
    group, name = config, field
    while match := re.match(r"(\w+)(?:\[(\d+)\])?\.(.+)", name):
        group, name = group[match[1]], match[3]
        if match[2]:
            group = group[int(match[2])]
    try:
        value = _parse(text, _OPTIONAL.get(field, type(known[field])), field)
    except (KeyError, SyntaxError, TypeError, ValueError):
        kind = _KINDS[_OPTIONAL.get(field, type(known[field]))]
        raise UserError(f"config.{field}={text} needs {kind}, as {known[field]!r}.") from None
    group[name] = value


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "as many numbers in parentheses",
}


def _parse(text, kind, field):
    if field in _OPTIONAL and text.lower() in ("none", "null"):
        return None
    if kind is str or (field in ("data.mean", "data.std") and text == "auto"):
        return text
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind is tuple:
        return tuple(float(x) for x in ast.literal_eval(text))
    return kind(text)


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """All leaves of a config as `("views[0].size", 224)` pairs."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        elif isinstance(value, list) and all(isinstance(child, Mapping) for child in value):
            for i, child in enumerate(value):
                yield from fields(ConfigDict(child), f"{prefix}{name}[{i}].")
        else:
            yield prefix + name, value


def flatten(tree: Mapping) -> dict[str, object]:
    """The fields of a config that was read back from JSON, by name."""
    return dict(fields(ConfigDict(tree)))


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON, tuples as lists."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"


def _nearest(name, names):
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not matches:
        # The user may have left out the group: compare with the last parts alone.
        leaves = {known.rpartition(".")[2]: known for known in names}
        near = difflib.get_close_matches(name.rpartition(".")[2], leaves, n=1, cutoff=0.5)
        matches = [leaves[leaf] for leaf in near]
    return f" Did you mean {matches[0]!r}?" if matches else ""

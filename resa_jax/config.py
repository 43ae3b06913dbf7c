"""Reading a recipe: the config file, overrides from the command line, and the checks of both.

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
RESUMABLE = (
    *("log_every", "profile", "sharding", "encoder.remat", "data.workers", "data.test_source"),
    *("eval.", "checkpoint."),
)

# Fields that may be None, with the type that they take otherwise.
_OPTIONAL = {
    "steps": int,
    "final_lr": float,
    "init_from": str,
    "profile": tuple,
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
_NOT_NEGATIVE = (
    *("seed", "warmup_epochs", "weight_decay", "final_lr", "data.workers", "eval.every_epochs"),
    *("brightness", "contrast", "saturation", "hue"),
)
_RANGES = ("crop_scale", "crop_ratio", "blur_sigma")


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
    overridden = set()
    for override in overrides:
        field, equals, text = override.partition("=")
        set_field(config, field, text if equals else "true")
        overridden.add(field)
    if "data.source" in overridden and not config.data.source.startswith("tfds:"):
        # A recipe's subset and test set belong to its own data, not to what the user brings.
        for name in {"test_source", "classes", "long_tail"} - {f[5:] for f in overridden}:
            config.data[name] = None
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
        elif name in _RANGES and not (len(value) == 2 and 0 < value[0] <= value[1]):
            wrong = "two positive numbers, the smaller first"
        elif name == "crop_scale" and value[1] > 1:
            wrong = "shares of the image's area, at most 1"
        elif name == "ema_momentum" and not 0 <= value <= 1:
            wrong = "a number between 0 and 1"
        elif name in _NOT_NEGATIVE and not value >= 0:
            wrong = "0 or more"
        elif name in _POSITIVE and value is not None and not value > 0:
            wrong = "a positive number"
        elif name in ("data.mean", "data.std") and value != "auto" and len(value) != 3:
            wrong = "three numbers, one a channel, or auto"
        elif name == "profile" and value is not None and not _is_window(value):
            wrong = "two whole numbers from 1, the first step and how many"
        if wrong:
            raise UserError(f"config.{field} is {value!r}; it must be {wrong}.")
    if len(config.views) < 2:
        raise UserError(f"config.views has {len(config.views)} view; ReSA needs two at least.")


def _is_window(value):
    return len(value) == 2 and all(number >= 1 and number == int(number) for number in value)


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
    kind = _OPTIONAL.get(field, type(known[field]))
    if field in ("data.mean", "data.std"):
        kind = str if text == "auto" else tuple
    try:
        group[name] = _parse(text, kind, field)
    except (KeyError, SyntaxError, TypeError, ValueError):
        raise UserError(
            f"config.{field}={text} needs {_KINDS[kind]}, as {known[field]!r}."
        ) from None


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "numbers in parentheses",
}


def _parse(text, kind, field):
    if field in _OPTIONAL and text.lower() in ("none", "null"):
        return None
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
        elif name == "views":
            for i, child in enumerate(value):
                yield from fields(child, f"{prefix}{name}[{i}].")
        else:
            yield prefix + name, value


def flatten(tree: Mapping) -> dict[str, object]:
    """The fields of a config that was read back from JSON, by name."""
    views = [ConfigDict(view) for view in tree["views"]]
    return dict(fields(ConfigDict({**tree, "views": views})))


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON, tuples as lists."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"


def _nearest(name, names):
    """A question with the likeliest of `names`, compared whole and without their groups."""

    def likeness(known):
        pairs = (name, known), (name.rpartition(".")[2], known.rpartition(".")[2])
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return f" Did you mean {max(names, key=likeness)!r}?" if names else ""

"""Reading a recipe: its file, overrides from the command line, and the checks of both.

Imports nothing heavy, so that a mistake is answered before JAX starts.
"""

import difflib
import json
import runpy
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from resa_jax.consistency import check_consistency
from resa_jax.errors import UserError
from resa_jax.fields import Field, defaults
from resa_jax.image_size import from_list, height_width
from resa_jax.paths import AnyPath, read_text
from resa_jax.schema import GROUPS, known_fields, method_group


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a recipe, applies overrides, and checks the result.

    Args:
      path: a Python file with `get_config(variant)`, or the name of a recipe that comes with the
        package, as "digits"; behind a colon a variant, as in "digits:smoke".
      overrides: `field=value` each, as in `views[0].crop_scale=(0.5,1.0)`.

    Raises:
      UserError: with what is wrong and what would be right.
    """
    file, _, variant = path.partition(":")
    config = _run_recipe(file, variant or None)
    _check_groups(config, f"--config={file}: ")
    overridden = set()
    # A method's name first, since the other fields of its group follow from it.
    for override in sorted(overrides, key=lambda text: not text.startswith("method.name=")):
        field, equals, text = override.partition("=")
        set_field(config, field, text if equals else "true")
        overridden.add(field)
    if "data.source" in overridden and not config.data.source.startswith("tfds:"):
        # A recipe's subset and test set belong to its own data, not to what the user brings.
        for name in {"test_source", "classes", "long_tail"} - {f[5:] for f in overridden}:
            config.data[name] = None
    check_config(config)  # before numbers are made of it
    resolve(config)
    check_config(config)
    return config


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    package = Path(__file__).parent
    installed = package / "configs"  # in a wheel; a checkout has them beside the package
    folder = installed if installed.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def _run_recipe(file: str, variant: str | None) -> Any:
    """What `get_config(variant)` of a Python file returns; whatever it raises in a sentence."""
    file = str(recipes().get(file, file))
    if "\0" in file or not Path(file).is_file():
        nearby = [*recipes(), *(str(p) for p in Path("configs").glob("*.py"))]
        raise UserError(
            f"--config={file}: there is no such file, nor a recipe of this name; there are "
            f"{', '.join(recipes())}.{_nearest(file, nearby)}"
        )
    try:
        recipe = runpy.run_path(file).get("get_config")
        if not callable(recipe):
            raise UserError(f"--config={file}: the file does not define get_config(variant).")
        return recipe(variant)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # of a file that is the user's
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = "" if line is None else f", line {line}"
        what = str(error).partition("Other fields present")[0].rstrip(". ")
        if what.startswith("'"):  # ml_collections passes a KeyError's text on
            what = what.strip("'.")
        raise UserError(
            f"--config={file}{place}: {type(error).__name__}: {what}. A recipe is a Python file "
            "with get_config(variant) that returns a config, as those in configs/."
        ) from error


def _check_groups(config: Any, where: str) -> None:
    """Raises a `UserError` for what is not built of the groups of fields that there are."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{where}get_config returned {_shown(config)}; it must be a ConfigDict, as "
            "resa_jax.recipes.default_config() returns."
        )
    for name in (*filter(None, GROUPS), "method"):
        group = config.get(name)
        views = isinstance(group, list | tuple) and all(isinstance(v, ConfigDict) for v in group)
        if not (views if name == "views" else isinstance(group, ConfigDict)):
            kind = "a list of groups" if name == "views" else "a group"
            raise UserError(
                f"{where}config.{name} is {_shown(group)}; it must be {kind} of fields."
            )
    if not isinstance(config.method.get("name"), str):
        name = _shown(config.method.get("name"))
        raise UserError(f"{where}config.method.name is {name}; it must be a method's name.")


def _shown(value: Any) -> str:
    """A value in a message: no object's address, nothing that fills the screen."""
    text = repr(value)
    return f"a {type(value).__name__}" if " at 0x" in text or len(text) > 80 else text


def resolve(config: ConfigDict) -> None:
    """Fills in the fields that follow from others."""
    if config.final_lr is None:
        config.final_lr = 0.1 * config.base_lr * config.batch_size / 256
    config.encoder.image_size = size = from_list(config.encoder.image_size)
    if config.data.resize is None:
        config.data.resize = min(height_width(size))
    for view in config.views:
        view.size = size if view.size is None else from_list(view.size)


def check_config(config: ConfigDict) -> None:
    """Raises a `UserError` for the first field that there is not, or whose value makes no sense."""
    _check_fields(config)
    check_consistency(config)


def _check_fields(config: ConfigDict) -> None:
    known = fields_known(config)
    values = dict(fields(config))
    for name, value in values.items():
        if name not in known:
            raise UserError(f"The config has no field {name!r}.{_nearest(name, known)}")
        wrong = known[name].wrong(value)
        if wrong:
            raise UserError(f"config.{name} is {_shown(value)}; it must be {wrong}.")
    for name in known:
        if name not in values:
            raise UserError(f"The config lacks the field {name!r}.")


def set_field(config: ConfigDict, name: str, text: str) -> None:
    """Sets a field, named as in `views[0].crop_scale`, to the value that `text` spells."""
    known = fields_known(config)
    if name not in known:
        inside = [field for field in known if field.startswith((f"{name}.", f"{name}["))]
        if inside:
            raise UserError(f"config.{name} is a group; set a field of it, as config.{inside[0]}.")
        raise UserError(f"The config has no field {name!r}.{_nearest(name, known)}")
    try:
        value = known[name].parse(text)
    except ValueError:
        was = config_path.get_value(name, config)
        raise UserError(
            f"config.{name}={text} needs {known[name].kind_in_words}, as {was!r}."
        ) from None
    if name == "method.name":
        _switch_method(config, value)
    config_path.set_value(name, config, value)


def _switch_method(config: ConfigDict, name: str) -> None:
    """Gives `config.method` another method's fields; what both have and the recipe set stays."""
    old, new = defaults(method_group(config.method.name)), defaults(method_group(name))
    kept = {k: v for k, v in config.method.items() if k in new and v != old[k]}
    config.method = ConfigDict(new | kept)


def fields_known(config: ConfigDict) -> dict[str, Field]:
    """What the fields of a config are declared to be."""
    return known_fields(config.method.name, len(config.views))


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


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON, tuples as lists."""
    return json.dumps(json.loads(config.to_json()), indent=2) + "\n"


def from_json(text: str, file: object = "The text") -> ConfigDict:
    """The inverse of `to_json`; also reads what older versions wrote.

    A field that is younger than the file gets its default: what was done before there was a choice.

    Args:
      file: what the text was read from, for messages.

    Raises:
      UserError: it is no configuration.
    """
    try:
        tree = _completed(_upgrade(json.loads(text)))
        groups = {
            name: ConfigDict(_with_tuples(group))
            for name, group in tree.items()
            if isinstance(group, dict)
        }
        views = [ConfigDict(_with_tuples(view)) for view in tree["views"]]
        config = ConfigDict(_with_tuples(tree) | groups | {"views": views}, type_safe=False)
        _check_fields(config)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if isinstance(error, json.JSONDecodeError):
            what = f"it is not valid JSON: {error}"
        raise UserError(
            f"{file} is no configuration of a run ({what}). Restore it from a copy; each "
            "checkpoint holds one."
        ) from error
    return config


def read_config_file(path: AnyPath) -> ConfigDict:
    """The configuration in a run's config.json; raises as `from_json`."""
    return from_json(read_text(path), path)


def _with_tuples(group: Mapping) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in group.items()}


def _upgrade(tree: dict) -> dict:
    """Before 0.2 there was one method, whose fields and heads lay at the top level."""
    if "method" in tree:
        return tree
    own = ("temperature", "epsilon", "symmetric", "assignment", "momentum_network", "predictor")
    rest = {k: v for k, v in tree.items() if k not in (*own, "projector")}
    method = {"name": "resa"} | {name: tree[name] for name in own} | tree["projector"]
    return rest | {"method": method}


def _completed(tree: dict) -> dict:
    groups = GROUPS | {"method": method_group(tree["method"]["name"])}
    view_defaults = defaults(groups.pop("views"))
    views = [view_defaults | view for view in tree["views"]]
    own = {name: defaults(group) | tree.get(name, {}) for name, group in groups.items() if name}
    return defaults(groups[""]) | tree | own | {"views": views}


def _nearest(name: str, names: Iterable[str]) -> str:
    """A question with the likeliest of `names`, compared whole and without their groups."""

    def likeness(known):
        pairs = (name, known), (name.rpartition(".")[2], known.rpartition(".")[2])
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return f" Did you mean {max(names, key=likeness)!r}?" if names else ""

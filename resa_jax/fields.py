"""Fields: default, kind, what is allowed and what it means, side by side in a dataclass.

    base_lr: float = field(0.5, positive(1e6), "learning rate for 256 images")

The annotation is the kind: bool, int, float, str, a Literal, a tuple of numbers, or one of these
or None. Parsing, refusals, `--help` and the page of the docs all read this. Imports nothing heavy.
"""

import ast
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin


class Rule(NamedTuple):
    """What is allowed: `says` completes "it must be ...", `fits` looks at a value of the kind."""

    says: str
    fits: Callable[[Any], bool]


def positive(most: int | float = 1e9) -> Rule:
    """Above 0."""
    return Rule(f"a positive number, at most {most:g}", lambda x: 0 < x <= most)


def not_negative(most: int | float = 1e9) -> Rule:
    """0 or above."""
    return Rule(f"0 or more, at most {most:g}", lambda x: 0 <= x <= most)


def between(low: int | float, high: int | float) -> Rule:
    """Both ends included."""
    return Rule(f"a number between {low:g} and {high:g}", lambda x: low <= x <= high)


def increasing(most: int | float, of: str = "positive numbers") -> Rule:
    """Two positive numbers in order."""
    return Rule(
        f"two {of}, the smaller first, at most {most:g}",
        lambda x: 0 < x[0] <= x[1] <= most,
    )


PROBABILITY = Rule("a probability between 0 and 1", lambda x: 0 <= x <= 1)
NOT_EMPTY = Rule("a text that is not empty", bool)


class Field(NamedTuple):
    """One field of a config group, as `field` declares it."""

    name: str
    kind: Any
    default: Any
    rule: Rule | None
    says: str
    resumable: bool

    def parse(self, text: str) -> Any:
        """The value that a text spells; ValueError where it is not of the kind."""
        for kind in reversed(alternatives(self.kind)):
            try:
                return _parse(text, kind)
            except (KeyError, SyntaxError, TypeError, ValueError):
                continue
        raise ValueError(text)

    def wrong(self, value: Any) -> str | None:
        """What a value must be, if it is not that already."""
        kinds = [kind for kind in alternatives(self.kind) if _conforms(value, kind)]
        if not kinds:
            # A rule for several numbers says how many.
            several = isinstance(value, list | tuple)
            return self.rule.says if several and self.rule else self.kind_in_words
        if self.rule is None or any(map(_is_word, kinds)) or self.rule.fits(value):
            return None
        return self.rule.says

    @property
    def kind_in_words(self) -> str:
        """As in "a whole number or none"."""
        return " or ".join(map(_describe, alternatives(self.kind)))


def field(default: Any, *about: Rule | str, resumable: bool = False) -> Any:
    """Declares a field of a config group.

    Args:
      about: at most one `Rule`, and a phrase that says what the field is.
      resumable: it leaves the mathematics alone, so that it may change when a run is resumed.
    """
    rule = next((item for item in about if isinstance(item, Rule)), None)
    says = next((item for item in about if isinstance(item, str)), "")
    metadata = {"rule": rule, "says": says, "resumable": resumable}
    return dataclasses.field(default=default, metadata=metadata)


def fields_of(group: type) -> Iterator[Field]:
    """The fields that a dataclass declares by `field`, in order."""
    for item in dataclasses.fields(group):
        yield Field(item.name, item.type, item.default, **item.metadata)


def defaults(group: type) -> dict[str, Any]:
    """The default of each field of a dataclass, by name."""
    return {item.name: item.default for item in fields_of(group)}


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The kinds that an annotation unites, the one that a rule speaks of first."""
    return get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)


def _is_word(kind: Any) -> bool:
    """Whether it is none or a name, of which no rule speaks."""
    return kind is types.NoneType or get_origin(kind) is Literal


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        values = tuple(map(str, get_args(kind)))
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if get_origin(kind) is tuple:
        several = "" if ... in get_args(kind) else {2: "two ", 3: "three "}[len(get_args(kind))]
        return f"{several}numbers in parentheses"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return words.get(kind, "none")


def _parse(text: str, kind: Any) -> Any:
    if kind is types.NoneType:
        return {"none": None, "null": None}[text.lower()]
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if get_origin(kind) is Literal:
        return {str(value): value for value in get_args(kind)}[text]
    if get_origin(kind) is tuple:
        numbers = tuple(ast.literal_eval(text))  # how many and which ones, `wrong` looks at
        return tuple(map(float, numbers)) if float in get_args(kind) else numbers
    return kind(text)


def _conforms(value: Any, kind: Any) -> bool:
    if kind is types.NoneType:
        return value is None
    if get_origin(kind) is Literal:
        return value in get_args(kind) and not isinstance(value, bool | float)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = get_args(kind)
        if kinds[-1] is ...:
            kinds = kinds[:1] * len(value)
        return len(value) == len(kinds) > 0 and all(map(_conforms, value, kinds))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))

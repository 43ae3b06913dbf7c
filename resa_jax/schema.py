"""Every field of a recipe. Imports nothing heavy, neither here nor for a method's own fields."""

import ast
import difflib
import functools
import importlib
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Literal

from resa_jax.data.view import View
from resa_jax.errors import UserError
from resa_jax.fields import (
    NOT_EMPTY,
    Field,
    Rule,
    between,
    field,
    fields_of,
    not_negative,
    positive,
)
from resa_jax.image_size import IMAGE_SIZE
from resa_jax.models.names import ENCODERS


_METHODS = Path(__file__).parent / "methods"

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Top:
    """The top level."""

    seed: int = field(0, not_negative(2**32 - 1), "of everything random")
    epochs: int = field(100, positive(), "passes over the source, of floor(n / batch) steps each")
    steps: int | None = field(None, positive(1e12), "instead of epochs")
    start_step: int = field(
        0, not_negative(1e12), "after which the schedules start; set by --extend"
    )
    batch_size: int = field(256, positive(1e8), "global")
    base_lr: float = field(0.5, positive(1e6), "learning rate for 256 images; x batch_size / 256")
    final_lr: float | None = field(None, not_negative(1e6), "the cosine's floor; none: 0.1 x lr")
    warmup_epochs: int = field(2, not_negative(), "of linear warm-up")
    warmup_steps: int | None = field(None, not_negative(1e12), "instead of warmup_epochs")
    warmup_start_lr: float = field(0.0, not_negative(1e6), "where the warm-up starts")
    lr_drops: tuple[int, int] | None = field(
        None,
        Rule("two whole numbers from 1", lambda x: min(x) >= 1),
        "epochs before the end at which the rate falls to a fifth; none: a cosine to final_lr",
    )
    weight_decay: float = field(1e-5, not_negative(1e6), "of every parameter that is trained")
    ema_momentum: float = field(
        0.996, between(0, 1), "of the EMA network at the start; rises to 1 by a cosine"
    )
    precision: Literal["float32", "bfloat16"] = field(
        "float32", "of the networks; assignment and loss take float32 at least"
    )
    gradient_reduction: Literal["float32", "bfloat16"] = field(
        "float32", "of the gradients' sum over devices; bfloat16 sends half the bytes"
    )
    micro_batches: int = field(
        1,
        positive(1e6),
        "parts of the batch that the networks run one after the other, for memory; the loss is of "
        "the whole batch, BatchNorm's statistics of a part",
    )
    sharding: Literal["dp", "fsdp"] = field(
        "dp", "whole parameters on every device, or large ones split", resumable=True
    )
    init_from: str | None = field(None, NOT_EMPTY, "weights that the networks start from")
    log_every: int = field(50, positive(), "steps", resumable=True)
    profile: tuple[int, int] | None = field(
        None,
        Rule("two whole numbers from 1, the first step and how many", lambda x: min(x) >= 1),
        "steps to trace into WORKDIR/profile",
        resumable=True,
    )


@dataclass(frozen=True)
class Optimizer:
    """The optimiser."""

    name: Literal["sgd", "adamw", "adam", "lars"] = field(
        "sgd", "SGD with momentum 0.9, AdamW, Adam (decay in the gradient), or solo-learn's LARS"
    )
    lars_trust: float = field(0.02, positive(1), "LARS: a step's length over the parameter's")
    lars_clip: bool = field(True, "LARS: never a longer step than without it")
    encoder_start: int = field(
        0,
        not_negative(),
        "epochs in which the encoder stands still, while new heads learn",
    )
    layer_decay: float = field(
        1.0,
        Rule("above 0, at most 1", lambda x: 0 < x <= 1),
        "the learning rate of each block of the encoder over that of the next",
    )
    decay_vectors: bool = field(True, "whether biases and normalisations decay too")
    final_weight_decay: float | None = field(
        None, not_negative(1e3), "weight_decay goes to it by a cosine; none: it stays"
    )
    max_norm: float | None = field(
        None, positive(), "each parameter's gradient is shortened to it; none: never"
    )


@dataclass(frozen=True)
class Encoder:
    """The encoder."""

    name: str = field(
        "resnet18",
        Rule(f"one of {', '.join(ENCODERS)}", ENCODERS.__contains__),
        "architecture; it decides stem and initialisation",
    )
    image_size: int | tuple[int, int] = field(224, IMAGE_SIZE, "side in pixels, or (height, width)")
    patch_size: int | None = field(None, positive(8192), "of a ViT; none: by the name")
    width: int | None = field(
        None, positive(1e5), "of a ResNet's stem or a ViT's tokens; none: by the name"
    )
    depth: int | None = field(None, positive(1e4), "blocks of a ViT; none: by the name")
    zero_init: bool | None = field(
        None, "whether the last scale of a ResNet's blocks starts at 0; none: not in a ResNet-18"
    )
    drop_path: float = field(
        0.0,
        Rule("at least 0, below 1", lambda x: 0 <= x < 1),
        "how often the branches of a ViT's last block are left out in training, of the first never",
    )
    remat: bool = field(
        False, "compute activations anew in the backward pass, for memory", resumable=True
    )


@dataclass(frozen=True)
class Data:
    """The images."""

    source: str = field(
        "digits", NOT_EMPTY, "digits, folder:PATH, list:FILE, npz:FILE, tfds:NAME or hf:NAME"
    )
    test_source: str | None = field(
        None, NOT_EMPTY, "what evaluations classify; none: one image in five", resumable=True
    )
    mean: Numbers | Literal["auto"] = field(
        (0.485, 0.456, 0.406),
        Rule("numbers between 0 and 1 or auto", lambda x: all(0 <= n <= 1 for n in x)),
        "of each channel; auto: measured on the source",
    )
    std: Numbers | Literal["auto"] = field(
        (0.229, 0.224, 0.225),
        Rule("numbers above 0, at most 1000, or auto", lambda x: all(0 < n <= 1000 for n in x)),
        "of each channel; auto: measured on the source",
    )
    channels: int = field(
        3,
        Rule("a whole number from 1 to 16", lambda x: 1 <= x <= 16),
        "3: RGB, also of gray images; 1: gray; others: bands or pages as they are",
    )
    bits: Literal[8, 16] = field(8, "of a channel; 16: up to gray_max")
    gray_max: int = field(
        65_535, positive(65_535), "white in images of more than 8 bits, as 4095 of 12 bits"
    )
    canvas: int = field(
        512, positive(8192), "short side to which large images are reduced, pixels; the long: x 1.5"
    )
    max_pixels: int = field(
        89_478_485, positive(178_956_970), "images with more are bad: they cost too much memory"
    )
    resize: int | None = field(
        None,
        positive(8192),
        "short side before the centre crop; none: that of the encoder's images",
    )
    classes: str | None = field(None, NOT_EMPTY, "file that lists the classes to keep")
    long_tail: float | None = field(
        None, Rule("1 or more, at most 1e+09", lambda x: 1 <= x <= 1e9), "largest class / smallest"
    )
    on_bad_image: Literal["error", "skip"] = field("error", "what an undecodable image does")
    workers: int | None = field(
        None,
        not_negative(4096),
        "threads that decode; none or 0: one for each core that the process may use",
        resumable=True,
    )


@dataclass(frozen=True)
class Eval:
    """Evaluation during the run."""

    every_epochs: int = field(0, not_negative(), "0: only after the last step", resumable=True)
    max_images: int = field(
        10_000, positive(), "of each source; the first ones of a fixed shuffle", resumable=True
    )
    batch_size: int = field(256, positive(1e6), "images at a time", resumable=True)
    linear_epochs: int = field(
        100,
        positive(1e6),
        "of the linear probe; the paper's protocol takes 500, and all images",
        resumable=True,
    )
    baselines: bool = field(False, "also score pixels and the untrained encoder", resumable=True)
    linear_layers: bool = field(
        False,
        "also fit a linear probe on each of the projector's layers (Figure 4)",
        resumable=True,
    )


@dataclass(frozen=True)
class Checkpoint:
    """Saved train states."""

    every_epochs: int = field(1, positive(), "", resumable=True)
    keep: int = field(2, positive(1e6), "how many of the latest stay", resumable=True)
    initial: bool = field(False, "also save the state before the first step", resumable=True)


GROUPS = {
    "": Top,
    "optimizer": Optimizer,
    "encoder": Encoder,
    "views": View,
    "data": Data,
    "eval": Eval,
    "checkpoint": Checkpoint,
}


def known_fields(method: str, num_views: int) -> dict[str, Field]:
    """All fields of a recipe by name, as in `views[0].crop_scale`."""
    found: dict[str, Field] = {}
    for group, declared in (GROUPS | {"method": method_group(method)}).items():
        places = [f"{group}[{n}]" for n in range(num_views)] if group == "views" else [group]
        for place in places:
            found |= {f"{place}.{f.name}".lstrip("."): f for f in fields_of(declared)}
    return found


def method_names() -> tuple[str, ...]:
    """The methods that there are, one for each file that holds a method's dataclass."""
    return tuple(sorted(path.stem for path in _METHODS.glob("*.py") if _find_class(path)))


@functools.cache
def method_group(name: str) -> type:
    """The fields of a method, and its name.

    They are read from the method's file without running it, which would start JAX.
    """
    path = _METHODS / f"{name}.py"
    declaration = _find_class(path) if name.isidentifier() and path.is_file() else None
    if declaration is None:
        names = method_names()
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
        raise UserError(
            f"config.method.name is {name!r}; the nearest method is {nearest!r}. "
            f"There are: {', '.join(names)}."
        )
    # What a declaration can name.
    known = vars(importlib.import_module("resa_jax.fields")) | {"Literal": Literal}
    named: list[tuple] = [("name", str, field(name, NOT_EMPTY, "the file in methods/"))]
    for line in declaration.body:
        source = ast.unparse(line)
        if isinstance(line, ast.AnnAssign) and " = field(" in source:
            kind, default = ast.unparse(line.annotation), source.partition(" = ")[2]
            named.append((ast.unparse(line.target), eval(kind, known), eval(default, known)))
    return make_dataclass(declaration.name, named, frozen=True)


def _find_class(path: Path) -> ast.ClassDef | None:
    """The class of a method's file: its one frozen dataclass."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        decorators = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
        if isinstance(node, ast.ClassDef) and "dataclass(frozen=True)" in decorators:
            return node
    return None


def describe_fields() -> str:
    """All fields with default, kind and meaning, as Markdown: `--help` and docs/config.md."""
    groups = [(f"`config.{name}.`" if name else "Top level", g) for name, g in GROUPS.items()]
    groups[3] = ("`config.views[N].`, for each view", View)
    groups += [(f"`config.method.` of {name}", method_group(name)) for name in method_names()]
    lines = []
    for title, group in groups:
        lines += ["", f"## {title}", "", "| field | default | kind | |", "|---|---|---|---|"]
        for declared in fields_of(group):
            rule = "" if declared.rule is None else f"; {declared.rule.says}"
            kind = f"{declared.kind_in_words}{rule}".replace("|", "\\|")
            again = " (*)" if declared.resumable else ""
            default = "none" if declared.default is None else declared.default
            lines.append(f"| `{declared.name}`{again} | `{default}` | {kind} | {declared.says} |")
    return "\n".join(lines[1:]) + "\n"

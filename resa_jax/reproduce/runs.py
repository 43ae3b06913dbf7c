"""Runs of the paper, at the scale of the paper or of a small machine. Imports nothing heavy."""

import functools
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from resa_jax.config import fields as config_fields
from resa_jax.paths import AnyPath
from resa_jax.recipes import get_config


_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Images:
    """A data set of the paper.

    Attributes:
      title: as the paper has it.
      recipe: its recipe.
      source, test_source: for evaluations; without the latter one image in five is held out.
      linear, neighbours: the protocols of its accuracies.
      options: flags of every evaluation.
    """

    title: str
    recipe: str
    source: str
    test_source: str | None
    linear: "Measure"
    neighbours: "Measure"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measure:
    """A number that a finished run gives.

    Attributes:
      protocol: what computes it; None reads the last record of `score` from the run's metrics.
      row: of the protocol's result; None takes the best.
      score: its name, as "top1", or as "best top1" where there is a row for each epoch.
      options: flags of the command.
      sources: to learn from and to classify, in the place of the images' own; the result's file is
        named after the first.
    """

    protocol: str | None
    row: str | None = None
    score: str = "top1"
    options: tuple[str, ...] = ()
    sources: tuple[str, str] | None = None

    def result(self, folder: AnyPath) -> AnyPath:
        """Where the evaluation of a run leaves it."""
        name = f"-{self.sources[0].rpartition(':')[2]}" if self.sources else ""
        return folder / "evaluation" / f"{self.protocol}{name}.json"


_CIFAR = Measure("linear-cifar", "linear"), Measure("knn-cifar", "k5")
_LINEAR = Measure("linear-imagenet", score="best top1")  # as the authors report
IMAGES = {
    "cifar10": Images("CIFAR-10", "cifar10_resnet18", "tfds:cifar10", "tfds:cifar10", *_CIFAR),
    "cifar100": Images("CIFAR-100", "cifar100_resnet18", "tfds:cifar100", "tfds:cifar100", *_CIFAR),
    "cifar100lt": Images(
        "CIFAR100-LT", "cifar100lt_resnet18", "tfds:cifar100", "tfds:cifar100", *_CIFAR
    ),
    "imagenet100": Images(
        "ImageNet-100",
        "imagenet100_resnet18",
        "tfds:imagenet2012",
        "tfds:imagenet2012@validation",
        _LINEAR,
        Measure("knn-weighted", "k5"),
        options=("--classes=imagenet100.txt",),
    ),
    "imagenet": Images(
        "ImageNet",
        "imagenet_resnet50",
        "tfds:imagenet2012",
        "tfds:imagenet2012@validation",
        _LINEAR,
        Measure("knn-weighted", "k5"),
    ),
    "imagenet_vits": Images(
        "ImageNet",
        "imagenet_vits",
        "tfds:imagenet2012",
        "tfds:imagenet2012@validation",
        _LINEAR,
        Measure("knn-weighted", "k20"),
    ),
    "digits": Images("digits", "digits", "digits", None, *_CIFAR),
}


# The first view as ReSA has it, and the first view of digits as strong as the second.
WEAK = {
    "views[0].crop_scale": (0.2, 1.0),
    "views[0].interpolation": "bilinear",
    "views[0].jitter_probability": 0.0,
    "views[0].grayscale_probability": 0.0,
    "views[0].blur_probability": 0.0,
    "views[0].solarize_probability": 0.0,
}
STRONG_DIGITS = {
    "views[0].crop_scale": (0.6, 1.0),
    "views[0].interpolation": "bicubic",
    "views[0].blur_probability": 0.5,
    "views[0].blur_sigma": (0.1, 0.7),
}
# The paper's curves of CIFAR are of all images and by whole linear probes.
_WHOLE = {"eval.max_images": 50_000, "eval.linear_epochs": 500}
# How runs on digits are evaluated: four times, with all that any item shows.
_WATCHED = {"eval.every_epochs": 28, "eval.linear_layers": True, "eval.baselines": False}


@dataclass(frozen=True)
class Run:
    """One call of `resa_jax.main`.

    Attributes:
      images: what it trains on and is evaluated with.
      words: of the recipe's variant.
      fields: of the recipe, changed.
    """

    images: Images
    words: tuple[str, ...]
    fields: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Of its folder; runs that are alike have the same, so that items share them."""
        changes = [
            f"{name.rpartition('.')[2]}={value}"
            for name, value in self.fields
            if not name.startswith("eval.")
        ]
        parts = [self.images.recipe, *self.words, *changes]
        name = re.sub(r"[^\w.=-]+", "_", "-".join(parts)).strip("_")
        return name if len(name) <= 80 else f"{name[:71]}-{zlib.crc32(name.encode()):08x}"

    def folder(self, workdir: AnyPath) -> AnyPath:
        return workdir / "runs" / self.name

    def train_command(self, workdir: AnyPath) -> list[str]:
        """The arguments of Python that train it."""
        recipe = _recipe(self.images, self.words)
        fields = [f"--config.{name}={value}" for name, value in self.fields]
        folder = self.folder(workdir)
        return ["-m", "resa_jax.main", f"--config={recipe}", f"--workdir={folder}", *fields]

    def evaluate_command(self, measures: list[Measure], workdir: AnyPath) -> list[str]:
        """The arguments of Python that evaluate it.

        Args:
          measures: of different protocols with the same options; one alone if it has sources.
        """
        folder, first = self.folder(workdir), measures[0]
        source, test = first.sources or (self.images.source, self.images.test_source)
        protocols = ",".join(str(measure.protocol) for measure in measures)
        return [
            *("-m", "resa_jax.evaluate", f"--encoder={folder}", f"--protocol={protocols}"),
            f"--source={source}",
            *([] if test is None else [f"--test_source={test}"]),
            *self.images.options,
            *first.options,
            *([f"--output={first.result(folder)}"] if first.sources else []),
        ]


@dataclass(frozen=True)
class Scale:
    """How large the runs are.

    Attributes:
      name: "paper", "small" (digits, two CPU cores, hours) or "smoke" (a few steps each).
    """

    name: str

    @property
    def is_paper(self) -> bool:
        return self.name == "paper"

    def sets(self, *names: str) -> tuple[str, ...]:
        """The data sets of an item: at a small scale digits stand for the first, and for all."""
        return names if self.is_paper else names[:1]

    def some(self, rows: Iterable[_Row]) -> list[_Row]:
        """Rows of an item, or panels of a figure: all, at the smallest scale first and last."""
        rows = list(rows)
        return rows[:: len(rows) - 1] if self.name == "smoke" and len(rows) > 2 else rows

    def images(self, name: str) -> Images:
        """A data set of the paper, or what stands for it."""
        if self.is_paper:
            return IMAGES[name]
        return IMAGES["digits"]

    def run(
        self,
        images: str,
        method: str = "resa",
        *,
        words: tuple[str, ...] = (),
        fields: dict[str, Any] | None = None,
        epochs: int | None = None,
        small: dict[str, Any] | None = None,
        **everywhere: Any,
    ) -> Run:
        """A run of the paper at this scale.

        Args:
          words, fields, epochs: of the paper's own.
          small: fields of what stands for it at a small scale.
          everywhere: fields at any scale; two underscores stand for a dot.
        """
        shared = {name.replace("__", "."): value for name, value in everywhere.items()}
        if self.is_paper:
            own = (fields or {}) | ({} if epochs is None else {"epochs": epochs})
            if images.startswith("cifar"):
                own = _WHOLE | own
            named = () if method == "resa" else (method,)
            return _create(self.images(images), (*named, *words), own | shared)
        changed = _WATCHED | (small or {}) | shared
        if self.name == "small":
            return _create(self.images(images), (method,), changed)
        changed = {k: v for k, v in changed.items() if k not in ("epochs", "batch_size")}
        return _create(self.images(images), (method, "smoke"), changed)


def _create(images: Images, words: tuple[str, ...], fields: dict[str, Any]) -> Run:
    """A run; fields that are the recipe's own are left out, so that runs that are alike are one."""
    usual = _usual_fields(_recipe(images, words))
    changed = {name: value for name, value in fields.items() if usual.get(name) != value}
    return Run(images, words, (*changed.items(),))


@functools.cache
def _usual_fields(recipe: str) -> dict[str, object]:
    return dict(config_fields(get_config(recipe)))


def _recipe(images: Images, words: tuple[str, ...]) -> str:
    return ":".join(filter(None, (images.recipe, ",".join(words))))

"""The paper's figures: the runs that each shows, and the numbers behind it.

Figures 1, 2 and 5 are drawings and are not made. `pictures` draws the others.
"""

from dataclasses import dataclass, field
from typing import Any

from resa_jax.reproduce import paper
from resa_jax.reproduce.runs import STRONG_DIGITS, WEAK, Measure, Run, Scale
from resa_jax.reproduce.tables import TITLES, Cell


@dataclass(frozen=True)
class Figure:
    """A figure of the paper.

    Attributes:
      picture: the function of `pictures` that draws it.
      runs: by the title that each has in it.
      cells: numbers of the same runs, as in a table.
      notes: sentences below it.
    """

    title: str
    picture: str
    runs: dict[str, Run]
    cells: list[Cell] = field(default_factory=list)
    notes: tuple[str, ...] = ()


_LAYERS = {"H": "encoding", "P0": "p0", "P1": "p1", "Z": "embedding"}


def figure3(scale: Scale) -> Figure:
    """Encodings against embeddings, of all methods."""
    runs = {TITLES[m]: scale.run("cifar10", m, epochs=1000) for m in scale.some(paper.TABLE_1)}
    scores = {"SC mean": "silhouette_mean", "SC std": "silhouette_std", "ARI": "ari"}
    cells = [
        Cell(title, f"{score} of {layer}", run, Measure("clustering", _LAYERS[layer], name), None)
        for title, run in runs.items()
        for score, name in scores.items()
        for layer in ("H", "Z")
    ]
    return Figure("Clustering of encodings (H) and embeddings (Z)", "markers", runs, cells)


def figure4(scale: Scale) -> Figure:
    """Layers over training, of three methods."""
    return _over_training(scale, ("simclr", "vicreg", "swav"))


def figure9(scale: Scale) -> Figure:
    """The same with ReSA, and with the k-NN accuracy of the encodings."""
    return _over_training(scale, ("simclr", "vicreg", "swav", "resa"), neighbours=True)


def _over_training(scale: Scale, methods: tuple[str, ...], *, neighbours: bool = False) -> Figure:
    runs = {}
    for method in scale.some(methods):
        deep = {"method.three_layers": True} if method in ("simclr", "swav") else {}
        fields = deep | {"eval.linear_layers": True}
        runs[TITLES[method]] = scale.run("cifar100", method, epochs=500, fields=fields, small=deep)
    scores = {"SC mean": "silhouette_mean", "SC std": "silhouette_std", "ARI": "ari"}
    cells = []
    for title, run in runs.items():
        for layer, name in _LAYERS.items():
            linear = f"eval/{name}_linear_top1" if layer != "H" else "eval/linear_top1"
            named = {"linear": linear}
            if neighbours and layer == "H":
                named["k-NN"] = "eval/knn_top1"
            named |= {s: f"eval/{name}_{x}" for s, x in scores.items()}
            cells += [
                Cell(f"{title}, {layer}", column, run, Measure(None, score=score), None)
                for column, score in named.items()
            ]
    return Figure("Layers over training", "layers_over_training", runs, cells)


def figure6(scale: Scale) -> Figure:
    """The assignment's view without one of its transformations."""
    strong: dict[str, Any] = {
        "views[0].interpolation": "bicubic",
        "views[0].jitter_probability": 0.8,
        "views[0].brightness": 0.4,
        "views[0].contrast": 0.4,
        "views[0].saturation": 0.2,
        "views[0].hue": 0.1,
        "views[0].grayscale_probability": 0.2,
        "views[0].blur_probability": 0.5,
        "views[0].solarize_probability": 0.2,
    }
    without: dict[str, dict[str, Any]] = {
        "standard": {},
        "no crop": {"views[0].crop": "center"},
        "no flip": {"views[0].flip_probability": 0.0},
        "no jitter": {"views[0].jitter_probability": 0.0},
        "no grayscale": {"views[0].grayscale_probability": 0.0},
        "no blur": {"views[0].blur_probability": 0.0},
        "no solarisation": {"views[0].solarize_probability": 0.0},
        "weak": WEAK,
    }
    if not scale.is_paper:
        strong = STRONG_DIGITS
        without = {
            "standard": {},
            "no crop": {"views[0].crop": "center"},
            "no blur": {"views[0].blur_probability": 0.0},
            "weak": {"views[0].crop_scale": (0.8, 1.0), "views[0].blur_probability": 0.0},
        }
    runs = {
        title: scale.run("imagenet100", fields=strong | less, epochs=200, small=strong | less)
        for title, less in scale.some(without.items())
    }
    cells = []
    for title, run in runs.items():
        cells += [
            Cell(title, "linear", run, run.images.linear, None),
            Cell(title, "k-NN", run, run.images.neighbours, None),
            Cell(title, "ARI", run, Measure("clustering", "encoding", "ari"), None),
            Cell(title, "SC mean", run, Measure("clustering", "encoding", "silhouette_mean"), None),
        ]
    note = "Digits are neither flipped nor recoloured." if not scale.is_paper else ""
    notes = (note,) if note else ()
    return Figure("The assignment's view without one transformation", "bars", runs, cells, notes)


def figure7(scale: Scale) -> Figure:
    """Encodings in the plane: CIFAR-10."""
    methods = ("simclr", "vicreg", "swav", "mocov3", "dino", "resa")
    runs = {TITLES[m]: scale.run("cifar10", m, epochs=1000) for m in scale.some(methods)}
    return Figure("t-SNE of the encodings of the training images", "planes", runs)


def figure8(scale: Scale) -> Figure:
    """Encodings in the plane: 25 classes of five superclasses of CIFAR-100."""
    methods = ("simclr", "vicreg", "swav", "mocov3", "dino", "resa")
    runs = {TITLES[m]: scale.run("cifar100", m, epochs=1000) for m in scale.some(methods)}
    notes = () if scale.is_paper else ("Digits have no superclasses: this is Figure 7 again.",)
    return Figure("t-SNE of the encodings of five superclasses", "planes", runs, notes=notes)


def figure10(scale: Scale) -> Figure:
    """The assignment from encodings or from embeddings."""
    runs = {}
    for source in ("encoding", "embedding"):
        runs[source] = scale.run("cifar100", epochs=1000, method__assignment=source)
    scores = {"loss": "loss", "linear": "eval/linear_top1", "k-NN": "eval/knn_top1"}
    return Figure("The assignment from encodings or embeddings", *_curves(runs, scores))


def figure11(scale: Scale) -> Figure:
    """The assignment at the start and soon after."""
    kept = {"checkpoint.initial": True, "checkpoint.every_epochs": 10, "checkpoint.keep": 3}
    run = scale.run("cifar10", fields=kept, epochs=20, small=kept | {"epochs": 20})
    note = "A schedule of 20 epochs: before the first, and after the tenth and the last."
    return Figure("The assignment of 100 images", "assignments", {"ReSA": run}, notes=(note,))


def figure12(scale: Scale) -> Figure:
    """Four methods on a long-tailed set."""
    long_tail = {"data.long_tail": 20.0, "batch_size": 128}
    runs = {
        TITLES[m]: scale.run("cifar100lt", m, epochs=1000, small=long_tail)
        for m in scale.some(("resa", "mocov3", "intl", "vicreg"))
    }
    scores = {
        "loss": "loss",
        "k-NN": "eval/knn_top1",
        "linear": "eval/linear_top1",
        "linear top-5": "eval/linear_top5",
    }
    note = "At a small scale batches are of 128, and what is classified is of the same long tail."
    return Figure(
        "Pre-training on a long-tailed set",
        *_curves(runs, scores),
        notes=() if scale.is_paper else (note,),
    )


def _curves(runs: dict[str, Run], scores: dict[str, str]) -> tuple[str, dict[str, Run], list[Cell]]:
    cells = [
        Cell(title, column, run, Measure(None, score=score), None)
        for title, run in runs.items()
        for column, score in scores.items()
    ]
    return "curves", runs, cells

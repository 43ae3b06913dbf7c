"""The figures of a report, drawn by matplotlib."""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from scipy.spatial import ConvexHull, QhullError


STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "svg.hashsalt": "resa_jax",  # the same figure gives the same file
}
HULL_SHARE = 0.9  # of a class's points, those nearest to its median, are inside of its hull
MAX_NAMED = 20  # classes that still get a colour and a name of their own

Curve = tuple[list[float], list[float]]  # x and y


def curves_figure(
    title: str, curves: dict[str, Curve], *, x_label: str, colors: dict[str, str] | None = None
) -> str:
    """Lines over training as an SVG data URI; a line of few points gets markers."""
    with rc_context(STYLE):
        figure = Figure((4.2, 2.7))
        axes = figure.subplots()
        for name, (x, y) in curves.items():
            marker = "o" if len(x) <= 30 else None
            color = None if colors is None else colors.get(name)
            axes.plot(x, y, label=name, marker=marker, markersize=3, linewidth=1.4, color=color)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        if len(curves) > 1:
            axes.legend(fontsize=8)
        return _data_uri(figure, "svg")


def scatter_figure(
    points: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, " n"] | None,
    class_names: tuple[str, ...],
) -> str:
    """Points in the plane as a PNG data URI, coloured by class, with a convex hull for each class.

    Args:
      points: such as t-SNE's.
      labels: None draws all points alike.
      class_names: by label.
    """
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure((7.4, 5.6))
        axes = figure.subplots()
        axes.set_axis_off()
        if labels is None:
            axes.scatter(points[:, 0], points[:, 1], s=8, color="#33638d", alpha=0.6, linewidths=0)
            return _data_uri(figure, "png")
        classes = np.unique(labels)
        colors = colormaps["tab10" if len(classes) <= 10 else "tab20"]
        named = len(classes) <= MAX_NAMED
        for number, label in enumerate(classes):
            own = points[labels == label]
            color = colors(number % colors.N)
            name = _short(class_names[label]) if named else None
            axes.scatter(
                own[:, 0], own[:, 1], s=8, color=color, alpha=0.75, linewidths=0, label=name
            )
            if named:
                draw_hull(axes, own, color)
        if named:
            figure.legend(loc="outside right upper", fontsize=8, markerscale=2)
        return _data_uri(figure, "png")


def heat_map_figure(matrices: dict[str, Float[np.ndarray, "m m"]], borders: list[int]) -> str:
    """Square matrices side by side on one colour scale, as a PNG data URI.

    Args:
      matrices: by title.
      borders: rows at which a class begins, marked by lines.
    """
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure((4.6 * len(matrices) + 0.6, 4.4))
        panels = np.atleast_1d(figure.subplots(1, len(matrices)))
        # The diagonal towers over all else: the square root shows both.
        top = max(float(matrix.max()) for matrix in matrices.values()) ** 0.5
        for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
            image = axes.imshow(np.sqrt(matrix), vmin=0, vmax=top, cmap="magma")
            for border in borders:
                axes.axhline(border - 0.5, color="white", linewidth=0.3)
                axes.axvline(border - 0.5, color="white", linewidth=0.3)
            axes.set_title(title)
            axes.set_xticks([])
            axes.set_yticks([])
        bar = figure.colorbar(image, ax=list(panels), shrink=0.85)
        ticks = [top * share for share in (0, 0.25, 0.5, 0.75, 1)]
        bar.set_ticks(ticks, labels=[f"{tick**2:.2f}" for tick in ticks])
        bar.set_label("weight (root scale)")
        return _data_uri(figure, "png")


def bars_figure(parts: dict[str, float]) -> str:
    """Horizontal bars in seconds with their shares, as an SVG data URI."""
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure((6.4, 0.42 * len(parts) + 0.7))
        axes = figure.subplots()
        total = sum(parts.values())
        names = [name.replace("_", " ") for name in parts]
        bars = axes.barh(names, list(parts.values()), color="#33638d", height=0.6)
        texts = [f"{value:,.1f} s  ({value / total:.0%})" for value in parts.values()]
        axes.bar_label(bars, texts, padding=4, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(parts.values()))
        axes.set_xlabel("seconds")
        return _data_uri(figure, "svg")


def picture_uri(picture) -> str:
    """A Pillow image as a PNG data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _encode(buffer, "image/png")


def draw_hull(axes, points, color) -> None:
    """A convex polygon around the points of a class that lie nearest to its median."""
    distances = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    inner = points[distances <= np.quantile(distances, HULL_SHARE)]
    try:
        corners = inner[ConvexHull(inner).vertices]
    except QhullError:
        return  # fewer than three points, or all on a line
    axes.fill(*corners.T, facecolor=(*color[:3], 0.08), edgecolor=color, linewidth=1)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _data_uri(figure: Figure, kind: str) -> str:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, dpi=130, metadata=metadata)
    return _encode(buffer, "image/svg+xml" if kind == "svg" else "image/png")


def _encode(buffer: io.BytesIO, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"

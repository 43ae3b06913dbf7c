"""What finished runs say: the numbers of an item beside the paper's, as Markdown and JSON."""

import re
import shlex

from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, read_json
from resa_jax.report.run_record import read_run
from resa_jax.report.tables import flatten_scores
from resa_jax.reproduce.figures import Figure
from resa_jax.reproduce.runs import Measure, Scale
from resa_jax.reproduce.tables import Cell, Table


def measured(folder: AnyPath, measure: Measure) -> float:
    """The number of a finished run.

    Raises:
      UserError: the run has not got it.
    """
    if measure.protocol is None:
        value = _from_records(folder, measure.score)
    else:
        rows = read_json(measure.result(folder))["results"]
        chosen = rows if measure.row is None else {measure.row: rows.get(measure.row, {})}
        scores = [flatten_scores(row) for row in chosen.values()]
        found = [row[measure.score] for row in scores if measure.score in row]
        value = max(found, default=None)
    if value is None:
        raise UserError(f"{folder} has no {measure.score} of {measure.protocol or 'its records'}.")
    return value


def _from_records(folder, name):
    run = read_run(folder)
    if name == "hours_per_epoch":
        rate, record = run.last("images_per_second"), run.records[-1]
        images = record["step"] * run.config.batch_size / record["epoch"]
        return None if rate is None else images / rate / 3600
    return run.last(name)


def as_record(
    name: str, item: Table | Figure, scale: Scale, values: list[float | None], workdir: AnyPath
) -> dict:
    """An item as JSON: every cell with ours, the paper's, the difference and its run."""
    cells = []
    for cell, value in zip(item.cells, values, strict=True):
        difference = None
        if value is not None and cell.paper is not None:
            difference = value - cell.paper
        cells.append(
            {
                "row": cell.row,
                "column": cell.column,
                "ours": value,
                "paper": cell.paper,
                "difference": difference,
                "run": None if cell.run is None else cell.run.name,
            }
        )
    runs = {cell.run for cell in item.cells if cell.run is not None}
    runs |= set(item.runs.values()) if isinstance(item, Figure) else set()
    commands = {run.name: shlex.join(["python", *run.train_command(workdir)]) for run in runs}
    return {
        "item": name,
        "title": item.title,
        "scale": scale.name,
        "cells": cells,
        "runs": dict(sorted(commands.items())),
        "notes": list(item.notes),
    }


def as_markdown(
    name: str, item: Table | Figure, scale: Scale, values: list[float | None], picture: str | None
) -> str:
    """An item as a page: ours, with the paper's in brackets."""
    lines = [f"# {_title(name)}: {item.title}", ""]
    what = "digits in the place of the paper's images" if not scale.is_paper else "as in the paper"
    lines += [f"Scale `{scale.name}`: {what}.", ""]
    if picture is not None:
        lines += [f"![{item.title}]({picture})", ""]
    if item.cells:
        lines += [*_grid(item.cells, values), ""]
    if isinstance(item, Table) and item.text:
        lines += [*item.text, ""]
    for note in item.notes:
        lines += [note, ""]
    if any(cell.paper is not None for cell in item.cells):
        lines += ["In brackets: the paper's, of its own images and sizes.", ""]
    return "\n".join(lines)


def _title(name):
    return re.sub(r"(\d+)$", r" \1", name).capitalize()


def _grid(cells: list[Cell], values: list[float | None]) -> list[str]:
    columns = list(dict.fromkeys(cell.column for cell in cells))
    lines = [f"| | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
    shown = {
        (cell.row, cell.column): _shown(cell, value)
        for cell, value in zip(cells, values, strict=True)
    }
    for row in dict.fromkeys(cell.row for cell in cells):
        lines.append(f"| {row} | {' | '.join(shown.get((row, c), '') for c in columns)} |")
    return lines


def _shown(cell, value):
    if value is None:
        ours = "-"
    elif abs(value) >= 1.5:
        ours = f"{value:.2f}"
    else:
        ours = f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2g}"
    return ours if cell.paper is None else f"{ours} ({cell.paper:g})"

"""The tables and figures of the paper.

python -m resa_jax.reproduce --item=table1 --scale=small --workdir=DIR [--list] [--dry_run]

An item is table1, ..., table12, figure3, ..., or all. Its runs are runs of `resa_jax.main` in
DIR/runs, shared by the items that need the same one; what is finished is not made again, and what
was interrupted goes on. DIR/results/SCALE gets ITEM.md, ITEM.json and, of a figure, ITEM.png and
ITEM.pdf. Scales: `paper` takes accelerators and the paper's data sets from TFDS, `small` digits and
two CPU cores, `smoke` a few steps. --dry_run prints the commands of the training runs, one a line,
for a Slurm array or a list of TPU machines; the same command without it then makes the results.
"""

import json
import shlex
import subprocess
import sys

from absl import flags

from resa_jax.cli import run as run_command
from resa_jax.errors import UserError
from resa_jax.paths import AnyPath, as_path, write_whole
from resa_jax.reproduce import figures, tables
from resa_jax.reproduce.figures import Figure
from resa_jax.reproduce.results import as_markdown, as_record, measured
from resa_jax.reproduce.runs import Measure, Run, Scale
from resa_jax.reproduce.tables import Table


ITEMS = {
    name: getattr(module, name)
    for module, names in (
        (tables, [f"table{number}" for number in range(1, 13)]),
        (figures, [f"figure{number}" for number in (3, 4, 6, 7, 8, 9, 10, 11, 12)]),
    )
    for name in names
}
_LINES = 30  # of a failed command's output that are shown
_ITEM = flags.DEFINE_list("item", [], "Items with commas between, or all.")
_SCALE = flags.DEFINE_enum("scale", "paper", ["paper", "small", "smoke"], "How large the runs are.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of runs and results.")
_LIST = flags.DEFINE_bool("list", False, "Print the items and what each is.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands of the training runs.")


def main(arguments: list[str]) -> None:
    """Makes the items one after the other."""
    del arguments
    if _LIST.value:
        for name, describe in ITEMS.items():
            print(f"{name:<9} {describe.__doc__}")
        return
    names = list(ITEMS) if _ITEM.value == ["all"] else _ITEM.value
    unknown = [name for name in names if name not in ITEMS]
    if unknown or not names:
        given = ",".join(_ITEM.value)
        raise UserError(f"--item={given} must be all or of {', '.join(ITEMS)}; see --list.")
    if _WORKDIR.value is None:
        raise UserError("Give --workdir=DIR, the folder of runs and results.")
    workdir, scale = as_path(_WORKDIR.value, "--workdir="), Scale(_SCALE.value)
    items = {name: ITEMS[name](scale) for name in names}
    if _DRY_RUN.value:
        for run in dict.fromkeys(run for item in items.values() for run in _runs(item)):
            print(shlex.join(["python", *run.train_command(workdir)]))
        return
    for name, item in items.items():
        _make(name, item, scale, workdir)


def _runs(item: Table | Figure) -> list[Run]:
    own = list(item.runs.values()) if isinstance(item, Figure) else []
    return own + [cell.run for cell in item.cells if cell.run is not None]


def _make(name: str, item: Table | Figure, scale: Scale, workdir: AnyPath) -> None:
    for run in dict.fromkeys(_runs(item)):
        if not (run.folder(workdir) / "encoder" / "encoder.json").is_file():
            _call(run.train_command(workdir), f"{name}: training {run.name}")
    for run, measures in missing_results(item, workdir):
        protocols = ", ".join(str(measure.protocol) for measure in measures)
        _call(run.evaluate_command(measures, workdir), f"{name}: {protocols} of {run.name}")
    values = [
        None
        if cell.run is None or cell.measure is None
        else measured(cell.run.folder(workdir), cell.measure)
        for cell in item.cells
    ]

    results = workdir / "results" / scale.name
    results.mkdir(parents=True, exist_ok=True)
    picture = None
    if isinstance(item, Figure):
        from resa_jax.reproduce.pictures import draw

        folders = {title: run.folder(workdir) for title, run in item.runs.items()}
        named = {
            (cell.row, cell.column): value for cell, value in zip(item.cells, values, strict=True)
        }
        draw(item, folders, named, results / name)
        picture = f"{name}.png"
    record = as_record(name, item, scale, values, workdir)
    write_whole(results / f"{name}.json", json.dumps(record, indent=2) + "\n")
    page = as_markdown(name, item, scale, values, picture)
    write_whole(results / f"{name}.md", page)
    print(f"{page}\nWritten to {results / name}.md.", flush=True)


def missing_results(item: Table | Figure, workdir: AnyPath) -> list[tuple[Run, list[Measure]]]:
    """The runs' evaluations that have not been made: one command each, of one or more protocols."""
    groups: dict[tuple, dict[AnyPath, Measure]] = {}
    for cell in item.cells:
        if cell.run is None or cell.measure is None or cell.measure.protocol is None:
            continue
        result = cell.measure.result(cell.run.folder(workdir))
        if not result.is_file():
            alike = cell.run, cell.measure.options, cell.measure.sources
            groups.setdefault(alike, {})[result] = cell.measure
    return [(key[0], list(group.values())) for key, group in groups.items()]


def _call(arguments: list[str], what: str) -> None:
    print(what, flush=True)
    ended = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if ended.returncode:
        command = shlex.join(["python", *arguments])
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        # After a crash Python lists what it has loaded, in one long line.
        told = [line for line in lines if not line.startswith("Extension modules:")][-_LINES:]
        raise UserError(
            "\n".join([f"This ended with exit code {ended.returncode}: {command}", *told])
        )


if __name__ == "__main__":
    run_command(main)

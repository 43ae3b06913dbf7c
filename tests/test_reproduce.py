"""The paper's items: what each is made of, at every scale, and the pages that come out."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from resa_jax.config import load_config
from resa_jax.errors import UserError
from resa_jax.evaluation.protocols import create_protocol
from resa_jax.evaluation.training import last_and_best
from resa_jax.methods.interface import create_method
from resa_jax.models.spec import EncoderSpec
from resa_jax.recipes import get_config
from resa_jax.reproduce import paper
from resa_jax.reproduce.figures import Figure
from resa_jax.reproduce.results import as_markdown, as_record, measured
from resa_jax.reproduce.runs import IMAGES, Measure, Run, Scale
from resa_jax.reproduce.tables import Cell, Table


# The flags of the command are defined once, when its module is first read.
def items():
    from resa_jax.reproduce.__main__ import ITEMS

    return ITEMS


def commands(item, workdir):
    runs = set(item.runs.values()) if isinstance(item, Figure) else set()
    runs |= {cell.run for cell in item.cells if cell.run is not None}
    return {run.name: run.train_command(workdir) for run in runs}


def python(*arguments):
    # On one device: on many, and a busy machine, XLA ends a program whose devices lag behind.
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def call(*arguments):
    return python("-m", "resa_jax.reproduce", *arguments)


def test_there_are_21_items():
    names = [f"table{n}" for n in range(1, 13)]
    names += [f"figure{n}" for n in (3, 4, 6, 7, 8, 9, 10, 11, 12)]
    assert list(items()) == names


@pytest.mark.parametrize("scale", ["paper", "small", "smoke"])
def test_every_run_is_a_recipe_that_can_be_read(scale, tmp_path):
    seen = {}
    for make in items().values():
        for name, command in commands(make(Scale(scale)), tmp_path).items():
            assert seen.setdefault(name, command) == command  # one folder, one run
    for command in seen.values():
        recipe = command[2].removeprefix("--config=")
        load_config(recipe, [argument.removeprefix("--config.") for argument in command[4:]])
    assert len(seen) >= 20


def test_every_measure_is_a_protocol_with_options_that_it_takes():
    kinds = {"epochs": int, "list_file": str}
    for make in items().values():
        for cell in make(Scale("paper")).cells:
            if cell.measure is None or cell.measure.protocol is None:
                continue
            given = [option.removeprefix("--").split("=") for option in cell.measure.options]
            own = {name: kinds[name](value) for name, value in given if name in kinds}
            create_protocol(cell.measure.protocol, **own)


@pytest.mark.parametrize("scale", ["paper", "small", "smoke"])
def test_two_evaluations_never_share_a_result(scale, tmp_path):
    """Table 6 asks one protocol of five data sets; Figure 6 clusters 100 of 1,000 classes."""
    from resa_jax.reproduce.__main__ import missing_results

    seen = {}
    for make in items().values():
        for run, measures in missing_results(make(Scale(scale)), tmp_path):
            command = run.evaluate_command(measures, tmp_path)
            protocols = command[3].removeprefix("--protocol=").split(",")
            options = command[4:]
            for protocol, measure in zip(protocols, measures, strict=True):
                result = measure.result(run.folder(tmp_path))
                assert seen.setdefault(result, (protocol, options)) == (protocol, options)
            if "imagenet100" in run.name:
                assert "--classes=imagenet100.txt" in options
            outputs = [option for option in options if option.startswith("--output=")]
            usual = [run.folder(tmp_path) / "evaluation" / f"{name}.json" for name in protocols]
            if outputs:
                assert outputs == [f"--output={measures[0].result(run.folder(tmp_path))}"]
            else:
                assert usual == [m.result(run.folder(tmp_path)) for m in measures]
    assert len(seen) > 20


def test_table_6_is_of_the_official_halves_of_five_sets(tmp_path):
    from resa_jax.reproduce.__main__ import missing_results

    made = missing_results(items()["table6"](Scale("paper")), tmp_path)
    sources = [run.evaluate_command(measures, tmp_path)[4:6] for run, measures in made]
    imagenet = ["--source=tfds:imagenet2012", "--test_source=tfds:imagenet2012@validation"]
    assert sources[0] == imagenet and len(sources) == 5
    assert ["--source=tfds:food101", "--test_source=tfds:food101@validation"] in sources


def test_at_the_papers_scale_the_runs_are_the_papers():
    """Table 8 and the captions: epochs and batch of each set."""
    expected = {
        "cifar10_resnet18": (1000, 256),
        "cifar100_resnet18": (1000, 256),
        "imagenet100_resnet18": (400, 128),
    }
    cells = items()["table1"](Scale("paper")).cells
    for run in {cell.run for cell in cells if cell.row == "ReSA"}:
        config = load_config(run.images.recipe)
        fields = dict(run.fields)
        epochs = fields.get("epochs", config.epochs)
        assert (epochs, config.batch_size) == expected[run.images.recipe]
    resa = {run.name for run in (c.run for c in items()["table2"](Scale("paper")).cells) if run}
    assert "imagenet_resnet50-bs1024-epochs=800" in resa


def test_figure_9_shows_two_hidden_layers_of_every_projector():
    for run in items()["figure9"](Scale("small")).runs.values():
        method, changes = run.words[0], dict(run.fields)
        config = get_config(f"digits:{method}", **changes)
        encoder = EncoderSpec(config.encoder.name, 8, width=8).create()
        projector = create_method(config.method).heads(encoder, nnx.Rngs(0)).projector
        assert projector.layer_names == ("p0", "p1", "embedding")


def test_numbers_of_the_paper_agree_with_each_other():
    """What the paper prints twice."""
    for method, numbers in paper.TABLE_12.items():
        if method[1] is False and method[0] != "mocov3":  # which the paper has in two versions
            assert numbers == paper.TABLE_1[method[0]][:4]
    assert paper.TABLE_11[True, True] == paper.TABLE_11_TEMPERATURE[256][0.4]
    assert paper.TABLE_2_RESA[1024][0] == paper.TABLE_11_TEMPERATURE[1024][0.4]
    assert all(len(numbers) == 15 for numbers in paper.TABLE_6.values())


def test_pages_put_ours_beside_the_papers(tmp_path):
    run = Run(IMAGES["digits"], ("resa",), ())
    cells = [
        Cell("ReSA", "linear", run, Measure("linear-cifar", "linear"), 93.5),
        Cell("BYOL", "linear", None, None, 92.6),
    ]
    table = Table("A table", cells, ("A note.",))
    page = as_markdown("table1", table, Scale("small"), [90.0, None], None)
    assert page.startswith("# Table 1: A table\n")
    assert "| ReSA | 90.00 (93.5) |\n| BYOL | - (92.6) |" in page
    record = as_record("table1", table, Scale("small"), [90.0, None], tmp_path)
    assert [cell["difference"] for cell in record["cells"]] == [-3.5, None]
    assert record["runs"] == {
        "digits-resa": f"python -m resa_jax.main --config=digits:resa "
        f"--workdir={tmp_path}/runs/digits-resa"
    }


def test_numbers_come_from_the_runs_own_files(tmp_path):
    (tmp_path / "evaluation").mkdir()
    rows = {
        f"lr {rate}": last_and_best([{"top1": top1 + 1}, {"top1": top1}])
        for rate, top1 in ((1, 69.0), (10, 70.0))
    }
    path = tmp_path / "evaluation" / "linear-imagenet.json"
    path.write_text(json.dumps({"results": rows}))
    assert measured(tmp_path, Measure("linear-imagenet", score="best top1")) == 71.0
    assert measured(tmp_path, Measure("linear-imagenet", "lr 1", "last top1")) == 69.0
    with pytest.raises(UserError, match="has no top5 of linear-imagenet"):
        measured(tmp_path, Measure("linear-imagenet", "lr 1", "top5"))


def test_commands_and_mistakes(tmp_path):
    listed = call("--list")
    assert len(listed.stdout.splitlines()) == 21
    planned = call("--item=table11", "--scale=small", f"--workdir={tmp_path}", "--dry-run")
    lines = [shlex.split(line) for line in planned.stdout.splitlines()]
    assert len(lines) == 7
    assert all(line[:3] == ["python", "-m", "resa_jax.main"] for line in lines)
    wrong = call("--item=figure5", f"--workdir={tmp_path}")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --item=figure5 must be all or of table1,")
    assert not list(Path(tmp_path).iterdir())


TABLES = [f"table{number}" for number in range(3, 13)]
FIGURES = [f"figure{number}" for number in (3, 6, 7, 8, 10, 11, 12)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [["table1", "table2", *FIGURES], [*TABLES, "figure4", "figure9"]],
    ids=["figures", "tables"],
)
def test_items_at_the_smallest_size(tmp_path, names):
    """Halves of the 21, each of items that share runs."""
    ended = call(f"--item={','.join(names)}", "--scale=smoke", f"--workdir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    results = tmp_path / "results" / "smoke"
    for name in names:
        record = json.loads((results / f"{name}.json").read_text())
        assert record["item"] == name
        measured_cells = [cell for cell in record["cells"] if cell["run"]]
        assert all(cell["ours"] is not None for cell in measured_cells)
        if name.startswith("figure"):
            assert (results / f"{name}.png").stat().st_size > 10_000
            assert (results / f"{name}.pdf").stat().st_size > 1_000
    again = call(f"--item={names[0]}", "--scale=smoke", f"--workdir={tmp_path}")
    assert again.returncode == 0
    assert "training" not in again.stdout and " of digits" not in again.stdout


@pytest.mark.slow
def test_every_measure_of_the_papers_scale_is_in_what_its_protocol_writes(tmp_path):
    images = tmp_path / "images"  # of three classes of CIFAR-100, for its superclasses
    rng = np.random.default_rng(0)
    for number in range(30):
        path = images / ("apple", "bear", "bus")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    workdir = tmp_path / "run"
    source = f"folder:{images}"
    train = ["-m", "resa_jax.main", "--config=digits:smoke", f"--workdir={workdir}"]
    train += [f"--config.data.source={source}"]
    evaluate = ["-m", "resa_jax.evaluate", f"--encoder={workdir}", f"--source={source}"]
    whole = {
        cell.measure
        for make in items().values()
        for cell in make(Scale("paper")).cells
        if cell.measure is not None and cell.measure.protocol is not None
    }
    trained = {"linear-imagenet", "finetune-1", "finetune-10"}
    others = {measure.protocol for measure in whole} - trained
    for arguments in (
        train,
        [*evaluate, f"--protocol={','.join(sorted(others))}"],
        [*evaluate, f"--protocol={','.join(sorted(trained))}", "--epochs=1"],
    ):
        ended = python(*arguments)
        assert ended.returncode == 0, ended.stderr
    for measure in whole:
        value = measured(workdir, dataclasses.replace(measure, sources=None))
        assert np.isfinite(value), measure

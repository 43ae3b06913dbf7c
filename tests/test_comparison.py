"""A page of several runs, and values that are older than a run's last step."""

import json
import re

import pytest
from evaluation_run import make_run

from resa_jax.report.comparison import render_comparison, short_names
from resa_jax.report.html import plot
from resa_jax.report.page import render_page
from resa_jax.report.run_record import read_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    first = make_run(root / "one" / "run", "method.temperature=0.4", steps=(2,))
    second = make_run(root / "two" / "run", "method.temperature=0.3", "seed=5")
    with (second / "metrics.jsonl").open("a") as file:  # stopped before its next evaluation
        file.write(json.dumps({"step": 6, "epoch": 3.0, "loss": 0.25}) + "\n")
    return [read_run(first), read_run(second)]


def test_runs_are_told_apart(runs):
    assert short_names(runs) == ["one/run", "two/run"]
    assert short_names([runs[0], runs[0]])[0].endswith("one/run")


def test_page_shows_curves_last_values_and_differences(runs):
    page = render_comparison(runs)
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/svg+xml") >= 1
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]
    last = {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[1:3]}
    assert last["one/run"]["Loss"] == "1"
    assert last["two/run"]["Loss"] == "0.25"
    assert last["two/run"]["k-NN accuracy of H, %"] == "50 (step 4)"
    assert last["one/run"]["k-NN accuracy of H, %"] == "50"
    differences = {row[0]: row[1:] for row in cells[4:]}
    assert differences == {"method.temperature": ["0.4", "0.3"], "seed": ["0", "5"]}


def test_runs_alike_say_so(runs):
    assert "The recipes are the same." in render_comparison([runs[0], runs[0]])


def test_a_page_of_one_run_has_the_step_of_each_value(runs):
    page = render_page(runs[1], [])
    assert "<b>50.0 %</b><span>k-NN accuracy, step 4</span>" in page
    assert "<b>0.250</b><span>loss, step 6</span>" in page


def test_a_curve_of_one_point_is_a_number():
    one = plot("k-NN <1>", {"H": ([2.0], [81.25])})
    assert one == ('<div class="tile"><b>81.25 H</b><span>k-NN &lt;1&gt;, at epoch 2</span></div>')
    assert plot("k-NN", {"H": ([2.0, 3.0], [81.25, 82.0])}).startswith("<img")

"""The report page and its pictures, with labels, without, and with many classes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluation_run import ROOT, make_run

from resa_jax.data.sources import open_source
from resa_jax.errors import UserError
from resa_jax.methods import resa
from resa_jax.report.assignment import assignment_matrix, assignment_scores
from resa_jax.report.run_record import read_run


pytest.importorskip("matplotlib")

from resa_jax.report import figures, gallery
from resa_jax.report.page import render_page


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = make_run(tmp_path_factory.mktemp("report") / "run")
    folder = workdir / "evaluation"
    folder.mkdir()
    for step, ari in ((2, 0.1), (4, 0.5)):
        names = ("h", "p0", "p1", "z") if step == 2 else ("encoding", "p0", "p1", "embedding")
        layers = {layer: {"ari": ari + n / 100} for n, layer in enumerate(names)}
        result = {"protocol": "clustering", "source": "digits", "step": step, "results": layers}
        result |= {"seed": 0, "hyperparameters": {"num_init": 10}, "network": "ema"}
        (folder / f"clustering-step{step}.json").write_text(json.dumps(result))
    (folder / "knn-weighted.json").write_text(
        json.dumps(
            {
                "protocol": "knn-weighted",
                "hyperparameters": {"ks": [5], "temperature": 0.07},
                "source": "digits",
                "test_source": "<b>digits</b>",
                "step": 4,
                "seed": 0,
                "results": {"k5": {"top1": 81.25, "top5": 97.5}},
            }
        )
    )
    return workdir


def test_layer_curves_join_training_and_checkpoints(workdir):
    """Evaluations during training have H and Z here; results of checkpoints add P0 and P1.

    The results of step 2 name the layers as versions before 0.2 did.
    """
    curves = read_run(workdir).layer_curves("ari")
    expected = {
        "H (encoding)": [0.3, 0.3],
        "P0 (hidden layer)": [0.11, 0.51],
        "P1 (hidden layer)": [0.12, 0.52],
        "Z (embedding)": [0.2, 0.2],
    }
    assert list(curves) == list(expected)
    for name, (epochs, values) in curves.items():
        assert epochs == [1.0, 2.0]
        assert values == pytest.approx(expected[name])


def test_page_is_complete_in_itself(workdir):
    page = render_page(read_run(workdir), [])
    assert "81.25" in page and "97.50" in page and "knn-weighted" in page
    assert "At epoch 2 the order by ARI is P1 0.520, P0 0.510, H 0.300, Z 0.200: H does not" in page
    assert "<b>digits</b>" not in page and "&lt;b&gt;digits" in page
    assert "resnet18_small" in page and "warmup_epochs" in page
    links = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert links and all(link.startswith("data:image/") for link in links)
    assert "<script" not in page and "http" not in re.sub(r'"data:[^"]*"', "", page)


def test_wall_time_is_the_latest_on_record(workdir, tmp_path):
    record = read_run(workdir)
    assert record.wall_time() == {}
    assert "not on record" in render_page(record, [])
    record.records.append({"step": 4, "epoch": 2.0, "seconds/compile": 3.0, "seconds/step": 9.0})
    assert record.wall_time() == {"compile": 3.0, "step": 9.0}
    assert "not on record" not in render_page(record, [])


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: it has no config\.json"):
        read_run(tmp_path)


@pytest.mark.slow
def test_pictures_with_and_without_labels(workdir, tmp_path):
    digits = open_source("digits")
    with_labels = gallery.draw_gallery(workdir, digits, "digits", max_images=120)
    titles = [picture.title for picture in with_labels]
    assert titles[0] == "Encodings in the plane" and titles[-1] == "Assignment"
    assert sum(title.startswith("Sub-clusters of") for title in titles) == 3
    assert "same" not in with_labels[0].caption
    assert "weight on pairs of one class" in with_labels[-1].caption
    assert "Step 2:" in with_labels[-1].caption and "Step 4:" in with_labels[-1].caption

    images = np.stack([digits[row] for row in range(60)])
    np.savez(tmp_path / "plain.npz", images=images)
    plain = open_source(f"npz:{tmp_path / 'plain.npz'}")
    pictures = gallery.draw_gallery(workdir, plain, "plain", max_images=60)
    titles = [picture.title for picture in pictures]
    assert titles == ["Encodings in the plane", "Groups", "Nearest neighbours", "Assignment"]
    assert "class" not in pictures[-1].caption


def test_methods_that_assign_nothing_have_no_assignment_picture(workdir, monkeypatch):
    monkeypatch.delattr(resa.ReSA, "assign")
    pictures = gallery.draw_gallery(workdir, open_source("digits"), "digits", max_images=60)
    assert "Nearest neighbours" in [picture.title for picture in pictures]
    assert "Assignment" not in [picture.title for picture in pictures]


def test_sample_has_at_most_ten_classes():
    labels = np.repeat(np.arange(1000), 5)
    rows = gallery.sample_rows(labels, 5000, 2000, seed=0)
    assert len(np.unique(labels[rows])) == 10 and len(rows) == 50
    assert len(gallery.sample_rows(None, 5000, 2000, seed=0)) == 2000


def test_figures_stand_degenerate_data():
    names = tuple(str(n) for n in range(40))
    line = np.stack([np.arange(8.0), np.zeros(8)], axis=1)
    assert figures.scatter_figure(line, np.array([0] * 5 + [1] * 3), names).startswith("data:")
    many = np.random.default_rng(0).normal(size=(80, 2))
    assert figures.scatter_figure(many, np.arange(80) % 40, names).startswith("data:image/png")
    assert figures.curves_figure("x", {"a": ([1.0], [2.0])}, x_label="epoch").startswith("data:")


def test_assignment_scores():
    assignment = np.array([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    scores = assignment_scores(assignment, np.array([0, 0, 1]))
    entropy = (np.log(2) - 0.25 * np.log(0.25) - 0.75 * np.log(0.75)) / 3
    assert scores["entropy"] == pytest.approx(entropy)
    assert scores["diagonal"] == pytest.approx(0.75)
    assert scores["same_class"] == pytest.approx(1.0)
    assert scores["same_class_by_chance"] == pytest.approx(5 / 9)
    assert "same_class" not in assignment_scores(assignment, None)


def test_assignment_of_a_checkpoint(workdir):
    """Rows sum to 1, and equal images share their weight equally."""
    source = open_source("digits")
    rows = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    matrix = assignment_matrix(Path(workdir / "checkpoints" / "4"), source, rows)
    assert matrix.shape == (8, 8)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
    again = assignment_matrix(Path(workdir / "checkpoints" / "4"), source, rows)
    np.testing.assert_array_equal(matrix, again)


def test_command(workdir, tmp_path):
    output = tmp_path / "page.html"
    command = [sys.executable, "-m", "resa_jax.report", f"--output={output}"]
    result = subprocess.run(
        [*command, f"--workdir={workdir}", "--nopictures"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    result = subprocess.run(
        [*command, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "holds no run" in result.stderr and "Traceback" not in result.stderr

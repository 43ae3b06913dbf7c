"""`encode` and `score`: the numbers of the commands, from Python."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from evaluation_run import make_run

import resa_jax
from resa_jax.data.sources import open_source
from resa_jax.errors import UserError
from resa_jax.terminal import progress_bar


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    source, path = open_source("digits"), tmp_path_factory.mktemp("digits") / "some.npz"
    images = np.stack([source[row] for row in range(90)])
    np.savez(path, images=images, labels=source.labels[:90])
    return path, images


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, digits):
    return make_run(tmp_path_factory.mktemp("apply") / "run", f"data.source=npz:{digits[0]}")


def test_encodings_are_the_encoders(digits, workdir):
    path, images = digits
    encoder = resa_jax.load_encoder(workdir)
    expected = np.asarray(encoder(images))
    for source in (images, f"npz:{path}"):
        found = resa_jax.encode(encoder, source, batch_size=32)
        np.testing.assert_allclose(found["encoding"], expected, atol=1e-5)
        np.testing.assert_array_equal(found["indices"], np.arange(90))
    assert set(resa_jax.encode(encoder, images[:4])["labels"]) == {-1}
    with_heads = resa_jax.encode(str(workdir), images[:4], layers=("encoding", "embedding"))
    assert with_heads["embedding"].shape == (4, 16)


@pytest.mark.slow
def test_scores_are_the_commands(digits, workdir, tmp_path):
    source, output = f"npz:{digits[0]}", tmp_path / "scores.json"
    scored = resa_jax.score(workdir, "linear-cifar", source, epochs=3, seed=1)
    arguments = f"--encoder={workdir} --protocol=linear-cifar --source={source} --epochs=3 --seed=1"
    command = [sys.executable, "-m", "resa_jax.evaluate", *arguments.split(), f"--output={output}"]
    subprocess.run(command, check=True, capture_output=True)
    written = json.loads(output.read_text())
    assert scored["results"]["linear"]["top1"] == pytest.approx(
        written["results"]["linear"]["top1"], abs=1e-6
    )
    for name in ("protocol", "hyperparameters", "weights_fingerprint", "num_train", "num_test"):
        assert json.loads(json.dumps(scored[name])) == written[name]


@pytest.mark.slow
def test_clustering_has_the_projectors_layers(digits, workdir):
    rows = resa_jax.score(resa_jax.load_encoder(workdir), "clustering", f"npz:{digits[0]}")
    assert list(rows["results"]) == ["encoding"]
    rows = resa_jax.score(workdir, "clustering", f"npz:{digits[0]}")
    assert list(rows["results"]) == ["encoding", "p0", "p1", "embedding"]


def test_mistakes_are_sentences(digits, workdir):
    path, images = digits
    with pytest.raises(UserError, match="the nearest is 'knn-cifar'"):
        resa_jax.score(workdir, "knn-cifer", f"npz:{path}")
    with pytest.raises(UserError, match="has no epochs to set"):
        resa_jax.score(workdir, "knn-cifar", f"npz:{path}", epochs=3)
    with pytest.raises(UserError, match=r"have the shape \(8, 8, 3\), not \[n, h, w, 3\]"):
        resa_jax.encode(workdir, images[0])
    with pytest.raises(UserError, match="The images are float32; `encode` takes uint8"):
        resa_jax.encode(workdir, images.astype(np.float32))
    with pytest.raises(UserError, match="is no source of images"):
        resa_jax.encode(workdir, "images")
    with pytest.raises(UserError, match="holds no layer 'p7'"):
        resa_jax.encode(workdir, images, layers=("p7",))


def test_a_program_without_logging_sees_what_is_done():
    """As a notebook: also where some library has given the root logger a handler."""
    code = (
        "import logging\nlogging.basicConfig()\n"
        "from resa_jax.terminal import speak_unless_logging\nspeak_unless_logging()\n"
        "logging.getLogger('resa_jax').info('step 1')"
    )
    quiet = code.replace("basicConfig()", "basicConfig(level=logging.INFO)")
    for script, stdout, stderr in ((code, "step 1\n", ""), (quiet, "", "INFO:resa_jax:step 1\n")):
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert (ended.stdout, ended.stderr) == (stdout, stderr)


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_gets_a_bar_where_it_can_move(widgets, monkeypatch):
    """Else lines, as a log does: a bar without ipywidgets would be a line for each step."""
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: widgets or None)
    shown = types.ModuleType("tqdm.notebook")
    shown.tqdm = lambda **fields: fields
    monkeypatch.setitem(sys.modules, "tqdm.notebook", shown)
    bar = progress_bar(10, 2, "step")
    assert bar == {"total": 10, "initial": 2, "unit": "step"} if widgets else bar.disable

"""The command line: a sentence and exit code 2 for every mistake, without a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


ROOT = Path(__file__).parents[1]
MISTAKES = [
    (["--config.batch_siz=8"], ["batch_siz", "batch_size"]),
    (["--config.batch_size=12"], ["batch_size is 12", "8 devices", "8 or 16"]),
    (["--config.batch_size=-8"], ["batch_size is -8", "positive"]),
    (["--config.batch_size=4000"], ["batch_size is 4000", "1797"]),
    (["--config.data.source=folder:nowhere"], ["nowhere", "does not exist"]),
    (["--config.data.source=folder:{folder}/empty"], ["{folder}/empty", "no image"]),
    (["--config.data.source=webdataset:x"], ["webdataset:x", "folder:PATH"]),
    (
        ["--config.data.source=folder:{folder}/bad", "--config.batch_size=8"],
        ["{folder}/bad/image07.jpg"],
    ),
    (["--config.encoder.name=resnet19"], ["resnet19", "resnet18"]),
    (["--config.init_from=nowhere"], ["nowhere"]),
    (["--workdir={folder}/file/run"], ["{folder}/file/run", "cannot be used"]),
    (["--bogus=1"], ["bogus"]),
    (["stray"], ["'stray'"]),
]
# Where a process of its own shows the exit code: refused before JAX starts, and after.
ALONE = [MISTAKES[0], MISTAKES[7]]

# Runs the command on each list of arguments in turn, as `python -m resa_jax.main` does.
COMMANDS = """
import contextlib, io, json, sys, traceback
from absl import flags
from absl.testing import flagsaver
from resa_jax import main
from resa_jax.cli import run

results = []
for arguments in json.load(sys.stdin):
    sys.argv, code, errors = ["main.py", *arguments], 0, io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(errors):
        try:
            run(main.main, overrides=True)
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            traceback.print_exc()
    results.append([code, errors.getvalue()])
sys.__stdout__.write("RESULTS" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the arguments name: an empty folder, a file, a folder with one damaged image."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    (folder / "bad").mkdir()
    for n in range(7):
        Image.new("RGB", (8, 8), (n, n, n)).save(folder / "bad" / f"image{n:02}.jpg")
    (folder / "bad" / "image07.jpg").write_bytes(b"no image at all")
    return folder


def arguments(folder, workdir, overrides):
    texts = ["--config=configs/digits.py:smoke", f"--workdir={workdir}", *overrides]
    return [text.format(folder=folder) for text in texts]


def check(code, errors, words, folder, workdir):
    assert code == 2, errors
    assert "Traceback" not in errors
    *_, line = errors.strip().splitlines()
    for word in words:
        assert word.format(folder=folder) in line, line
    assert not (workdir / "checkpoints").exists()


def python(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def results(folder):
    """Exit code and standard error of every mistake, from one process."""
    commands = [
        arguments(folder, folder / f"run{number}", overrides)
        for number, (overrides, _) in enumerate(MISTAKES)
    ]
    result = python("-c", COMMANDS, input=json.dumps(commands))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.rpartition("RESULTS")[2])


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=lambda n: MISTAKES[n][0][0])
def test_mistakes(folder, results, number):
    check(*results[number], MISTAKES[number][1], folder, folder / f"run{number}")


def test_a_locale_without_utf8(tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = "-m", "resa_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}/run"
    result = python(*command, env=os.environ | locale)
    assert result.returncode == 2 and "set the environment variable PYTHONUTF8=1" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("overrides", "words"), ALONE)
def test_mistakes_in_a_process_of_their_own(folder, tmp_path, overrides, words):
    workdir = tmp_path / "run"
    result = python("-m", "resa_jax.main", *arguments(folder, workdir, overrides))
    check(result.returncode, result.stderr, words, folder, workdir)


def test_nothing_heavy_is_imported_before_the_checks():
    code = (
        "import sys, resa_jax.main; print({'jax', 'grain', 'sklearn', 'flax'} & set(sys.modules))"
    )
    result = python("-c", code)
    assert result.stdout.strip() == "set()", result.stderr

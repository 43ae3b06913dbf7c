"""The command line: a sentence and exit code 2 for every mistake, without a traceback."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


ROOT = Path(__file__).parents[1]


def run_main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "resa_jax.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_image_folder(path, data=None):
    path.mkdir()
    if data is not None:
        (path / "image.jpg").write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.batch_siz=8"], ["batch_siz", "batch_size"]),
        (["--config.batch_size=12"], ["batch_size is 12", "8 devices", "8 or 16"]),
        (["--config.batch_size=-8"], ["batch_size is -8", "positive"]),
        (["--config.batch_size=4000"], ["batch_size is 4000", "1797"]),
        (["--config.data.source=folder:nowhere"], ["nowhere", "does not exist"]),
        (["--config.data.source=folder:{empty}"], ["{empty}", "no image"]),
        (["--config.data.source=webdataset:x"], ["webdataset:x", "folder:PATH"]),
        (["--config.data.source=folder:{bad}", "--config.batch_size=8"], ["{bad}/image07.jpg"]),
        (["--config.encoder.name=resnet19"], ["resnet19", "resnet18"]),
        (["--config.init_from=nowhere"], ["nowhere"]),
        (["--workdir={file}/run"], ["{file}/run", "cannot be used"]),
        (["--bogus=1"], ["bogus"]),
        (["stray"], ["'stray'"]),
    ],
)
def test_mistakes(tmp_path, overrides, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "bad").mkdir()
    for n in range(8):
        pixels = np.full((8, 8, 3), n, np.uint8)
        save_image(tmp_path / "bad" / f"image{n:02}.jpg", pixels)
    (tmp_path / "bad" / "image07.jpg").write_bytes(b"no image at all")
    places = {name: tmp_path / name for name in ("empty", "file", "bad")}
    workdir = tmp_path / "run"
    result = run_main(
        "--config=configs/digits.py:smoke",
        f"--workdir={workdir}",
        *(text.format(**places) for text in overrides),
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    *_, line = result.stderr.strip().splitlines()
    for word in words:
        assert word.format(**places) in line, line
    assert not (workdir / "checkpoints").exists()


def save_image(path, pixels):
    from PIL import Image

    Image.fromarray(pixels).save(path)


def test_nothing_heavy_is_imported_before_the_checks():
    code = (
        "import sys, resa_jax.main; print({'jax', 'grain', 'sklearn', 'flax'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr

"""The notebooks of examples/ run from their first cell to their last, at a small size."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# What makes a run of a few seconds of each.
SMALL = {"first_steps": (r"EPOCHS = 110", "EPOCHS = 3"), "own_images": (r", 20\n", ", 2\n")}


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    pattern, shorter = SMALL[path.stem]
    small, changed = re.subn(pattern, shorter, code, count=1)
    assert changed == 1
    ended = subprocess.run(
        [sys.executable, "-c", small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"step (\d+)/\1, ", ended.stdout)  # a run says what it does

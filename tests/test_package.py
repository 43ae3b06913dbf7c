"""The wheel in an empty folder: recipes by name, Python, and the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import resa_jax
from resa_jax.config import load_config, recipes
from resa_jax.errors import UserError


ROOT = Path(__file__).parents[1]


def test_recipes_have_names():
    assert set(recipes()) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    by_name, by_path = load_config("digits:swav,smoke"), load_config("configs/digits.py:swav,smoke")
    assert by_name.to_dict() == by_path.to_dict()
    with pytest.raises(UserError, match=r"there are cifar100_.*Did you mean 'digits'\?"):
        load_config("digit:smoke")


def test_recipes_in_python():
    changes = {"data.source": "digits", "views[0].flip_probability": 0.25, "final_lr": None}
    config = resa_jax.get_config("cifar10_resnet18", batch_size=128, **changes)
    assert config.batch_size == 128 and config.views[0].flip_probability == 0.25
    assert config.data.source == "digits" and config.final_lr == pytest.approx(0.015)
    with pytest.raises(UserError, match=r"no field 'batchsize'.*batch_size"):
        resa_jax.get_config("digits", batchsize=8)
    with pytest.raises(UserError, match=r"config\.batch_size=many needs a whole number"):
        resa_jax.get_config("digits", batch_size="many")


@pytest.mark.slow
def test_the_wheel_in_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip"]
    wheels, site, empty = tmp_path / "wheels", tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", f"--target={site}", wheel], check=True)
    command = [sys.executable, "-c", "from resa_jax.main import command; command()"]
    result = subprocess.run(
        [*command, "--config=digits:smoke", "--workdir=run"],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (empty / "run" / "encoder" / "encoder.json").is_file()

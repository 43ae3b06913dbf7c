"""Compiled programs are kept by default, elsewhere or not at all if so asked."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from resa_jax.compile_cache import default_folder, keep_programs


ROOT = Path(__file__).parents[1]
VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def test_the_default_is_a_folder_of_this_kind_of_machine(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_programs(None, environment)
    folder = Path(environment[VARIABLE])
    assert folder.parent == tmp_path / "resa_jax" and folder.is_dir()
    assert folder.name.startswith(platform.machine())
    assert environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"


def test_the_flag_comes_before_jax_variable_before_the_default(tmp_path):
    environment = {VARIABLE: "there", "XDG_CACHE_HOME": str(tmp_path)}
    keep_programs(None, environment)
    assert environment[VARIABLE] == "there"
    keep_programs("here", environment)
    assert environment[VARIABLE] == "here"
    keep_programs("none", environment)
    assert environment["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_is_said(tmp_path, caplog):
    (tmp_path / "file").touch()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    caplog.set_level("INFO", logger="resa_jax")
    keep_programs(None, environment)
    assert VARIABLE not in environment
    assert f"not kept: {default_folder(environment)} cannot be written" in caplog.text


@pytest.mark.slow
def test_a_second_command_compiles_nothing(tmp_path):
    # Without the tests' own limit: a program that takes about as long as that is kept at one
    # command and not at the other.
    ours = (VARIABLE, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "resa_jax.main", "--config=configs/digits.py:smoke"]
    kept = []
    for number in range(2):
        result = subprocess.run(
            [*command, f"--workdir={tmp_path / f'run{number}'}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        kept.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
        assert "Error" not in result.stderr
    assert kept[0] == kept[1]
    assert any(name.startswith("jit_train_step-") for name in kept[0])

"""A finished run that goes on: the same state, schedules anew, recorded, resumable."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from resa_jax import UserError, train, warmup_cosine
from resa_jax.config import load_config, read_config_file


pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
ENCODER = ("encoder.name=vitc_s16", "encoder.patch_size=4", "encoder.width=64", "encoder.depth=1")
NUMBERS = ("warmup_epochs=0", "warmup_steps=3", "checkpoint.keep=9", "log_every=1")


def recipe(*overrides):
    return load_config(f"{ROOT / 'configs/digits.py'}:smoke", [*ENCODER, *NUMBERS, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("extension") / "run"
    train(recipe("steps=6"), workdir)
    return workdir


def records(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def test_a_finished_run_goes_on_with_schedules_of_its_own(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "run")
    last = train(recipe("steps=16"), workdir, extend=True)
    config, found = read_config_file(workdir / "config.json"), records(workdir)
    assert (last["step"], config.steps, config.start_step) == (16, 16, 6)
    assert {step: found[step]["loss"] for step in range(1, 7)} == {
        step: line["loss"] for step, line in records(finished).items()
    }
    peak = config.base_lr * config.batch_size / 256
    rates = warmup_cosine(peak, config.final_lr, 10, 3)
    momenta = warmup_cosine(config.ema_momentum, 1.0, 10)
    for step in range(7, 17):
        assert found[step]["learning_rate"] == pytest.approx(float(rates(step - 7)), rel=1e-5)
        assert found[step]["ema_momentum"] == pytest.approx(float(momenta(step - 7)), rel=1e-5)

    # Without the flag the extended run is what the folder holds; then it has nothing left.
    again = train(recipe("steps=16"), workdir)
    assert again["step"] == 16 and read_config_file(workdir / "config.json").start_step == 6

    # As if it had been stopped in between.
    shutil.rmtree(workdir / "encoder")
    for step in range(7, 17):
        shutil.rmtree(workdir / "checkpoints" / str(step), ignore_errors=True)
    train(recipe("steps=16"), workdir)
    for step, line in records(workdir).items():
        assert line["loss"] == found[step]["loss"]


@pytest.mark.parametrize(
    ("overrides", "extend", "words"),
    [
        (("steps=8",), False, "steps = 6, not 8.*or --extend"),
        (("steps=4",), True, "has 6 steps, and .* makes 4"),
        (("steps=8", "base_lr=0.1"), True, "base_lr"),
    ],
)
def test_what_is_no_extension_is_refused(finished, overrides, extend, words):
    before = (finished / "config.json").read_text()
    with pytest.raises(UserError, match=words):
        train(recipe(*overrides), finished, extend=extend)
    assert (finished / "config.json").read_text() == before


def test_only_a_finished_run_is_extended(finished, tmp_path):
    with pytest.raises(UserError, match="holds no run to go on with"):
        train(recipe("steps=8"), tmp_path / "nothing", extend=True)
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "encoder")
    with pytest.raises(UserError, match="has not finished its 6 steps"):
        train(recipe("steps=8"), workdir, extend=True)
    assert np.isfinite(records(finished)[6]["loss"])

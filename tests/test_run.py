"""Whole runs of the command: killed, stopped, resumed, repeated, finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from resa_jax import UserError, load_encoder, train
from resa_jax.checkpoint import read_subtree
from resa_jax.config import load_config


ROOT = Path(__file__).parents[1]
# 20 steps an epoch on the first 640 digits; checkpoints come after each. The network is the one
# with BatchNorm that compiles fastest.
OVERRIDES = (
    *("steps=50", "batch_size=32", "seed=3", "log_every=5"),
    *("eval.every_epochs=1", "checkpoint.every_epochs=1"),
    *("encoder.name=vitc_s16", "encoder.patch_size=4", "encoder.width=64", "encoder.depth=1"),
)
ENCODER = OVERRIDES[-4:]
# For a process that will be killed: it reads the compile cache, but leaves no half entry there.
READ_ONLY_CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3600"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    images, labels = load_digits(return_X_y=True)
    images = np.uint8(images[:640].reshape(640, 8, 8, 1).repeat(3, axis=3) * 15)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=images, labels=labels[:640])
    return path


@pytest.fixture(scope="module")
def environment(digits):
    """One device."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return os.environ | {"XLA_FLAGS": flags, "TEST_SOURCE": f"npz:{digits}"}


def command(workdir, environment, *overrides):
    return [
        sys.executable,
        "-m",
        "resa_jax.main",
        "--config=configs/digits.py:smoke",
        f"--workdir={workdir}",
        f"--config.data.source={environment['TEST_SOURCE']}",
        *(f"--config.{override}" for override in (*OVERRIDES, *overrides)),
    ]


def start(workdir, environment, *overrides):
    return subprocess.Popen(
        command(workdir, environment, *overrides),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    output, errors = process.communicate(timeout=180)
    assert process.returncode == code, errors
    return output


def wait_for_step(workdir, step, process):
    """Until the run has recorded `step` and has a checkpoint."""
    path = workdir / "metrics.jsonl"
    for _ in range(1800):
        done = path.exists() and f'"step": {step},' in path.read_text()
        if done and checkpoints(workdir):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError(f"no step {step} in {path}")


def checkpoints(workdir):
    return [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()]


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timings = ("images_per_second", "data_wait_fraction", "tflops_per_device", "seconds/")
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(timings)}
        for line in lines
    ]


def last_state(workdir):
    step = max(checkpoints(workdir))
    parts = ("step", "params", "batch_stats", "ema_params", "ema_batch_stats", "opt_state")
    return step, read_subtree(workdir / "checkpoints" / str(step), *parts)


def assert_same_run(a, b):
    (step_a, state_a), (step_b, state_b) = last_state(a), last_state(b)
    assert step_a == step_b
    for x, y in zip(jax.tree.leaves(state_a), jax.tree.leaves(state_b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert records(a) == records(b)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("unbroken")
    output = finish(start(workdir, environment))
    return workdir, output


@pytest.mark.slow
def test_two_runs_are_bitwise_equal(unbroken, tmp_path, environment):
    finish(start(tmp_path, environment))
    assert_same_run(unbroken[0], tmp_path)


@pytest.mark.slow
def test_a_killed_run_resumes_bitwise(unbroken, tmp_path, environment):
    process = start(tmp_path, environment | READ_ONLY_CACHE)
    wait_for_step(tmp_path, 30, process)  # in the middle of the second epoch
    process.kill()
    process.communicate()
    # What a killed process may leave behind: half a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 35, "lo')
    output = finish(start(tmp_path, environment))
    assert "Going on after step" in output
    assert_same_run(unbroken[0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name, code", [("SIGTERM", 0), ("SIGHUP", 0), ("SIGINT", 130)])
def test_signals_save_and_say_how_to_resume(unbroken, tmp_path, environment, name, code):
    process = start(tmp_path, environment)
    wait_for_step(tmp_path, 25, process)
    process.send_signal(getattr(signal, name))
    output = finish(process, code)
    step, _ = last_state(tmp_path)
    assert 25 <= step < 50
    assert f"Stopped by {name}" in output
    assert f"step {step} is saved" in output
    assert f"--workdir={tmp_path}" in output
    finish(start(tmp_path, environment))
    assert_same_run(unbroken[0], tmp_path)


@pytest.mark.slow
def test_whoever_stops_reading_does_not_stop_the_run(unbroken, tmp_path, environment):
    process = start(tmp_path, environment)
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=180)
    assert "Traceback" not in errors
    assert_same_run(unbroken[0], tmp_path)
    load_encoder(tmp_path / "encoder")


@pytest.mark.slow
def test_files_that_cannot_grow_end_in_a_sentence(unbroken, tmp_path, environment):
    """As on a full disk: here a limit on the size of files, below that of a checkpoint."""
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", *command(tmp_path, environment)],
        cwd=ROOT,
        env=environment | READ_ONLY_CACHE,
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 2, limited.stderr
    assert "error: The checkpoint of step 20 could not be written" in limited.stderr
    assert not checkpoints(tmp_path)
    finish(start(tmp_path, environment))
    assert_same_run(unbroken[0], tmp_path)


@pytest.mark.slow
def test_a_folder_that_went_away_ends_the_run_in_a_sentence(unbroken, tmp_path, environment):
    """At once: Orbax leaves threads that wait for 20 minutes."""
    process = start(tmp_path, environment, "steps=4000")
    wait_for_step(tmp_path, 20, process)
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    (tmp_path / "checkpoints").write_text("in the way")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("error: The checkpoint of step")
    assert "Traceback" not in errors


@pytest.mark.slow
def test_weights_that_were_deleted_are_exported_again(unbroken, tmp_path, environment):
    workdir = shutil.copytree(unbroken[0], tmp_path / "run")
    before = load_encoder(workdir / "encoder").fingerprint()
    records_before = (workdir / "metrics.jsonl").read_bytes()
    shutil.rmtree(workdir / "encoder" / "weights")
    output = finish(start(workdir, environment))
    assert "It is exported again." in output
    assert load_encoder(workdir / "encoder").fingerprint() == before
    assert (workdir / "metrics.jsonl").read_bytes() == records_before  # no row twice


def test_a_finished_run(unbroken, environment, tmp_path):
    workdir, output = unbroken
    before = (workdir / "metrics.jsonl").read_bytes()
    again = finish(start(workdir, environment))
    assert "finished" in again
    assert (workdir / "metrics.jsonl").read_bytes() == before
    # The four lines of Python that it prints are run as they are.
    lines = output[output.index("or from Python:") :].splitlines()[1:5]
    names = {}
    exec("\n".join(line.strip() for line in lines), names)
    assert names["encodings"].shape == (1, load_encoder(workdir / "encoder").num_features)
    for path in (workdir, workdir / "checkpoints" / "50"):
        pixels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
        np.testing.assert_array_equal(load_encoder(path)(pixels), names["encoder"](pixels))
    shutil.copytree(workdir, tmp_path / "moved")
    load_encoder(tmp_path / "moved")


def test_records(unbroken):
    workdir, _ = unbroken
    steps = [r["step"] for r in records(workdir) if "loss" in r]
    assert steps == [*range(1, 11), *range(15, 51, 5)]
    evaluated = [r["step"] for r in records(workdir) if "eval/knn_top1" in r]
    # Before the first step too, since this recipe compares with the untrained encoder.
    assert evaluated == [0, 20, 40, 50]
    first = next(record for record in records(workdir) if "loss" in record)
    assert first["learning_rate"] > 0
    assert first["ema_momentum"] == pytest.approx(0.98)
    assert first["kl"] == pytest.approx(first["loss"] - first["assignment_entropy"], abs=1e-5)
    assert list((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == 32
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
    assert kept == [40, 50]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = ("steps=12", "method.temperature=1e-38", "eval.baselines=false", *ENCODER)
    config = load_config("configs/digits.py:smoke", overrides)
    with pytest.raises(
        FloatingPointError, match=r"loss of step \d+ is nan, as are .*; there is no checkpoint"
    ):
        train(config, tmp_path)


@pytest.mark.parametrize("mistake", ["encoder.patch_size=3", "init_from=weights.safetensors"])
def test_after_a_mistake_the_folder_takes_the_corrected_recipe(tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(ROOT)
    config = load_config("configs/digits.py:smoke", ("steps=1", *ENCODER, mistake))
    with pytest.raises(UserError, match=r"patch|weights"):
        train(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_init_from(unbroken, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir, _ = unbroken
    overrides = (f"init_from={workdir / 'encoder'}", *ENCODER)
    still = ("steps=1", "base_lr=1e-30", "weight_decay=0")
    train(load_config("configs/digits.py:smoke", overrides + still), tmp_path / "run")
    old = read_subtree(workdir / "checkpoints" / "50", "ema_params/encoder")["ema_params/encoder"]
    for name in ("ema_params/encoder", "params/encoder"):
        new = read_subtree(tmp_path / "run" / "checkpoints" / "1", name)[name]
        for x, y in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)
    wider = (*overrides, "encoder.width=128")
    with pytest.raises(UserError, match=r"init_from=.*shape"):
        train(load_config("configs/digits.py:smoke", wider), tmp_path / "other")

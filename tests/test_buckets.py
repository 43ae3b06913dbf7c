"""Runs and files in a bucket, against an emulator of Google Cloud Storage on this machine."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import fsspec
import gcsfs
import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from resa_jax import paths
from resa_jax.checkpoint import read_subtree
from resa_jax.errors import UserError
from resa_jax.paths import Mirror, as_path, local_input, local_output
from resa_jax.workdir import checkpoint_paths


ROOT = Path(__file__).parents[1]
PARTS = ("step", "params", "batch_stats", "ema_params", "ema_batch_stats", "opt_state")
SERVE = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""


@pytest.fixture(scope="module")
def bucket():
    """The address of an empty bucket; the environment leads every client to the emulator."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("NO_GCE_CHECK", "true")  # nobody looks for credentials on the network
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which needs them
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield "gs://bucket"
    server.kill()
    server.wait()
    gcsfs.GCSFileSystem.clear_instance_cache()
    fsspec.config.conf.clear()


@pytest.mark.parametrize("name", ["ftp://host/run", "gs:/bucket/run", "gs://", "GS://bucket/run"])
def test_other_schemes_are_refused(name):
    with pytest.raises(UserError, match=r"--workdir=.* or gs://BUCKET/NAME or s3://BUCKET/NAME"):
        as_path(name, "--workdir=")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"s3://b/run needs the package s3fs: pip install s3fs"):
        as_path("s3://b/run")


def test_paths_of_this_machine(tmp_path):
    assert as_path(str(tmp_path)) == tmp_path and type(as_path("a:b")) is type(tmp_path)
    assert not paths.is_remote(tmp_path)
    with local_input(tmp_path) as read, local_output(tmp_path) as written:
        assert read == written == tmp_path
    assert Mirror(tmp_path).folder == tmp_path


def test_files_come_and_go(bucket):
    target = as_path(f"{bucket}/files/out.npz")
    with local_output(target) as local:
        np.savez(local, x=np.arange(3))
        local.with_suffix(".csv").write_text("a,b\n")
    assert (target.parent / "out.csv").read_text() == "a,b\n"
    with local_input(target) as local, np.load(local) as arrays:
        np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
    paths.write_whole(target, "new")
    assert as_path(f"{bucket}/files/out.npz").read_text() == "new"
    paths.remove_tree(target.parent)
    assert not target.exists() and not target.parent.exists()


def test_a_growing_file_is_sent_at_intervals(bucket, monkeypatch):
    target = as_path(f"{bucket}/growing")
    now = [0.0]
    monkeypatch.setattr(paths.time, "monotonic", lambda: now[0])
    mirror = Mirror(target)
    file = mirror.folder / "metrics.jsonl"
    sent = target / "metrics.jsonl"
    for second, there in ((1, None), (59, None), (61, "1\n59\n61\n"), (100, "1\n59\n61\n")):
        now[0] = second
        with file.open("a") as stream:
            stream.write(f"{second}\n")
        mirror.show()
        assert (sent.read_text() if sent.exists() else None) == there
    mirror.show(now=True)
    assert sent.read_text() == "1\n59\n61\n100\n"
    mirror.close()
    again = Mirror(target)
    again.fetch("metrics.jsonl")
    assert (again.folder / "metrics.jsonl").read_text() == "1\n59\n61\n100\n"
    again.fetch("missing")
    again.close()


# 10 steps an epoch, with a checkpoint and an evaluation after each.
RECIPE = (
    *("--config=configs/digits.py:smoke", "--config.steps=60", "--config.batch_size=64"),
    *("--config.checkpoint.every_epochs=1", "--config.eval.every_epochs=1"),
    *("--config.checkpoint.keep=9", "--config.log_every=5", "--config.encoder.name=vitc_s16"),
    *("--config.encoder.patch_size=4", "--config.encoder.width=64", "--config.encoder.depth=1"),
)


@contextmanager
def command(module, *arguments):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    process = subprocess.Popen(
        [sys.executable, "-m", f"resa_jax.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(module, *arguments):
    with command(module, *arguments) as process:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return output


def records(workdir):
    timings = ("images_per_second", "data_wait_fraction", "tflops_per_device", "seconds/")
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(timings)}
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def assert_same_state(a, b):
    a, b = (read_subtree(checkpoint_paths(path)[-1], *PARTS) for path in (a, b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_of_a_folder(bucket, tmp_path):
    """Killed at three moments, stopped by SIGTERM, resumed; then evaluated, embedded, reported."""
    run = f"{bucket}/run"
    workdir = as_path(run)
    images, labels = load_digits(return_X_y=True)
    images = np.uint8(images[:640].reshape(640, 8, 8, 1).repeat(3, axis=3) * 15)
    np.savez(tmp_path / "digits.npz", images=images, labels=labels[:640])
    source = f"npz:{tmp_path / 'digits.npz'}"
    recipe = (*RECIPE, f"--config.data.source={source}")
    moments = (
        lambda: (workdir / "config.json").exists(),
        lambda: (workdir / "checkpoints" / "10" / "_CHECKPOINT_METADATA").exists(),
        lambda: len(checkpoint_paths(workdir)) == 2,
        lambda: any(record["step"] == 25 for record in records(workdir)),
    )
    for number, reached in zip((9, 9, 9, signal.SIGTERM), moments, strict=True):
        with command("main", *recipe, f"--workdir={run}") as process:
            while not reached():
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            process.send_signal(number)
            process.communicate(timeout=120)
        for newest in checkpoint_paths(workdir)[-1:]:
            # What was sent is whole, and goes on as far as the newest checkpoint.
            assert records(workdir)[-1]["step"] > int(newest.name) - 5
    finish("main", *recipe, f"--workdir={run}")
    finish("main", *recipe, f"--workdir={tmp_path / 'run'}")
    assert records(workdir) == records(tmp_path / "run")
    assert_same_state(workdir, tmp_path / "run")
    assert list((workdir / "tensorboard").iterdir())

    score = ("--protocol=knn-weighted", f"--source={source}")
    for name in (run, tmp_path / "run"):
        finish("evaluate", f"--encoder={name}", *score)
    results = [
        json.loads((place / "evaluation" / "knn-weighted.json").read_text())["results"]
        for place in (workdir, tmp_path / "run")
    ]
    assert results[0] == results[1]
    output = f"--output={bucket}/out/encodings.npz"
    finish("embed", f"--encoder={run}", f"--source={source}", "--groups=3", output)
    assert as_path(f"{bucket}/out/encodings.groups.csv").read_text()
    finish("report", f"--workdir={run}", "--max_images=40")
    assert "<h1>run" in (workdir / "report.html").read_text()
    weights = f"{bucket}/out/encoder.safetensors"
    assert f"to {weights}" in finish("convert", f"--input={run}", f"--output={weights}")
    start = (f"--config.init_from={weights}", f"--workdir={bucket}/next", "--config.steps=2")
    finish("main", *recipe, *start)

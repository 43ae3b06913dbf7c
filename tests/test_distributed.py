"""Runs of several real processes of this machine, on real images, against runs of one process.

The networks are those that compile fastest: the default ones run with the marker `slow`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from data_samples import photographs, small_images

from resa_jax.checkpoint import read_subtree
from resa_jax.errors import UserError
from resa_jax.processes.cluster import find_processes
from resa_jax.processes.distributed import HEARTBEAT_TIMEOUT_SECONDS


ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "distributed_worker.py"
PARTS = ("step", "params", "batch_stats", "ema_params", "ema_batch_stats", "opt_state")
FLOAT64 = {"JAX_ENABLE_X64": "1"}
DIGITS = "configs/digits.py:smoke"
# AdamW's first step is the gradient's sign, which rounding decides where the gradient is zero.
IN_FLOAT32 = {"optimizer.name": "sgd", "base_lr": 0.5}
# 40 images, batches of 8, a checkpoint every 5 steps.
STEPS_PER_EPOCH = 5
STEPS = 60
# With BatchNorm, in its stem.
VITC = {
    "encoder.name": "vitc_s16",
    "encoder.patch_size": 4,
    "encoder.width": 64,
    "encoder.depth": 1,
}
# For runs that are stopped: without BatchNorm a step has few collectives, which are slow on a CPU.
VIT = VITC | {"encoder.name": "vit_s16"}
# For processes that are killed: they read the compile cache, but leave no half entry there.
READ_ONLY_CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3600"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 small images in one folder, so without labels: nothing is evaluated."""
    nested = small_images(tmp_path_factory.mktemp("classes"), per_class=4)
    flat = tmp_path_factory.mktemp("images")
    for number, path in enumerate(sorted(nested.rglob("*.jpg"))):
        (flat / f"{number:03}.jpg").write_bytes(path.read_bytes())
    return flat


class Run:
    """Processes of one run; those still alive are killed at the end of the `with` block."""

    def __init__(self, workdir, num_processes, devices, environment=(), config=DIGITS, **overrides):
        self.workdir = workdir
        flags = []
        if num_processes > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            flags = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={num_processes}"]
        xla = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
        variables = {
            "XLA_FLAGS": xla,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "TEST_INDICES": str(workdir.with_name(workdir.name + "_indices")),
            "TEST_FSDP_BYTES": "1024",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, str(WORKER), f"--config={config}", f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in overrides.items()]
        self.processes = [
            subprocess.Popen(
                [*command, *flags, *([f"--process_id={i}"] if flags else [])],
                cwd=ROOT,
                env=os.environ | variables | dict(environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(num_processes)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()
            process.communicate()

    def finish(self):
        """The processes' outputs, once all have ended well."""
        outputs = []
        for process in self.processes:
            output, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
            outputs.append(output)
        return outputs

    def wait_for(self, step):
        """Until `step` is recorded and there is a checkpoint."""
        for _ in range(6000):
            steps = [record["step"] for record in records(self.workdir)]
            if steps and steps[-1] >= step and checkpoints(self.workdir):
                return
            for process in self.processes:
                assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        raise TimeoutError(f"no step {step} in {self.workdir}")


def finished(*arguments, **options):
    with Run(*arguments, **options) as run:
        run.finish()
    return run


def records(workdir):
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(workdir):
    return [record["loss"] for record in records(workdir) if "loss" in record]


def checkpoints(workdir):
    return sorted(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit())


def state(workdir, step=None):
    step = checkpoints(workdir)[-1] if step is None else step
    return read_subtree(workdir / "checkpoints" / str(step), *PARTS)


def stream(workdir):
    """The global batches that the run trained on, put together from its processes' parts."""
    parts = sorted(workdir.parent.glob(f"{workdir.name}_indices.*"))
    steps = zip(*(part.read_text().splitlines() for part in parts), strict=True)
    return [" ".join(rows) for rows in steps]


def assert_close(a, b, tolerance):
    """Equal to `tolerance`, relative where an array's largest entry is above 1."""
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        error = np.abs(x - y).max() / max(np.abs(y).max(), 1)
        assert error <= tolerance, (jax.tree_util.keystr(path), error)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def source(images, steps, **overrides):
    options = {"data.source": f"folder:{images}", "steps": steps, "checkpoint.every_epochs": 1}
    return options | overrides


@pytest.fixture(scope="module")
def five_steps_in_float64(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("float64") / "run"
    return finished(workdir, 1, 1, environment=FLOAT64, **VITC, **source(images, 5)).workdir


LAYOUTS = [
    pytest.param(2, 2, "dp", id="2x2-dp"),
    pytest.param(4, 1, "fsdp", id="4x1-fsdp"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "devices", "sharding"), LAYOUTS)
def test_five_steps_in_float64(
    images, five_steps_in_float64, tmp_path, num_processes, devices, sharding
):
    workdir = tmp_path / "run"
    options = VITC | source(images, 5, sharding=sharding)
    finished(workdir, num_processes, devices, environment=FLOAT64, **options)
    expected = state(five_steps_in_float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(expected["params"])} == {np.dtype("float64")}
    assert_close(state(workdir), expected, 1e-9)
    np.testing.assert_allclose(losses(workdir), losses(five_steps_in_float64), rtol=1e-9)
    assert stream(workdir) == stream(five_steps_in_float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "devices", "order"),
    [(2, 2, "0 1 0 1"), (4, 4, "0 0 1 1 1 1 0 2 3 3 3 3 2 2 2 0")],  # v5p 2x2x2, v5e 4x4
)
def test_the_order_in_which_jax_lists_devices_does_not_matter(
    tmp_path, num_processes, devices, order
):
    """Batches, losses, statistics and features' scores are those of one process and device."""
    classes = small_images(tmp_path / "images", per_class=4)
    options = VITC | source(classes, 3, batch_size=16)
    finished(tmp_path / "one", 1, 1, environment=FLOAT64, **options)
    environment = FLOAT64 | {"TEST_DEVICE_ORDER": order}
    finished(tmp_path / "run", num_processes, devices, environment=environment, **options)
    one, run = tmp_path / "one", tmp_path / "run"
    assert stream(run) == stream(one)
    # The float32 augmentations of few rows are rounded in another way; rows moved give 1.7e-3.
    statistics = state(run)["batch_stats"]
    assert_close(statistics, state(one)["batch_stats"], 2e-4)
    scores = [
        {name: value for record in records(path) for name, value in record.items()}
        for path in (run, one)
    ]
    names = {name for name in scores[1] if name == "loss" or name.startswith("eval/")}
    assert {"eval/knn_top1", "eval/encoding_ari", "eval/encoding_nmi"} < names
    for name in names:
        np.testing.assert_allclose(scores[0][name], scores[1][name], rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_one_step_in_float32(images, tmp_path):
    one, run = tmp_path / "one", tmp_path / "run"
    finished(one, 1, 1, **IN_FLOAT32, **source(images, 1))
    finished(run, 2, 2, **IN_FLOAT32, **source(images, 1, sharding="fsdp"))
    # Momentum holds the gradients, which float32 carries to 2e-5 of the largest behind BatchNorm.
    got, expected = (
        {name: tree for name, tree in state(path).items() if name != "opt_state"}
        for path in (run, one)
    )
    assert_close(got, expected, 1e-5)
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-5)


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    """A run of two processes."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    finished(workdir, 2, 1, **VIT, **source(images, STEPS))
    return workdir


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """The same run, of which one process got SIGTERM in mid-epoch; and the step it stopped at."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with Run(workdir, 2, 1, **VIT, **source(images, STEPS)) as run:
        run.wait_for(STEPS_PER_EPOCH + 2)
        run.processes[1].send_signal(signal.SIGTERM)
        outputs = run.finish()
    step = checkpoints(workdir)[-1]
    assert STEPS_PER_EPOCH < step < STEPS
    assert f"step {step} is saved" in outputs[0]
    # Only process 0 speaks; Gloo says for each process when it is connected.
    assert [line for line in outputs[1].splitlines() if "[Gloo]" not in line] == []
    return workdir, step


def copy(stopped, folder):
    workdir, step = stopped
    subprocess.run(["cp", "-r", workdir, folder / "run"], check=True)
    return folder / "run", step


@pytest.mark.slow
def test_sigterm_stops_all_and_the_same_number_resumes_bitwise(images, unbroken, stopped, tmp_path):
    workdir, step = copy(stopped, tmp_path)
    finished(workdir, 2, 1, **VIT, **source(images, STEPS))
    assert_same(state(workdir), state(unbroken))
    assert losses(workdir) == losses(unbroken)
    assert stream(workdir) == stream(unbroken)[step:]


@pytest.mark.slow
def test_both_pass_over_a_damaged_checkpoint(images, unbroken, stopped, tmp_path):
    workdir, step = copy(stopped, tmp_path)
    parts = (workdir / "checkpoints" / str(step)).rglob("ocdbt.process_*/d/*")
    largest = max(parts, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with Run(workdir, 2, 1, **VIT, **source(images, STEPS)) as run:
        outputs = run.finish()
    assert f"checkpoints/{step} is damaged" in outputs[0]
    assert (workdir / "checkpoints" / f"damaged-{step}").is_dir()
    assert_same(state(workdir), state(unbroken))
    assert losses(workdir) == losses(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 4])
def test_another_number_of_processes_continues_the_stream(
    images, unbroken, stopped, tmp_path, num_processes
):
    workdir, step = copy(stopped, tmp_path)
    finished(workdir, num_processes, 1, **VIT, **source(images, STEPS))
    assert stream(workdir) == stream(unbroken)[step:]
    # The step after the stop has the same loss: the restored state and the views are the same.
    np.testing.assert_allclose(losses(workdir)[step], losses(unbroken)[step], rtol=1e-4)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_resumes(images, tmp_path):
    workdir = tmp_path / "run"
    with Run(workdir, 2, 1, READ_ONLY_CACHE, **VIT, **source(images, 100_000)) as run:
        run.wait_for(STEPS_PER_EPOCH + 2)
        run.processes[1].kill()
        _, errors = run.processes[0].communicate(timeout=2 * HEARTBEAT_TIMEOUT_SECONDS)
        assert run.processes[0].returncode not in (0, None)
        assert "What is saved is whole" in errors
    last = checkpoints(workdir)[-1]
    with Run(workdir, 2, 1, **VIT, **source(images, 100_000)) as run:
        run.wait_for(last + 2 * STEPS_PER_EPOCH)
        run.processes[0].send_signal(signal.SIGTERM)
        assert f"Going on after step {last}" in run.finish()[0]


@pytest.mark.slow
@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_process_ends_the_other(images, tmp_path, silent):
    # A process that is stopped keeps its connections, as one whose network is gone: only the
    # heartbeats tell. Process 0 is the one that counts them.
    environment = READ_ONLY_CACHE | {"TEST_HEARTBEAT_SECONDS": "20"}
    with Run(tmp_path / "run", 2, 1, environment, **VIT, **source(images, 100_000)) as run:
        run.wait_for(STEPS_PER_EPOCH + 2)
        run.processes[silent].send_signal(signal.SIGSTOP)
        _, errors = run.processes[1 - silent].communicate(timeout=100)
        assert run.processes[1 - silent].returncode not in (0, None)
        last = errors.strip().splitlines()[-1]
        assert last.startswith(f"error: Process {1 - silent} of the run was ended") or (
            "command again on all hosts" in last
        )


@pytest.mark.slow
def test_imagenet_vits_on_photographs(tmp_path):
    photographs(tmp_path / "images", count=24)
    finished(
        tmp_path / "run",
        2,
        1,
        config="configs/imagenet_vits.py:smoke",
        **source(tmp_path / "images", 2),
    )
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert (tmp_path / "run" / "encoder" / "encoder.json").exists()


SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
SRUN = SLURM | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "node[1-2]"}


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((None, None, None), {}, None),
        ((None, None, None), {"SLURM_NTASKS": "1"}, None),
        ((None, None, None), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ((None, 1, None), SLURM, None),
        ((None, None, None), SRUN, {"cluster_detection_method": "slurm"}),
        (
            (None, None, None),
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"},
            {"cluster_detection_method": "ompi"},
        ),
        (
            ("host:1234", 2, 1),
            SRUN,
            {
                "coordinator_address": "host:1234",
                "num_processes": 2,
                "process_id": 1,
                "cluster_detection_method": "deactivate",
            },
        ),
    ],
)
def test_processes_are_found(flags, environment, expected):
    assert find_processes(*flags, environment) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        ((None, 2, None), {}, "--coordinator_address and --process_id not given"),
        (("host:1234", None, None), {}, "--num_processes and --process_id not given"),
        (("host", 2, 0), {}, "--coordinator_address=host must be HOST:PORT"),
        (("host:1234", 2, 2), {}, "--process_id=2 must be from 0 to 1"),
        ((None, None, None), SLURM, "SLURM_NTASKS is 4, but SLURM_PROCID is not set.*srun"),
        (
            (None, None, None),
            SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            "SLURM_STEP_NODELIST is not set.*srun",
        ),
        ((None, None, None), {"SLURM_NTASKS": "two"}, "SLURM_NTASKS is 'two'"),
        ((None, None, None), {"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2.*mpi4py"),
        (
            (None, None, None),
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            r"pip install 'jax\[k8s\]'",
        ),
    ],
)
def test_what_is_half_set_gets_a_sentence(flags, environment, sentence, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no optional package
    with pytest.raises(UserError, match=sentence):
        find_processes(*flags, environment)

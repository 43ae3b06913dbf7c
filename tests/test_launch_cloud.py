"""launch/tpu_vm.sh against a stand-in for Google Cloud: preemption, failure, signals, quoting."""

import os
import signal
import time
from pathlib import Path

import pytest
from gcloud_stand_in import FINISHED, FOREVER, LOOP, Cloud


NAME = ["--name=resa", "--zone=us-west4-a"]


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path / "cloud")
    yield cloud
    cloud.close()


@pytest.fixture
def run(tmp_path):
    return ["--", "--config=configs/imagenet_vits.py", f"--workdir={tmp_path / 'runs' / 'vits'}"]


def wait_for(condition, process=None):
    for _ in range(3000):
        if condition():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def started(cloud):
    paths = [cloud.folder / f"hosts/0/{i}/resa_jax/run.pid" for i in range(2)]
    return [path.exists() and path.read_text() != "" for path in paths]


def test_a_finished_run(cloud, run):
    cloud.play(["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 0, result.stderr
    looks, *_, last = cloud.calls[7:]  # as often as the run needs
    assert cloud.calls[:7] == ["create", *["describe"] * 3, "scp", "ssh", "ssh"]
    assert (looks, last) == ("describe", "delete")
    assert cloud.starts(2) == 2  # both hosts
    assert not cloud.exists


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "SUSPENDING"])
def test_preempted_while_provisioning(cloud, run, state):
    cloud.play(["PROVISIONING", state])
    cloud.play()
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 0, result.stderr
    assert [c for c in cloud.calls if c in ("create", "delete", "scp")] == [
        *["create", "delete"],
        *["create", "scp", "delete"],
    ]
    assert not cloud.exists


def test_preempted_while_installing(cloud, run):
    cloud.play(["ACTIVE", "SUSPENDED"], install="exit 255")
    cloud.play()
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 0, result.stderr
    assert cloud.calls.count("create") == cloud.calls.count("delete") == 2
    assert cloud.starts(2) == 2


@pytest.mark.parametrize("ending", [FOREVER, "exit 0", "exit 1"], ids=["dead", "saved", "failed"])
def test_preempted_while_running(cloud, run, ending):
    # A run that is told of its preemption saves and ends with 0 before its host is gone.
    cloud.play(["ACTIVE", "ACTIVE", "SUSPENDING"], run=ending)
    cloud.play()
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 0, result.stderr
    assert cloud.calls.count("create") == cloud.calls.count("delete") == 2
    assert "asked for again (1 of 100)" in result.stdout
    assert cloud.starts(4) == 4


def test_relaunches_are_bounded(cloud, run):
    for _ in range(3):
        cloud.play(["SUSPENDED"])
    result = cloud("launch", *NAME, "--max-relaunches=2", *run)
    assert result.returncode == 1
    assert "gives up" in result.stderr
    assert cloud.calls.count("create") == cloud.calls.count("delete") == 3
    assert not cloud.exists


def test_a_failing_install_is_tried_again_on_the_same_slice(cloud, run):
    cloud.play(install="test -e $CLOUD/second || { touch $CLOUD/second; exit 1; }")
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 0, result.stderr
    assert cloud.calls.count("create") == 1
    assert cloud.calls.count("scp") == 2


def test_an_install_that_always_fails(cloud, run):
    cloud.play(install="exit 1")
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 1
    assert "failed install" in result.stderr
    assert cloud.calls.count("scp") == 6
    assert not cloud.exists
    assert cloud.runs == []


def test_a_mistake_is_not_tried_again(cloud, run):
    # Only the second host sees it; the first ends with another code.
    mistake = "echo 'error: no such file'; [[ $HOME == */1 ]] && exit 2; exit 1"
    cloud.play(run=mistake)
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 2
    assert "code 2" in result.stderr
    assert "error: no such file" in result.stdout  # the log, before the host is gone
    assert cloud.calls.count("create") == cloud.calls.count("delete") == 1
    assert cloud.starts(2) == 2
    assert not cloud.exists


def test_a_failing_run_is_tried_again_on_the_same_slice(cloud, run):
    cloud.play(run=f"test -e $HOME/second && {FINISHED} || {{ touch $HOME/second; exit 1; }}")
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 0, result.stderr
    assert cloud.calls.count("create") == cloud.calls.count("scp") == 1
    assert cloud.starts(4) == 4


@pytest.mark.parametrize("code", [1, 137, 0])
def test_a_run_that_always_fails(cloud, run, code):
    # Code 0 without the exported encoder is no finished run.
    cloud.play(run=f"exit {code}")
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 1
    assert "gives up" in result.stderr
    assert cloud.starts(6 * 2) == 6 * 2
    assert not cloud.exists


def test_what_is_left_of_a_start_is_killed_before_the_next(cloud, run):
    # The first host fails, the second one hangs with the chips in its hands.
    hangs = f"trap '' TERM; touch $HOME/alive.$$; {LOOP}"
    cloud.play(run=f"test -e $HOME/second && {FINISHED} && exit; touch $HOME/second\n"
               f"[[ $HOME == */0 ]] && exit 1; {hangs}")  # fmt: skip
    result = cloud("launch", *NAME, "--keep", *run)
    assert result.returncode == 0, result.stderr
    (alive,) = cloud.folder.glob("hosts/0/1/alive.*")
    # Dead, though perhaps not reaped yet.
    stat = Path(f"/proc/{alive.suffix[1:]}/stat")
    assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] in "ZX"


def test_the_time_limit(cloud, run):
    cloud.play(run=FOREVER)
    result = cloud("launch", *NAME, "--max-duration=0.2s", *run)
    assert result.returncode == 124
    assert "--max-duration=0.2s" in result.stderr
    assert not cloud.exists


@pytest.mark.parametrize("trapped", [True, False])
def test_stop_ends_the_launch(cloud, run, trapped):
    # A run that is still starting dies of SIGTERM.
    cloud.play(run=FOREVER if trapped else LOOP)
    process = cloud.start("launch", *NAME, *run)
    wait_for(lambda: all(started(cloud)), process)
    assert cloud("stop", *NAME).returncode == 0
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert not cloud.exists


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
@pytest.mark.parametrize("phase", ["provision", "install", "run"])
def test_a_signal_deletes_the_slice(cloud, run, number, code, phase):
    states = ["PROVISIONING"] if phase == "provision" else ["ACTIVE"]
    hang = "while test -e $HOME; do sleep 0.05; done"
    cloud.play(states, install=hang if phase == "install" else "true", run=FOREVER)
    process = cloud.start("launch", *NAME, *run)
    reached = {
        "provision": lambda: cloud.calls.count("describe") > 2,
        "install": lambda: (cloud.folder / "installs").exists() and "pip" in cloud.installs,
        "run": lambda: len(cloud.runs) == 2,
    }
    wait_for(reached[phase], process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not cloud.exists
    assert "delete" in cloud.calls


@pytest.mark.parametrize(("ending", "code"), [(FINISHED, 0), ("exit 2", 2), ("exit 1", 1)])
def test_keep(cloud, run, ending, code):
    cloud.play(run=ending)
    result = cloud("launch", *NAME, "--keep", *run)
    assert result.returncode == code
    assert cloud.exists
    assert "launch/tpu_vm.sh delete --name=resa --zone=us-west4-a" in result.stdout


def test_a_slice_of_that_name_is_left_alone(cloud, run):
    cloud.play(run=FOREVER)
    assert cloud("create", *NAME).returncode == 0
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 1
    assert "ALREADY_EXISTS" in result.stderr
    assert "could not be created" in result.stderr
    assert cloud.exists


def test_variables_arrive_unchanged(cloud, run):
    values = {
        "TFDS_DATA_DIR": "/mnt/my data/tfds",
        "QUOTES": 'it\'s "quoted" \\ $HOME `date` $(date) !! * ;&|<>',
        "LINES": "one\ntwo\n",
        "EMPTY": "",
        "EQUALS": "a=b=c",
        "UMLAUT": "grün",
        "JAX_COMPILATION_CACHE_DIR": "/elsewhere",
        "LIBTPU_INIT_ARGS": "--mine=1",
    }
    options = [f"--env={name}={value}" for name, value in values.items()]
    options[:1] = ["--env", options[0].removeprefix("--env=")]
    cloud.play()
    field = '--config.data.source=folder:it\'s my "data"'
    result = cloud("launch", *NAME, *options, *run, field)
    assert result.returncode == 0, result.stderr
    assert cloud.starts(2) == 2
    for arguments, environment in cloud.runs:
        assert arguments == ["-m", "resa_jax.main", *run[1:], field]
        assert values.items() <= environment.items()


def test_environment_of_a_run(cloud, run):
    cloud.play()
    assert cloud("launch", *NAME, *run).returncode == 0
    for _, environment in cloud.runs:
        workdir = run[-1].removeprefix("--workdir=")
        assert environment["JAX_COMPILATION_CACHE_DIR"] == f"{workdir}/compile_cache"
        assert "--xla_tpu_enable_async_collective_fusion=true" in environment["LIBTPU_INIT_ARGS"]
        assert "data_parallel_all_reduce_opt" not in environment["LIBTPU_INIT_ARGS"]


def test_several_slices(cloud, run):
    cloud.play()
    result = cloud("launch", *NAME, "--slices=3", *run)
    assert result.returncode == 0, result.stderr
    create = cloud.commands[0]
    assert {"--node-count=3", "--node-prefix=resa"} <= set(create)
    assert not [word for word in create if word.startswith("--node-id")]
    assert cloud.starts(3 * 2) == 3 * 2
    for _, environment in cloud.runs:
        flags = environment["LIBTPU_INIT_ARGS"].split()
        assert "--xla_tpu_enable_data_parallel_all_reduce_opt=true" in flags


def test_a_workdir_in_a_bucket(cloud):
    run = ["--", "--config=c", "--workdir=gs://bucket/runs/vits"]
    cloud.play(run='touch "$CLOUD/finished"')
    result = cloud("launch", *NAME, *run)
    assert result.returncode == 0, result.stderr
    assert ".[tpu,gcs]" in cloud.installs
    for _, environment in cloud.runs:
        assert environment["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/runs/vits/compile_cache"
    assert not (cloud.folder / "sudo").exists()  # no mount was asked for


def test_mount_installs_gcsfuse_once(cloud, run):
    cloud.play()
    assert cloud("create", *NAME).returncode == 0
    for _ in range(2):
        result = cloud("setup", *NAME, "--mount=bucket", *run)
        assert result.returncode == 0, result.stderr
    done = (cloud.folder / "sudo").read_text()
    assert done.count("install -y gcsfuse") == 1  # the hosts of the stand-in share their programs
    assert done.count("mkdir -p /mnt/bucket") == 4
    assert ".[tpu]" in cloud.installs


def test_stop_by_hand(cloud, run):
    cloud.play(run=f"trap 'touch $HOME/saved; exit 0' TERM; touch $HOME/ready; {LOOP}")
    for command in ("create", "wait", "setup", "run"):
        result = cloud(command, *NAME, *run)
        assert result.returncode == 0, result.stderr
    wait_for(lambda: (cloud.folder / "hosts/0/0/ready").exists() and all(started(cloud)))
    assert cloud("stop", *NAME).returncode == 0
    wait_for((cloud.folder / "hosts/0/0/saved").exists)
    assert cloud("delete", *NAME).returncode == 0
    assert not cloud.exists

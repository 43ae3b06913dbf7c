"""Evaluation and embedding by several real processes, against one."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from data_samples import small_images
from evaluation_run import ROOT, make_run


BAD = 3  # an image that cannot be decoded, so that a batch has a stand-in


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty images in ten classes, one of them broken, and a list of the first two of each."""
    folder = small_images(tmp_path_factory.mktemp("images"), per_class=4)
    paths = sorted(folder.rglob("*.jpg"))
    paths[BAD].write_bytes(b"no image")
    chosen = [f"{path.parent.name}/{path.name}" for path in paths if int(path.stem) % 4 < 2]
    (folder.parent / "list.txt").write_text("\n".join(chosen or [p.name for p in paths]))
    return folder


def start(number, count, address, module, *arguments):
    flags = [f"--coordinator_address={address}", f"--num_processes={count}"]
    command = [sys.executable, "-m", f"resa_jax.{module}", *map(str, arguments)]
    return subprocess.Popen(
        command + ([*flags, f"--process_id={number}"] if count > 1 else []),
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": str(4 // count)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(count, module, *arguments, expected=0, differs=()):
    """Outputs and errors of the processes of a command; `differs`: what the last one gets too."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    processes = [
        start(n, count, address, module, *arguments, *(differs if n == count - 1 else ()))
        for n in range(count)
    ]
    said = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [expected] * count, said[0][1][-1500:]
    return said


def results(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one(images, tmp_path):
    made = make_run(tmp_path / "one")
    shutil.copytree(made, tmp_path / "two")
    training = "--epochs=3", "--batch_size=12"
    for count, name in ((1, "one"), (2, "two")):
        common = f"--encoder={tmp_path / name}", f"--source=folder:{images}", "--on_bad_image=skip"
        for protocols, *options in (
            ("knn-weighted,knn-cifar,clustering", "--extract_batch=16"),
            ("linear-cifar,linear-imagenet", *training),
            ("finetune-10", *training, f"--list_file={images.parent}/list.txt"),
        ):
            # As many devices in all: k-means of an untrained network magnifies rounding.
            said = run(count, "evaluate", *common, f"--protocol={protocols}", *options)
            assert "Written to" in said[0][0]
    assert "top1" not in said[1][0]  # process 0 speaks for all
    one, two = (results(tmp_path / name / "evaluation") for name in ("one", "two"))
    assert len(one) == 6 and one.keys() == two.keys()
    for name in one:
        assert one[name]["num_train"] == two[name]["num_train"]
        check_like(one[name]["results"], two[name]["results"], name)
    one, two = (tmp_path / name / "evaluation" / "features" for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.rglob("*.npy"))
    assert files and files == sorted(path.relative_to(two) for path in two.rglob("*.npy"))
    for path in files:
        np.testing.assert_allclose(np.load(two / path), np.load(one / path), rtol=1e-5, atol=1e-5)


def check_like(one, two, name):
    if isinstance(one, dict):
        assert one.keys() == two.keys(), name
        for key in one:
            check_like(one[key], two[key], f"{name}.{key}")
    else:
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_embed_as_one(images, tmp_path):
    workdir = make_run(tmp_path / "run")
    arguments = f"--encoder={workdir}", f"--source=folder:{images}", "--on_bad_image=skip"
    options = "--batch_size=16", "--groups=2", "--layers=embedding"
    for count in (1, 2):
        run(count, "embed", *arguments, *options, f"--output={tmp_path / f'{count}.npz'}")
    with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as two:
        assert len(one["encodings"]) == 39 and one.files == two.files
        for name in one.files:
            if one[name].dtype.kind == "f":
                np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(two[name], one[name])
    assert (tmp_path / "2.groups.csv").read_text() == (tmp_path / "1.groups.csv").read_text()


@pytest.mark.slow
def test_processes_that_differ_are_refused(images, tmp_path):
    workdir = make_run(tmp_path / "run")
    arguments = f"--encoder={workdir}", f"--source=folder:{images}", "--on_bad_image=skip"
    said = run(
        2,
        "evaluate",
        *arguments,
        "--protocol=knn-cifar",
        expected=2,
        differs=["--resize=9"],
    )
    for _, errors in said:
        assert "error: The processes of the run differ: --resize is None on process 0" in errors


@pytest.mark.slow
def test_one_host_alone_is_told_of_the_others(monkeypatch):
    script = (
        "from resa_jax.processes import distributed\n"
        "distributed.START_TIMEOUT_SECONDS = 5\n"
        "options = {'coordinator_address': '127.0.0.1:%d', 'num_processes': 2, 'process_id': %d}\n"
        "with distributed.joined_processes(options | {'cluster_detection_method': 'deactivate'}):\n"
        "    pass\n"
    )
    for number in range(2):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-c", script % (port, number)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode != 0
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: The processes of the run did not all start within 5 s.")

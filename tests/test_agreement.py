"""Processes that would not do the same refuse to start, and say what differs."""

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from data_samples import small_images

from resa_jax.config import load_config
from resa_jax.data.decode import Decoding
from resa_jax.data.images import FolderImages, MemoryImages, Source
from resa_jax.errors import UserError
from resa_jax.processes import agreement


ROOT = Path(__file__).parents[1]
NAMES = [f"{n:03}.jpg" for n in range(37)]


def folder(names=NAMES, class_names=()):
    return Source(FolderImages("images", names, None, Decoding(32)), class_names=class_names)


def recipe(*overrides):
    return load_config(str(ROOT / "configs" / "digits.py:smoke"), overrides)


class Together:
    """Threads that play the processes of a run."""

    def __init__(self, count, monkeypatch):
        self.count, self.texts = count, [None] * count
        self.barrier, self.own = threading.Barrier(count, timeout=20), threading.local()
        self.gathers = 0
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(agreement, "_gather", self.gather)

    def gather(self, text):
        self.texts[self.own.number] = text
        self.barrier.wait()
        texts = list(self.texts)
        self.barrier.wait()
        self.gathers += 1
        return texts

    def __call__(self, *arguments):
        """What each process says; None where it goes on."""
        said = [None] * self.count

        def run(number):
            self.own.number = number
            try:
                agreement.check_agreement(*arguments[number])
            except UserError as error:
                said[number] = str(error)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return said


def test_like_processes_go_on(monkeypatch):
    together = Together(3, monkeypatch)
    process = (recipe(), "runs/a", {"config.data.source": folder()})
    assert together(process, process, process) == [None] * 3


@pytest.mark.parametrize(
    ("override", "workdir", "source", "sentence"),
    [
        ("base_lr=0.25", "a", folder(), "config.base_lr is 0.5 on process 0 and 0.25 on process 1"),
        ("sharding=fsdp", "a", folder(), "config.sharding is 'dp' .* and 'fsdp' on process 1"),
        ("eval.every_epochs=3", "a", folder(), "config.eval.every_epochs is 0 .* and 3 on"),
        ("encoder.remat=true", "a", folder(), "config.encoder.remat is False .* and True on"),
        ("seed=0", "b", folder(), "--workdir is a on process 0 and b on process 1"),
        ("seed=0", "a", folder(class_names=("x",)), "classes of config.data.source is .* and x on"),
    ],
)
def test_what_differs_is_named(monkeypatch, override, workdir, source, sentence):
    together = Together(2, monkeypatch)
    first = (recipe("base_lr=0.5"), "a", {"config.data.source": folder()})
    config = recipe("base_lr=0.5", override)
    said = together(first, (config, workdir, {"config.data.source": source}))
    assert said[0] == said[1] and said[0] is not None
    assert re.search(sentence, said[0]), said[0]


@pytest.mark.parametrize("missing", [0, 1, 17, 35, 36])
def test_the_first_file_that_differs_is_named(monkeypatch, missing):
    together = Together(3, monkeypatch)
    fewer = NAMES[:missing] + NAMES[missing + 1 :]
    like = (recipe(), "a", {"config.data.source": folder()})
    said = together(like, like, (recipe(), "a", {"config.data.source": folder(fewer)}))
    there = f"images/{fewer[missing]}" if missing < len(fewer) else "missing"
    assert len(set(said)) == 1
    assert f"image {missing} of config.data.source (of 37 and 36)" in said[0]
    assert f"is images/{NAMES[missing]} on process 0 and {there} on process 2" in said[0]


def test_images_in_memory_are_compared_by_their_paths(monkeypatch):
    def source(paths):
        pixels = np.zeros((2, 8, 8, 3), np.uint8)
        images = MemoryImages(pixels, np.full((2, 2), 8, np.int32), None, paths)
        return {"config.data.source": Source(images, class_names=())}

    together = Together(2, monkeypatch)
    said = together(
        (recipe(), "a", source(("a.png", "b.png"))), (recipe(), "a", source(("a.png", "c.png")))
    )
    assert "image 1 of config.data.source (of 2 and 2) is b.png on process 0 and c.png" in said[0]


def test_versions_and_code_are_compared(monkeypatch):
    together = Together(2, monkeypatch)
    real = importlib.metadata.version

    def version(name):
        other = name == "optax" and together.own.number == 1
        return "0.0.1" if other else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    process = (recipe(), "a", {"config.data.source": folder()})
    said = together(process, process)
    assert f"the version of optax is {real('optax')} on process 0 and 0.0.1 on" in said[0]
    monkeypatch.undo()
    together = Together(2, monkeypatch)
    monkeypatch.setattr(agreement, "_code", lambda: f"0.2.0 ({together.own.number})")
    assert (
        "the code of resa_jax is 0.2.0 (0) on process 0 and 0.2.0 (1) on"
        in together(process, process)[0]
    )


OTHERS = {
    "base_lr": ("--config.base_lr=0.25", "config.base_lr is 0.5 on process 0"),
    "sharding": ("--config.sharding=fsdp", "config.sharding is 'dp' on process 0 and 'fsdp' on"),
    "period": ("--config.eval.every_epochs=7", "config.eval.every_epochs is"),
    "file": (None, "image 0 of config.data.source (of 40 and 39) is"),
    "version": (None, "the version of optax is"),
}


@pytest.mark.slow
@pytest.mark.parametrize("differs", OTHERS)
def test_real_processes_end_soon(tmp_path, differs):
    override, sentence = OTHERS[differs]
    here = small_images(tmp_path / "0", per_class=4)
    there = tmp_path / "1"
    shutil.copytree(here, there)
    if differs == "file":
        next(iter(sorted(there.rglob("*.jpg")))).unlink()
    package = tmp_path / "packages" / "optax-0.0.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    processes = []
    for number in range(2):
        (tmp_path / f"at{number}").mkdir()
        (tmp_path / f"at{number}" / "images").symlink_to((here, there)[number])
        command = [
            *(sys.executable, "-m", "resa_jax.main", f"--config={ROOT}/configs/digits.py:smoke"),
            *("--config.data.source=folder:images", f"--workdir={tmp_path}/run"),
            *("--config.base_lr=0.5", f"--coordinator_address={address}"),
            *("--num_processes=2", f"--process_id={number}"),
            *([override] if override and number == 1 else []),
        ]
        path = os.pathsep.join([str(ROOT), *sys.path])
        if differs == "version" and number == 1:
            path = f"{package.parent}{os.pathsep}{path}"
        processes.append(
            subprocess.Popen(
                command,
                cwd=tmp_path / f"at{number}",
                env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": path},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    for text in errors:
        assert f"error: The processes of the run differ: {sentence}" in text
    assert not (tmp_path / "run" / "config.json").exists()

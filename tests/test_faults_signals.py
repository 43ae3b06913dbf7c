"""Signals: noticed once, obeyed at once the second time, and given back."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from resa_jax import UserError
from resa_jax.data.pipeline import batches
from resa_jax.data.sources import open_source
from resa_jax.processes.distributed import Preemption


@pytest.fixture(autouse=True)
def interrupts():
    """Python's own handler, also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_worker_that_was_killed_is_named(tmp_path):
    for number in range(8):
        Image.new("RGB", (128, 128)).save(tmp_path / f"{number}.png")
    source = open_source(f"folder:{tmp_path}")
    with batches(source, batch_size=4, seed=0, start_step=0, num_steps=10_000, workers=1) as stream:
        next(stream)
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(UserError, match=r"has died \(exit code -9.*lack of memory"):
            for _ in range(1000):
                next(stream)


OPENS_WORKERS = """
import multiprocessing, sys, time
from resa_jax.data.pipeline import batches
from resa_jax.data.sources import open_source

if __name__ == "__main__":
    source = open_source("folder:" + sys.argv[1])
    options = {"batch_size": 4, "seed": 0, "start_step": 0, "num_steps": 10_000, "workers": 1}
    with batches(source, **options) as stream:
        next(stream)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)
"""


def test_workers_end_with_a_killed_run(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        Image.new("RGB", (128, 128)).save(images / f"{number}.png")
    (tmp_path / "run.py").write_text(OPENS_WORKERS)
    command = [sys.executable, str(tmp_path / "run.py"), str(images)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert workers
    for pid in workers:
        for _ in range(200):
            if not Path(f"/proc/{pid}").exists():
                break
            time.sleep(0.05)
        else:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"worker {pid} lives on")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_asks_to_stop_after_the_step(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), number)
        assert preemption.reached(2)
        assert preemption.signal == name
    assert signal.getsignal(number) == before


def test_a_second_interrupt_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), Preemption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not preemption.reached(1)
    finally:
        signal.signal(signal.SIGHUP, before)

"""Signals: noticed once, obeyed at once the second time, and given back."""

import multiprocessing
import os
import signal

import pytest
from PIL import Image

from resa_jax import UserError
from resa_jax.data.pipeline import batches
from resa_jax.data.sources import open_source
from resa_jax.processes.distributed import Preemption


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

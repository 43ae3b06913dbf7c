"""Signals: noticed once, obeyed at once the second time, and given back."""

import os
import signal

import pytest

from resa_jax.processes.distributed import Preemption


@pytest.fixture(autouse=True)
def interrupts():
    """Python's own handler, also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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

"""Signals: noticed once, obeyed at once the second time, and given back."""

import os
import signal
import subprocess
import sys
import time

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


def test_a_second_interrupt_ends_a_program_that_cannot_hear_it():
    # One call of C that lasts, as XLA's compiler does.
    program = """if True:
        import hashlib
        from resa_jax.processes.interrupts import second_interrupt_ends
        with second_interrupt_ends(patience=0.2):
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # until it is within that call
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert "Once more leaves at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert "Left at once" in process.stderr.read()
    assert process.returncode == 130

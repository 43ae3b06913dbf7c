"""Ctrl-C while the main thread cannot hear it, as in a long compilation."""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def second_interrupt_ends(patience: float = 3.0) -> Iterator[None]:
    """Makes a second Ctrl-C end the process, with exit code 130, wherever it is.

    Python runs its signal handlers between two of its own instructions; XLA compiles for minutes
    within one. What the handlers do comes first: only after `patience` seconds the process ends
    without it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    heard, signals = os.pipe()
    os.set_blocking(signals, False)
    before = signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard, patience), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(signals)  # which ends the thread


def _watch(heard: int, patience: float) -> None:
    """Reads the numbers of the signals as they come in."""
    _until_interrupt(heard)
    if not select.select([heard], [], [], patience)[0]:
        os.write(2, b"\nCtrl-C: the work at hand is finished first. Once more leaves at once.\n")
    _until_interrupt(heard)
    time.sleep(patience)
    os.write(2, b"\nLeft at once. What was saved before is whole.\n")
    os._exit(128 + signal.SIGINT)


def _until_interrupt(heard: int) -> None:
    while number := os.read(heard, 1):
        if number[0] == signal.SIGINT:
            return
    os.close(heard)
    raise SystemExit  # of this thread

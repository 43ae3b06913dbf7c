"""Processes: joining those of a cluster, and leaving together when one is told to stop or dies."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

from resa_jax.errors import UserError


# A process that has not been heard of for so long is dead, and JAX ends all the others.
HEARTBEAT_TIMEOUT_SECONDS = 100  # JAX's default: one that compiles on a busy host may be late
_LAST_WORDS_SECONDS = 2


@contextmanager
def joined_processes(options: Mapping[str, Any] | None) -> Iterator[None]:
    """Joins the run's other processes; to be entered before anything asks JAX for its devices.

    When a process fails, or sees in an operation over all of them that another has died, it says so
    and ends at once with a non-zero code: JAX's own end would wait for the others, which wait in
    turn. Where nothing is seen, JAX ends the process `HEARTBEAT_TIMEOUT_SECONDS` after the other's
    last sign of life, or a few seconds later.

    Args:
      options: what `resa_jax.training.cluster.find_processes` returns; None does nothing.
    """
    if options is None:
        yield
        return
    try:
        jax.distributed.initialize(
            **options,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        )
        if jax.process_index() > 0:  # process 0 speaks for all
            logging.getLogger("resa_jax").setLevel(logging.WARNING)
        yield
    except BaseException as error:
        _leave(error)
    jax.distributed.shutdown()


def _leave(error):
    code = 1
    if isinstance(error, UserError | FloatingPointError):
        print(f"error: {error}", file=sys.stderr)
        code = 2
        if jax.process_index() == 0:
            # The end of process 0 ends the others, which may have a sentence of their own to say.
            time.sleep(_LAST_WORDS_SECONDS)
    elif isinstance(error, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        code = 130
    elif isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"error: {error}\nSo it looks when another process of the run has died or cannot be "
            "reached; what that one printed says why. The last checkpoint is whole: start all "
            "processes again with the same --workdir.",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Preemption:
    """Notices SIGTERM, SIGHUP and Ctrl-C; a context manager that gives the old handlers back.

    A second Ctrl-C raises KeyboardInterrupt where the program is. What was ignored before, as
    SIGHUP under nohup, stays ignored. On several processes JAX's own service catches SIGTERM, which
    the other two signals become, and all processes learn of it at the same step, provided that all
    ask at every step.

    Attributes:
      signal: the name of what was received, as in "SIGTERM".
    """

    def __enter__(self):
        self.signal: str | None = None
        self._distributed = jax.process_count() > 1
        self._old: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals
        caught = signal.SIGINT, signal.SIGHUP, *(() if self._distributed else (signal.SIGTERM,))
        for number in caught:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number, frame):
        if number == signal.SIGINT:
            if self.signal == "SIGINT":
                raise KeyboardInterrupt
            # Not by print, which this may have interrupted.
            os.write(2, b"\nCtrl-C: saving after this step. Once more leaves at once.\n")
        self.signal = signal.Signals(number).name
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step."""
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal is not None

"""Joining the processes of a run, and leaving together when one is told to stop or dies."""

import logging
import os
import signal
import subprocess
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
START_TIMEOUT_SECONDS = 300
# Process 0 may write for long after the others have done their part.
_END_TIMEOUT_SECONDS = 3600
_LAST_WORDS_SECONDS = 2


@contextmanager
def joined_processes(options: Mapping[str, Any] | None) -> Iterator[None]:
    """Joins the run's other processes; to be entered before anything asks JAX for its devices.

    When a process fails, or sees in an operation over all of them that another has died, it says so
    and ends at once with a non-zero code: JAX's own end would wait for the others, which wait in
    turn. Where nothing is seen, JAX ends the process `HEARTBEAT_TIMEOUT_SECONDS` after the other's
    last sign of life, or a few seconds later; and one that the others do not join ends after
    `START_TIMEOUT_SECONDS`.

    Args:
      options: what `resa_jax.processes.cluster.find_processes` returns; None does nothing.
    """
    if options is None:
        yield
        return
    with _last_words() as leave_behind:
        leave_behind(
            f"error: The processes of the run did not all start within {START_TIMEOUT_SECONDS} s. "
            "Start this command on every host; --num_processes=1 runs it on this one alone."
        )
        try:
            jax.distributed.initialize(
                **options,
                initialization_timeout=START_TIMEOUT_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
                shutdown_timeout_seconds=_END_TIMEOUT_SECONDS,
            )
            leave_behind(
                f"error: Process {jax.process_index()} of the run was ended from outside: killed, "
                "or by JAX (then it says so above) because another process has died or has not "
                f"been heard of for {HEARTBEAT_TIMEOUT_SECONDS} s. What is saved is whole: start "
                "the same command again on all hosts."
            )
            if jax.process_index() > 0:  # process 0 speaks for all
                logging.getLogger("resa_jax").setLevel(logging.WARNING)
            yield
        except BaseException as error:
            leave_behind("")
            _leave(error)
        jax.distributed.shutdown()
        leave_behind("")


@contextmanager
def _last_words():
    """Gives a function that leaves a sentence behind, for stderr when this process is no more.

    JAX ends a process from C++, where no handler of Python's is called. So a shell waits for the
    end of a pipe; "" takes the sentence back.
    """
    script = 'while read -r line; do last=$line; done; [ -z "$last" ] || echo "$last" >&2'
    with subprocess.Popen(
        ["sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as shell:

        def leave_behind(sentence: str) -> None:
            print(sentence, file=shell.stdin, flush=True)

        yield leave_behind


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
            "reached; what that one printed says why. What is saved is whole: start the same "
            "command again on all hosts.",
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

"""Processes: joining those of a cluster, and leaving together when one is told to stop."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Notices SIGTERM; a context manager that gives the old signal handler back.

    On several processes JAX's own service catches the signal and all of them learn of it at the
    same step, provided that all ask at every step.
    """

    def __enter__(self):
        self._received = False
        self._distributed = jax.process_count() > 1
        if not self._distributed:
            self._old = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exception):
        if not self._distributed:
            signal.signal(signal.SIGTERM, self._old)

    def _handle(self, signum, frame):
        self._received = True

    def reached(self, step: int) -> bool:
        """Whether to stop after this step."""
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

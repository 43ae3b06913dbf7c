"""A profile of a few steps."""

from pathlib import Path

import jax


class Profiler:
    """Traces the steps of `config.profile = (first_step, number)` into WORKDIR/profile.

    Steps count from 1, as in metrics.jsonl. Every process traces its own devices; `xprof` shows the
    result. To be used as a context manager, which also ends a trace that was cut short.
    """

    def __init__(self, workdir: Path, window: tuple[int | float, int | float] | None):
        """None traces nothing."""
        first, number = window or (0, 0)
        self._folder = str(workdir / "profile")
        self._first, self._last = int(first), int(first + number) - 1
        self._tracing = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stop()

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """The context in which a step is launched; starts the trace at the first of the window."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def launched(self, step: int, results) -> None:
        """After the last step of the window waits for its `results` and writes the trace."""
        if step == self._last:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self):
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False

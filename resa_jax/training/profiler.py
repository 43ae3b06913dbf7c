"""A profile of a few steps."""

import jax

from resa_jax.paths import AnyPath, local_output


class Profiler:
    """Traces the steps of `config.profile = (first_step, number)` into WORKDIR/profile.

    Steps count from 1, as in metrics.jsonl. Every process traces its own devices; `xprof` shows the
    result. To be used as a context manager, which also ends a trace that was cut short.
    """

    def __init__(self, workdir: AnyPath, window: tuple[int | float, int | float] | None):
        """None traces nothing."""
        first, number = window or (0, 0)
        self._folder = workdir / "profile"
        self._first, self._last = int(first), int(first + number) - 1
        self._tracing = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stop()

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """The context in which a step is launched; starts the trace at the first of the window."""
        if step == self._first:
            self._output = local_output(self._folder)
            jax.profiler.start_trace(str(self._output.__enter__()))
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
            self._output.__exit__(None, None, None)
            self._tracing = False

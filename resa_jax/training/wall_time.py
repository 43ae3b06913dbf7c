"""Where the time of a run goes."""

import time
from collections import defaultdict
from contextlib import contextmanager


class WallTime:
    """Splits the time since the run began: compile, data wait, evaluation, checkpoint, and step.

    Steps run while the host goes on, so theirs is the time that is left.
    """

    def __init__(self):
        self._start = time.perf_counter()
        self._spent = defaultdict(float)

    @contextmanager
    def __call__(self, part: str):
        """Books the body's time on `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[part] += time.perf_counter() - start

    def split(self) -> dict[str, float]:
        """Seconds so far, by part."""
        names = ("compile", "data_wait", "evaluation", "checkpoint")
        parts = {name: self._spent[name] for name in names}
        return parts | {"step": time.perf_counter() - self._start - sum(parts.values())}

    def record(self) -> dict[str, float]:
        """`split` as a record, `seconds/...`."""
        return {f"seconds/{part}": seconds for part, seconds in self.split().items()}

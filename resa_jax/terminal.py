"""What a run says while it runs: lines on stdout, around progress bars. Imports nothing heavy."""

import importlib.util
import logging
import os
import select
import sys
from typing import Any


def log_to_terminal() -> None:
    """Lets the package say on stdout what it is doing, as plain lines and around progress bars."""
    log = logging.getLogger("resa_jax")
    if not log.handlers:
        handler = _AroundBars()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def speak_unless_logging() -> None:
    """`log_to_terminal`, unless the program has set up logging so that the lines are seen."""
    if not logging.getLogger("resa_jax").isEnabledFor(logging.INFO):
        log_to_terminal()


def progress_bar(total: int, initial: int, unit: str) -> Any:
    """A tqdm bar, where somebody looks on who can see one move.

    At a terminal, and in a notebook that has ipywidgets: without, it would be a line for each step.
    Elsewhere it is disabled.
    """
    if "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm

        return tqdm(total=total, initial=initial, unit=unit)
    from tqdm import tqdm

    shown = sys.stderr.isatty()
    return tqdm(total=total, initial=initial, unit=unit, disable=not shown, dynamic_ncols=True)


class _AroundBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # not needed to refuse a mistake

        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            reader_is_gone()  # the run goes on


def reader_is_gone() -> bool:
    """Whether nobody reads stdout any more (`| head`); what is printed from here on is dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone

"""What a run says while it runs: lines on stdout, around progress bars. Imports nothing heavy."""

import logging
import os
import select
import sys


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


def shows_progress() -> bool:
    """Whether somebody looks on: at a terminal, or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


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

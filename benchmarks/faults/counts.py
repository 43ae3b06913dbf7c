"""What a part of the campaign counts."""

import random
from collections import Counter


OUTCOMES = ("refused", "ran", "lost", "hangs", "tracebacks", "silently_wrong")


class Counts:
    """Outcomes by kind of fault, and some of the sentences that were said."""

    def __init__(self) -> None:
        self._kinds: dict[str, Counter] = {}
        self._messages: dict[str, list[str]] = {}
        self._bad: list[str] = []

    def add(self, kind: str, outcome: str, message: str = "") -> None:
        """Counts a case.

        Args:
          outcome: one of OUTCOMES.
          message: what was said, or what went wrong.
        """
        assert outcome in OUTCOMES
        self._kinds.setdefault(kind, Counter())[outcome] += 1
        if outcome in OUTCOMES[2:]:
            self._bad.append(f"{kind}: {outcome}: {message[-2000:]}")
            print("BAD", self._bad[-1], flush=True)
        elif message:
            self._messages.setdefault(kind, []).append(message)

    def result(self) -> dict:
        """For the file: totals, the same by kind, a sentence of each, and all that went wrong."""
        total = sum(self._kinds.values(), Counter())
        chosen = random.Random(0)
        return {
            "cases": sum(total.values()),
            **{outcome: total[outcome] for outcome in OUTCOMES},
            "kinds": {name: dict(counter) for name, counter in self._kinds.items()},
            "messages": {name: chosen.choice(all_) for name, all_ in self._messages.items()},
            "wrong": self._bad,
        }

"""An open-loop client that notes what became of each request, and asks again: a process of its own.

    python -m benchmarks.crowd < WORDS_AS_JSON        # prints a list of Asked as JSON

It imports little, for it is started anew for each measurement.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

from benchmarks.load import Client, Load

PAUSE_S: Final = 0.02  # before it asks again: nobody is that impatient


@dataclass(frozen=True)
class Asked:
    """One request: seconds from the start; ``status`` 0 where no answer came."""

    at: float
    took: float
    status: int
    first: bool
    kind: int = 0


class Crowd(Client):
    """Notes what became of each request; asks again for those that fail, ``tries`` times."""

    def __init__(self, load: Load, due: Sequence[float], tries: int, kinds: Sequence[int] = ()) -> None:
        super().__init__(load, due)
        self._kinds = list(kinds)  # by number; empty: all are of the first
        self._tries = dict.fromkeys(range(len(due)), tries)
        self._firsts = len(due)
        self._answers: dict[int, tuple[int, float]] = {}

    def asked(self) -> list[Asked]:
        start = self._due[0]
        found = []
        for number, at in enumerate(self._due):
            status, instant = self._answers.get(number, (0, at))
            found.append(Asked(at - start, instant - at, status, number < self._firsts, self._kind(number)))
        return found

    def _answered(self, number: int, status: int, instant: float) -> None:
        super()._answered(number, status, instant)
        self._answers[number] = status, instant
        if status != 200 and self._tries[number]:
            again = self._ask_at(instant + PAUSE_S)
            self._tries[again] = self._tries[number] - 1
            if self._kinds:
                self._kinds.append(self._kinds[number])

    def _kind(self, number: int) -> int:
        return self._kinds[number] if self._kinds else 0


def client() -> int:
    """Read what to do from standard input, do it, print what became of each request."""
    told: dict[str, Any] = json.load(sys.stdin)
    crowd = Crowd(Load(**told["load"]), told["due"], told["tries"], told["kinds"])
    crowd.run()
    print(json.dumps([list(astuple(one)) for one in crowd.asked()]))
    return 0


if __name__ == "__main__":
    sys.exit(client())

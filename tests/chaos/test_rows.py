"""Every row of the table, small: each fault is injected under load, and no request is lost, doubled, wrong or late.

They share one deployment, which the last row ends; ``CHAOS_SEED`` makes other choices. `scripts/chaos` does the same
for longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import harness
import pytest

from faults import drill
from faults.place import Stageline, stageline
from faults.rows import MAIN, ROWS, Row
from tests.chaos.conftest import LATE_S, SEED


class Shared:
    """The deployment, made anew when a row has left it in pieces."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._place = stack, stack.enter_context(stageline(MAIN))

    def place(self) -> Stageline:
        if not self._is_sound():
            self._stack.close()
            self._place = self._stack.enter_context(stageline(MAIN))
        return self._place

    def _is_sound(self) -> bool:
        try:
            harness.wait_for("all of it", lambda: not self._place.alive() or self._place.whole())
        except AssertionError:
            return False
        return self._place.alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with ExitStack() as stack:
        yield Shared(stack)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS if not row.instead])
def test_a_row_costs_what_it_may(row: Row, shared: Shared) -> None:
    if row.not_yet:
        pytest.skip(row.not_yet)
    place = shared.place()
    seen = drill.run(row, place, seed=SEED, late_s=LATE_S)
    assert not seen.problems, "\n".join((row.about, *seen.problems, place.tail()))

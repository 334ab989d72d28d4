"""Every row of the table, small: each fault is injected under load, and no request is lost, doubled, wrong or late.

They share one deployment, which the last row ends; ``CHAOS_SEED`` makes other choices. `scripts/chaos` does the same
for longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from faults import drill
from faults.place import Stageline, stageline
from faults.rows import MAIN, ROWS, Row
from tests.chaos.conftest import LATE_S, SEED

pytestmark = pytest.mark.unmeasured


class Shared:
    """The deployment, made anew when a row has left it in pieces."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._place: Stageline | None = None

    def run(self, row: Row) -> drill.Seen:
        if self._place is None:
            self._place = self._stack.enter_context(stageline(MAIN))
        place, self._place = self._place, None
        seen = drill.run(row, place, seed=SEED, late_s=LATE_S)
        if row.ends or seen.is_broken:
            self._stack.close()
        else:
            self._place = place
        return seen


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with ExitStack() as stack:
        yield Shared(stack)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS if not row.instead])
def test_a_row_costs_what_it_may(row: Row, shared: Shared) -> None:
    seen = shared.run(row)
    assert not seen.problems, "\n".join((row.about, *seen.problems, seen.log))

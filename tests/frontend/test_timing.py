"""server-timing on routes that a request passed in part: only where it has been, in both writers alike."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.call import Answer
from engine.core.reasons import CODES
from engine.core.routing import Route, Topology
from engine.core.wire import pack_step
from frontend import timing
from frontend.writer import Writer

TABLE = Topology(("pre", "english", "german", "post"), (Route("/r", (0, 1, 2, 3)),))
NAMES = timing.labels(TABLE.stage_names(0))


def step(ms: int) -> bytes:
    return pack_step(ms * 1000 & ~7 | CODES["idle"], ms * 1000, ms * 1000)


def told(trail: bytes) -> str:
    """What the quick writer says."""
    writer = Writer(TABLE, SimpleNamespace(stages=[NAMES], vary=""))  # type: ignore[arg-type]
    plain: Any = SimpleNamespace(route=0, head=None)
    _, _, head, _ = writer.answer(plain, Answer(200, b"x", "m", trail), "id", 0.5)
    found = re.search(rb"server-timing: (.*)\r\n", head)
    assert found is not None
    return found[1].decode()


def test_stages_that_were_passed_over_are_not_named() -> None:
    line = told(step(1) + bytes(12) + step(2) + bytes(12))
    assert [name for name in NAMES if f"{name};dur" in line] == ["pre", "german"]
    assert 'german-queue;dur=2.00;desc="idle", german-batch;dur=2.00, german;dur=2.00, total;dur=500.00' in line


@given(
    st.lists(st.sampled_from([b"", step(1), step(7), pack_step(0, 0, 5), pack_step(0, 0, 0)]), min_size=4, max_size=4)
)
def test_both_writers_say_the_same(steps: list[bytes]) -> None:
    trail = b"".join(one or bytes(12) for one in steps)
    assert told(trail) == timing.header(trail, NAMES, 0.5)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_trail_that_stops_early_says_what_there_is(stages: int) -> None:
    line = timing.header(step(1) * stages, NAMES, 0.5)
    assert [name for name in NAMES if f"{name};dur" in line] == list(NAMES[:stages])

"""Who was interrupted proves that it computes, or is replaced."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.core.messages import Status
from stages.compute import INTERNAL, SKIPPED, TIMED_OUT, Outcome
from stages.runtime.trust import Step, Trust

GOOD, THEIRS = Outcome(int(Status.OK), b"1"), Outcome(422, b"no")


def test_with_an_example_every_interrupt_is_followed_by_a_show() -> None:
    trust = Trust(has_example=True)
    for _ in range(5):
        assert trust.after([TIMED_OUT], interrupted=True) is Step.SHOW
        assert not trust.doubted  # what it has shown is proof enough
    assert trust.after([GOOD], interrupted=True) is Step.SHOW  # user code that swallowed it


@pytest.mark.parametrize(
    ("batches", "step"),
    [
        ([[GOOD]], Step.GO_ON),
        ([[GOOD, INTERNAL]], Step.GO_ON),
        ([[INTERNAL]], Step.DISOWN),
        ([[THEIRS, INTERNAL]], Step.DISOWN),
        ([[THEIRS], [SKIPPED], [INTERNAL]], Step.DISOWN),  # neither proves anything
        ([[GOOD], [INTERNAL]], Step.GO_ON),  # cleared
        ([[TIMED_OUT]], Step.GO_ON),
        ([[TIMED_OUT], [TIMED_OUT]], Step.LEAVE),
        ([[TIMED_OUT], [THEIRS], [TIMED_OUT]], Step.LEAVE),
        ([[TIMED_OUT], [GOOD], [TIMED_OUT], [TIMED_OUT]], Step.GO_ON),
        ([[GOOD, TIMED_OUT], [TIMED_OUT]], Step.GO_ON),
        ([[TIMED_OUT, INTERNAL]], Step.DISOWN),
    ],
)
def test_without_one_what_comes_next_decides(batches: Sequence[Sequence[Outcome]], step: Step) -> None:
    trust = Trust(has_example=False)
    assert trust.after([TIMED_OUT], interrupted=True) is Step.GO_ON
    steps = [trust.after(batch, interrupted=TIMED_OUT in batch) for batch in batches if batch]
    assert steps[-1] is step
    assert all(one is Step.GO_ON for one in steps[:-1])


def test_an_interrupt_in_a_batch_that_partly_succeeds_leaves_one_doubt() -> None:
    trust = Trust(has_example=False)
    for _ in range(9):
        assert trust.after([GOOD, TIMED_OUT], interrupted=True) is Step.GO_ON
    assert trust.doubted

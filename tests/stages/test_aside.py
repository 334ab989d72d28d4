"""The thread beside forward: lending, taking back, and every way a loan can end."""

from __future__ import annotations

import select
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from stages.runtime.aside import Aside


class Source:
    """What the thread fetches from."""

    def __init__(self) -> None:
        self.things: SimpleQueue[str] = SimpleQueue()
        self.failure: Exception | None = None

    def fetch(self, recall: int) -> str | None:
        if self.failure is not None:
            raise self.failure
        if not self.things.empty():
            return self.things.get()
        select.select([recall], [], [])
        return None


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def aside(source: Source) -> Iterator[Aside[str]]:
    made: Aside[str] = Aside(source.fetch)
    yield made
    made.stop()


def test_what_has_come_is_brought(aside: Aside[str], source: Source) -> None:
    source.things.put("here")
    aside.lend()
    assert aside.take_back() == ["here"]
    assert not aside.lent


def test_a_loan_lasts_while_something_comes(aside: Aside[str], source: Source) -> None:
    source.things.put("one")
    source.things.put("two")
    aside.lend()
    taken: list[str] = []
    while len(taken) < 2:
        aside.lend()  # where the thread was too late for the second, the loan has ended
        taken += aside.take()
    assert taken == ["one", "two"]
    assert aside.take_back() == []
    assert not aside.lent


def test_where_nothing_came_the_loan_ends(aside: Aside[str]) -> None:
    aside.lend()
    assert aside.take() == []
    assert not aside.lent


def test_what_waits_is_recalled_again_and_again(aside: Aside[str], source: Source) -> None:
    for _ in range(50):
        aside.lend()
        assert aside.take_back() == []
    assert aside.take_back() == []  # nothing is lent
    source.things.put("late")
    aside.lend()
    assert aside.take_back() == ["late"]


def test_a_failure_comes_out_where_the_loan_ends(aside: Aside[str], source: Source) -> None:
    source.failure = KeyError("broken")
    aside.lend()
    with pytest.raises(KeyError):
        aside.take_back()
    source.failure = None
    assert not aside.lent
    aside.lend()
    assert aside.take_back() == []  # it lives on


def test_a_loan_that_is_not_taken_back_ends_with_the_thread(source: Source) -> None:
    aside = Aside(source.fetch)
    aside.lend()
    aside.stop()


def test_it_ends_unused(source: Source) -> None:
    Aside(source.fetch).stop()

"""A frontend joined to several brokers: each played by a link that hears what the test says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine import cells as cells_module
from engine.cells import Cells, client_of
from engine.client import Client
from engine.config import Deployment, build
from engine.core.call import Call
from engine.core.liveness import LOST_S, MOVE_S
from engine.core.messages import Cancel, Poison, Speaker, StageState
from engine.errors import ConfigError, Unavailable
from engine.metrics import Sources, counter, pack, pack_sources, unpack, unpack_sources
from tests.core.test_link import NOW, Desk, Waiter, answers, pulse


class Played:
    """As much of a client as Cells asks for, around a link."""

    def __init__(self, *, once_only: tuple[bool, ...] = ()) -> None:
        self.desk = Desk(once_only=once_only)
        self.link = self.desk.link
        self.returned = self.flushes = 0
        self.is_stalled = False
        self.answer: bytes | Exception = b"{}"

    def call(self, call: Call, instant: float) -> int:
        return self.link.submit(call, instant)

    def withdraw(self, seq: int) -> None:
        self.link.withdraw(seq)

    def consumed(self, seq: int, nbytes: int) -> None:
        self.link.consumed(seq, nbytes)

    def flush(self) -> None:
        self.flushes += 1

    def give_back(self) -> None:
        self.returned += 1

    def view(self) -> Any:
        return self.link.view(self.desk.now)

    def stage(self, name: str) -> StageState | None:
        return self.link.stages.get(name)

    @property
    def is_joined(self) -> bool:
        return bool(self.link.stages)

    @property
    def pending(self) -> int:
        return len(self.link.waiting)

    async def ask(self, what: str, *, timeout_s: float = 2.0) -> bytes:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Table:
    """Two brokers, and what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, once_only: tuple[bool, ...] = ()) -> None:
        self.now = NOW
        monkeypatch.setattr(cells_module, "now", lambda: self.now)
        self.brokers = [Played(once_only=once_only), Played(once_only=once_only)]
        self.cells = Cells(self.brokers, len(self.brokers))  # type: ignore[arg-type]  # played

    def call(self, route: int = 0, *, left_s: float = 9.0, key: bytes = b"") -> tuple[int, Waiter]:
        waiter = Waiter()
        return self.cells.call(Call(route, b"body", self.now + left_s, b"", waiter, key), self.now), waiter

    def pass_time(self, seconds: float, *, silent: int) -> None:
        """All but one broker are heard again."""
        self.now += seconds
        for cell, broker in enumerate(self.brokers):
            broker.desk.now = self.now
            if cell != silent:
                broker.desk.hear(pulse())

    @property
    def pending(self) -> list[int]:
        return [broker.pending for broker in self.brokers]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(monkeypatch)


def test_requests_go_to_both_and_their_numbers_find_them_again(table: Table) -> None:
    made = [table.call() for _ in range(6)]
    assert table.pending == [3, 3]
    assert len({seq for seq, _ in made}) == 6
    for broker in table.brokers:
        broker.desk.send()
    table.cells.consumed(made[0][0], 5)
    table.cells.withdraw(made[1][0])
    assert sorted(table.pending) == [2, 3]
    for seq, waiter in made[2:]:
        table.brokers[seq % 2].desk.hear(answers(seq // 2))
        assert waiter.answer.status == 200


def test_who_refuses_is_passed_over(table: Table) -> None:
    table.brokers[0].desk.hear(pulse(draining=True))
    for _ in range(4):
        table.call()
    assert table.pending == [0, 4]
    table.brokers[1].desk.hear(pulse(draining=True))
    with pytest.raises(Unavailable, match="draining"):
        table.call()


def test_tries_with_one_key_meet_even_where_that_broker_is_busier(table: Table) -> None:
    key = bytes(32)
    for _ in range(5):
        table.call(key=key)
    assert sorted(table.pending) == [0, 5]


def test_what_a_silent_broker_has_not_answered_moves(table: Table) -> None:
    made = [table.call() for _ in range(4)]
    table.brokers[0].desk.send()
    table.pass_time(MOVE_S, silent=0)
    table.cells._look(table.now)
    assert table.pending == [2, 2]
    table.pass_time(0.1, silent=0)
    table.cells._look(table.now)
    assert table.pending == [0, 4]
    moved = [(seq, waiter) for seq, waiter in made if seq % 2 == 0]
    table.cells.withdraw(moved[0][0])  # by the number that whoever asked knows
    assert table.pending == [0, 3]
    (last,) = [seq for seq in table.brokers[1].link.waiting if table.brokers[1].link.waiting[seq].waiter is moved[1][1]]
    table.brokers[1].desk.hear(answers(last))
    assert moved[1][1].answer.status == 200
    assert table.brokers[0].desk.send() == [Cancel([1, 2])]
    table.cells._look(table.now)
    assert table.cells._moved == {}, "nothing is kept of what is over"


def test_what_a_broker_without_a_connection_was_never_sent_moves_at_once(table: Table) -> None:
    for _ in range(4):
        table.call()
    table.brokers[0].desk.send()
    table.call()
    table.call()
    table.brokers[0].is_stalled = True
    table.cells._look(table.now)
    assert table.pending == [2, 4], "what it was sent may have been computed"
    for _ in range(3):
        table.call()
    assert table.pending == [2, 7]


def test_who_is_refused_at_one_door_is_offered_to_the_other_once(table: Table) -> None:
    made = [table.call(), table.call()]
    for broker in table.brokers:
        broker.desk.send()
    (seq, waiter) = next((seq, waiter) for seq, waiter in made if seq % 2 == 0)
    table.brokers[0].desk.hear(answers(seq // 2, 429, Speaker.DOOR))
    assert table.pending == [0, 2]
    assert waiter.answers == []
    last = max(table.brokers[1].link.waiting)
    table.brokers[1].desk.hear(answers(last, 429, Speaker.DOOR))
    assert waiter.answer.status == 429
    assert table.pending == [0, 1]


def test_what_kills_workers_is_told_to_every_broker(table: Table) -> None:
    seq, _ = table.call()
    cell = seq % 2
    table.brokers[cell].desk.send()
    table.brokers[cell].desk.hear(answers(seq // 2, 422, Speaker.STAGE))
    assert [type(owed) for owed in table.brokers[1 - cell].desk.send()] == [Poison]
    assert table.brokers[1 - cell].flushes == 1
    assert [type(owed) for owed in table.brokers[cell].desk.send()] == [Poison]


def test_it_moves_on_where_the_next_one_falls_silent_too(table: Table) -> None:
    table.pass_time(0.0, silent=1)
    seq, waiter = table.call()
    first = seq % 2
    table.pass_time(MOVE_S + 0.1, silent=first)
    table.cells._look(table.now)
    assert table.pending[1 - first] == 1
    table.pass_time(MOVE_S + 0.1, silent=1 - first)
    table.cells._look(table.now)
    assert table.pending[first] == 1
    table.cells.withdraw(seq)
    assert table.pending == [0, 0]
    assert waiter.answers == []


def test_what_was_moved_before_waits_twice_as_long_for_its_answer_may_be_large(table: Table) -> None:
    table.call()
    first = table.pending.index(1)
    table.brokers[first].desk.send()
    table.pass_time(MOVE_S + 0.1, silent=first)
    table.cells._look(table.now)
    second = 1 - first
    assert table.pending[second] == 1
    table.brokers[second].desk.send()
    table.pass_time(MOVE_S + 0.1, silent=second)
    table.cells._look(table.now)
    assert table.pending[second] == 1
    table.pass_time(MOVE_S, silent=second)
    table.cells._look(table.now)
    assert table.pending[first] == 1


def test_what_must_not_be_computed_twice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, once_only=(True, False))
    for _ in range(4):
        table.call(0)
    table.brokers[0].desk.send()
    table.pass_time(MOVE_S + 1, silent=0)
    table.cells._look(table.now)
    assert table.pending == [2, 2]


def test_without_anybody_who_could_take_it_all_stays(table: Table) -> None:
    for _ in range(4):
        table.call()
    table.pass_time(MOVE_S + 1, silent=0)
    table.brokers[1].desk.hear(pulse(draining=True))
    table.cells._look(table.now)
    assert table.pending == [2, 2]
    assert not any(call.is_sent for call in table.brokers[0].link.waiting.values())


def test_a_frontend_that_was_stopped_itself_takes_nobody_for_silent(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []
    monkeypatch.setattr(table.cells, "_look", looked.append)
    steps = iter([0.25, 7.0, 0.25])

    async def sleep(_seconds: float) -> None:
        try:
            table.now += next(steps)
        except StopIteration:
            raise asyncio.CancelledError from None

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(table.cells._look_for_ever())
    assert looked == [NOW + 0.25, NOW + 7.5]


def test_how_they_stand_together(table: Table) -> None:
    assert table.cells.is_joined
    state = table.cells.stage("a")
    assert state is not None
    assert (state.ready, state.wanted) == (2, 2)
    assert table.cells.stage("z") is None
    assert table.cells.view().headroom == 18
    table.pass_time(LOST_S + 1, silent=0)
    state = table.cells.stage("a")
    assert state is not None
    assert state.ready == 1
    assert table.cells.view().connected
    table.cells.give_back()
    assert [broker.returned for broker in table.brokers] == [1, 1]


def test_questions_are_answered_by_those_who_can(table: Table) -> None:
    table.brokers[0].answer = b'{"admitted":1,"stages":[]}'
    table.brokers[1].answer = Unavailable(503, "gone")
    told = asyncio.run(table.cells.ask("status"))
    assert b'"cells":2,"cells_answering":1' in told
    table.brokers[1].answer = b"no JSON"
    with pytest.raises(Unavailable, match="cannot be read"):
        asyncio.run(table.cells.ask("status"))
    table.brokers[0].answer = table.brokers[1].answer = Unavailable(503, "gone")
    with pytest.raises(Unavailable, match="gone"):
        asyncio.run(table.cells.ask("status"))


def test_what_a_broker_counts_is_told_apart(table: Table) -> None:
    def counted(value: int) -> bytes:
        return pack_sources(Sources(broker=pack([counter("admitted", "d", [({}, value)])])))

    def told() -> dict[str, float]:
        sources = unpack_sources(asyncio.run(table.cells.ask("metrics")))
        return {sample.labels["cell"]: sample.value for sample in unpack(sources.broker)[0].samples}

    for broker, value in zip(table.brokers, (5, 7), strict=True):
        broker.answer = counted(value)
    assert told() == {"1": 5, "2": 7}
    table.brokers[0].answer, table.brokers[1].answer = counted(6), Unavailable(503, "gone")
    assert told() == {"1": 6}


# --- the file --------------------------------------------------------------------------------------------------------


def deployment(tmp_path: Any, cells: int, *nums: int, **engine: Any) -> Deployment:
    stages = [{"name": f"s{n}", "worker": "s:S", "num": num} for n, num in enumerate(nums)]
    data = {"engine": {"cells": cells, **engine}, "stage": stages}
    return build(data, file=tmp_path / "stages.toml", label="stages.toml", flags={}, environ={})


def test_one_broker_is_asked_directly(tmp_path: Any) -> None:
    assert type(client_of(deployment(tmp_path, 1, 1), "f", list)) is Client
    assert type(client_of(deployment(tmp_path, 2, 2), "f", list)) is Cells


def test_every_cell_needs_a_worker_of_every_stage(tmp_path: Any) -> None:
    with pytest.raises(ConfigError) as found:
        deployment(tmp_path, 3, 3, 2)
    assert list(found.value.problems) == [
        'stages.toml: stage[1] "s1".num: expected at least engine.cells = 3, a worker for each of them, got 2'
    ]


def test_several_cells_listen_in_the_run_directory_alone(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected 1 with engine\.bind, got 2"):
        deployment(tmp_path, 2, 2, bind="tcp://127.0.0.1:7000", insecure=True)

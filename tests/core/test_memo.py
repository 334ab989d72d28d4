"""The cache of a stage: the whole broker, under faults. Whatever happens there is one answer, of what was asked and of
nothing else, computed once for all who ask at once; and nothing is left behind but what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import wording
from engine.core.fairness import Priority
from engine.core.front import FrontSpec
from engine.core.items import Request
from engine.core.memo import ENTRY_BYTES, Asker, CacheSpec, Found, Memo, Place
from engine.core.messages import KEY_SIZE, Parts, Qos, Role, Speaker, Status
from engine.core.routing import FINAL, JOIN, Fork, Route, Split, Topology
from tests.core.test_branches import drain
from tests.core.test_parts import at
from tests.core.test_twin import SPEC, history
from tests.core.twin import Twin

PRE, A, B, POST, KNOWN = range(5)
FIRST, LAST, MID, ONLY, TWO, EACH, GATHER, FORK = range(8)
LARGE = CacheSpec(1 << 20, 1000.0)
TABLE = Topology(
    ("s0", "s1", "s2", "s3", "s4"),
    (
        Route("/first", (A, POST)),
        Route("/last", (PRE, A)),
        Route("/mid", (PRE, A, POST)),
        Route("/only", (A,)),
        Route("/two", (PRE, A, B, POST)),
        Route("/each", (PRE, A, POST), (POST, JOIN, FINAL), {PRE: Split((A,), POST)}),
        Route("/gather", (PRE, B, KNOWN), (KNOWN, JOIN, FINAL), {PRE: Split((B,), KNOWN)}),
        Route("/fork", (PRE, A, B, POST), (A, Fork("x", (("b", B),), POST), POST, FINAL)),
    ),
    {A: (), B: (), KNOWN: ()},
)


def asks(seq: int) -> int:
    """Who asks what: a third of all the same."""
    return seq % 3


def twin(*, shared: bool = False, spec: CacheSpec = LARGE, capacity: int = 10_000) -> Twin:
    front = FrontSpec(capacity, 1 << 30, caches=dict.fromkeys((A, B, KNOWN), spec))
    made = Twin(TABLE, [replace(SPEC, name=f"s{index}") for index in range(5)], front, shared=shared)
    made.asks = asks
    made.elements = lambda request_id: asks(int(request_id[1:]))
    for stage in range(5):
        made.worker(stage)
    return made


def expected(seq: int, route: int) -> bytes:
    body = b"body%d" % asks(seq)
    if route in (EACH, GATHER):
        parts = [body + b"+0%c+%d" % (97 + number, A if route == EACH else B) for number in range(asks(seq))]
        return body + b"+0(%b)+%d" % (b",".join(parts), POST if route == EACH else KNOWN)
    ways = {FIRST: b"+1+3", LAST: b"+0+1", MID: b"+0+1+3", ONLY: b"+1", TWO: b"+0+1+2+3", FORK: b"+0+1+2+3"}
    return body + ways[route]


@pytest.mark.unmeasured
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_answer_of_what_was_asked_whatever_happens(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from([LARGE, CacheSpec(2 * ENTRY_BYTES + 40, 1000.0), CacheSpec(1 << 20, 1.0)]))
    one = twin(shared=data.draw(st.booleans()), spec=spec)
    submitted, cancelled = history(one, data, routes=8, stages=5)
    drain(one)
    assert one.is_empty()
    for seq, route in submitted.items():
        if seq in cancelled and (b"f", seq) not in one.answers:
            continue
        status, body = one.answer(seq)  # exactly one
        assert status in (200, 408, 422, 429, 500, 503)
        if status == 200:
            assert body == expected(seq, route)
    for tally in one.front.ledger.memo.tallies.values():
        assert 0 <= tally.nbytes <= spec.size
        assert tally.entries * ENTRY_BYTES <= tally.nbytes


@pytest.mark.parametrize("route", range(8))
def test_equal_values_are_computed_once(route: int) -> None:
    one = twin(shared=True)
    one.submit(9, route=route)
    drain(one)
    one.submit(9, first=10, route=route)
    drain(one)
    for seq in range(1, 19):
        assert one.answer(seq) == (200, expected(seq, route))
    assert one.is_empty()
    stages = {
        stage: one.front.ledger.memo.tallies[stage]
        for stage in TABLE.routes[route].stages
        if TABLE.is_cached(route, stage)
    }
    for tally in stages.values():
        assert tally.misses == 3
        if route not in (EACH, GATHER):
            assert tally.hits + tally.joined == 15
        assert tally.hits > 0


def test_what_is_known_is_answered_at_once_however_full_it_is() -> None:
    one = twin(capacity=2)
    one.submit(1, first=3, route=ONLY)
    drain(one)
    one.submit(2, first=4, route=ONLY)  # others
    one.submit(1, first=6, route=ONLY)
    assert one.answer(6) == (200, b"body0+1")
    assert one.front.ledger.inside == 2
    drain(one)
    assert one.is_empty()


def test_what_fails_fails_for_all_who_wait_and_is_not_kept() -> None:
    one = twin(shared=True)
    one.submit(1, first=3, route=MID)
    one.submit(1, first=6, route=MID)
    one.finish(at(one, PRE))
    one.finish(at(one, PRE)) if at(one, PRE).lane else None
    worker = at(one, A)
    assert len(worker.lane[0][0].uids) == 1
    one.deliver_failure(worker, 0, 422)
    assert (one.answer(3)[0], one.answer(6)[0]) == (422, 422)
    worker.lane.clear()
    one.submit(1, first=9, route=MID)
    drain(one)
    assert one.answer(9) == (200, expected(9, MID))
    assert one.is_empty()


def test_want_of_time_is_the_first_ones_alone() -> None:
    one = twin(shared=True)
    one.kill(at(one, A))
    one.submit(1, first=3, route=MID, budget_s=1.0)
    one.submit(1, first=6, route=MID, budget_s=50.0)
    for _ in range(2):
        if at(one, PRE).lane:
            one.finish(at(one, PRE))
    one.pass_time(1.1)
    assert one.answer(3)[0] == Status.TIMEOUT
    assert (b"f", 6) not in one.answers
    one.worker(A)
    drain(one)
    assert one.answer(6) == (200, expected(6, MID))
    assert one.is_empty()


def test_a_computation_outlives_who_asked_first_and_ends_with_the_last() -> None:
    one = twin(shared=True)
    one.submit(1, first=3, route=ONLY)
    one.submit(1, first=6, route=ONLY)
    one.front.cancel(b"f", [3])
    one.run()
    assert len(one.front.ledger.memo) == 1
    one.front.cancel(b"f", [6])
    one.run()
    assert not len(one.front.ledger.memo)
    assert not one.front.ledger
    drain(one)
    assert one.is_empty()


def test_a_change_forgets_what_is_known_and_what_is_being_computed() -> None:
    one = twin()
    one.submit(1, first=3, route=ONLY)
    one.front.change(one.front.spec)
    one.submit(1, first=6, route=ONLY)
    assert len(one.front.ledger.memo) == 2
    drain(one)
    assert one.answer(3) == one.answer(6) == (200, b"body0+1")
    assert one.front.ledger.memo.tallies[A].entries == 1  # of the second
    assert one.is_empty()


def test_who_leaves_takes_what_is_known_along() -> None:
    """It may be the last one of a former edition."""
    one = twin()
    one.submit(1, first=3, route=ONLY)
    drain(one)
    assert one.front.ledger.memo.tallies[A].entries == 1
    old = at(one, A)
    one.worker(A, slot=2)
    one.stages[A].leave(old.key, one.now)
    one.run()
    one.kill(old)
    assert one.front.ledger.memo.tallies[A].entries == 0
    one.submit(1, first=6, route=ONLY)
    drain(one)
    assert one.front.ledger.memo.tallies[A].misses == 2
    assert one.is_empty()


def test_of_what_makes_no_sense_all_who_wait_hear_at_once() -> None:
    one = twin(shared=True)
    one.submit(1, first=3, route=MID)
    one.submit(1, first=6, route=MID)
    while at(one, PRE).lane:
        one.finish(at(one, PRE))
    worker = at(one, A)
    batch, _ = worker.lane[0]
    stray = Parts(A, worker.key, batch.batch, batch.uids, [int(Role.DONE)], [b""], targets=[PRE])  # it leads back
    one.deliver(stray, [b"x"], JOIN)
    worker.lane.clear()
    one.run()
    assert one.answer(3) == one.answer(6) == (500, wording.ASTRAY.encode())
    drain(one)
    assert one.is_empty()


def test_what_is_known_counts_among_the_answers_that_had_a_goal() -> None:
    one = twin()
    one.front.change(replace(one.front.spec, slos_s=(5.0,) * 8))
    for first, budget_s in ((3, 10.0), (6, 10.0), (9, 2.0)):  # computed, known, and of one that has less time than that
        one.submit(1, first=first, route=ONLY, budget_s=budget_s)
        drain(one)
    assert one.front.stats.goals == {(ONLY, True): 2}
    one.submit(1, first=12, route=MID, budget_s=10.0)
    one.submit(1, first=15, route=MID, budget_s=10.0)
    drain(one)
    assert one.front.stats.goals == {(ONLY, True): 2, (MID, True): 2}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "one after the other"])
def test_who_has_little_time_waits_for_no_computation_that_has_much(late: bool) -> None:
    """A job, say, asked the same, and stands behind all who have less time than that."""
    one = twin()
    one.asks = lambda seq: 0 if seq in (50, 99) else seq
    one.submit(6, route=ONLY)
    while len(at(one, A).lane) < 2:
        one.submit(1, first=7, route=ONLY)
    one.submit(1, first=50, route=ONLY, budget_s=3600.0, qos=Qos(priority=Priority.LOW))
    one.submit(20, first=10, route=ONLY, budget_s=50.0)
    if late:
        one.pass_time(0.02)
    one.submit(1, first=99, route=ONLY, budget_s=20.0)
    assert one.front.ledger.memo.tallies[A].joined == 1
    for _ in range(3):  # what was there, and the next one
        one.finish(at(one, A))
    assert one.answer(99) == one.answer(50) == (200, b"body0+1")
    drain(one)
    assert one.is_empty()


def test_tries_with_one_key_and_a_cache_are_answered_once_each() -> None:
    one = twin(shared=True)
    key = b"k" * KEY_SIZE
    one.submit(1, first=3, route=ONLY, key=key)
    one.submit(1, first=6, route=ONLY, key=key)
    one.submit(1, first=9, route=ONLY)
    drain(one)
    assert one.answer(3) == one.answer(6) == one.answer(9) == (200, b"body0+1")
    assert one.is_empty()


def test_a_part_that_is_known_to_be_good_and_one_that_fails() -> None:
    """Parts of one request that go different ways at the same instant."""
    one = twin(shared=True)
    one.submit(1, first=2, route=EACH)
    one.finish(at(one, PRE))
    one.deliver_failure(at(one, A), 1, 500)
    assert one.answer(2)[0] == 500
    assert one.speakers[2] == Speaker.WORKER
    drain(one)
    assert one.is_empty()
    one.submit(1, first=5, route=EACH)
    drain(one)
    assert one.answer(5) == (200, expected(5, EACH))
    assert one.is_empty()


# --- the book itself -----------------------------------------------------------------------------------------------


def request(uid: int) -> Request:
    return Request(uid, b"f", uid, 0, 9.0, 9.0, 9.0, b"", 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 100)), max_size=60), st.integers(1, 6))
def test_what_was_asked_for_longest_ago_goes_first(asked: list[tuple[int, int]], room: int) -> None:
    each = 50 + ENTRY_BYTES
    memo, known, uid = Memo({A: CacheSpec(room * each, 1000.0)}), dict[int, int](), 0
    for number, _ in asked:
        place = Place(0, A, b"%d" % number)
        found = memo.get(place, 0.0)
        assert (found is not None) is (number in known)
        if found is not None:
            assert bytes(found.payload) == b"%050d" % number  # type: ignore[arg-type]
            known[number] = known.pop(number)
            continue
        uid += 1
        memo.begin(place, uid, Asker(request(1000 + uid), None, b""))
        flight, _ = memo.end(uid)
        memo.keep(flight, Found(FINAL, b"%050d" % number), 0.0)
        known[number] = 1
        while len(known) > room:
            del known[next(iter(known))]
    assert memo.tallies[A].entries == len(known)
    assert memo.tallies[A].nbytes == len(known) * each


def test_nothing_is_kept_longer_than_it_may_or_that_is_too_large() -> None:
    memo = Memo({A: CacheSpec(1000, 5.0)})
    for uid, size in ((1, 10), (2, 2000)):
        memo.begin(Place(0, A, b"%d" % uid), uid, Asker(request(uid + 10), None, b""))
        memo.keep(memo.end(uid)[0], Found(FINAL, bytes(size)), 100.0)
    assert memo.get(Place(0, A, b"1"), 104.9) is not None
    assert memo.get(Place(0, A, b"1"), 105.1) is None
    assert memo.get(Place(0, A, b"2"), 100.0) is None
    assert (memo.tallies[A].entries, memo.tallies[A].nbytes) == (0, 0)

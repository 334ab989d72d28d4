"""The door: admission, exactly one answer, deadlines, clients and frontends that go."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from engine.core.answers import Column
from engine.core.batching import Policy
from engine.core.front import EPOCH_SHIFT, FrontSpec
from engine.core.ledger import modest
from engine.core.liveness import FRONTEND_SILENCE_S
from engine.core.messages import (
    OWN_HEADERS_MOST,
    FrontendBeat,
    FrontendWelcome,
    Results,
    Speaker,
    StreamEvents,
    Submit,
)
from engine.core.routing import FINAL
from engine.core.stage import StageSpec
from engine.core.wire import HEAD_ITEMS, WITH_HEADERS
from tests.core.twin import Twin, frontend_words, topology

SPEC = StageSpec("s0", 1, Policy(4, 1 << 20, 0.010), timeout_s=60.0, kill_after_s=1.0, max_queue_bytes=1 << 20)


def one_stage(capacity: int = 100, capacity_bytes: int = 1 << 20) -> Twin:
    return Twin(topology(), [SPEC], FrontSpec(capacity, capacity_bytes))


def rejected(twin: Twin) -> dict[str, int]:
    return twin.front.stats.rejected


def test_past_the_capacity_is_429_at_once() -> None:
    twin = one_stage(capacity=2)
    worker = twin.worker()
    twin.submit(5)
    assert [twin.answer(seq)[0] for seq in (3, 4, 5)] == [429] * 3
    assert rejected(twin) == {"capacity": 3}
    twin.finish(worker)
    twin.submit(1, first=9)
    twin.finish(worker)
    assert twin.answer(9)[0] == 200
    assert twin.is_empty()


def test_past_the_capacity_in_bytes_is_429_but_one_is_always_taken() -> None:
    twin = one_stage(capacity_bytes=7)
    worker = twin.worker()
    twin.submit(2)
    assert twin.answer(2)[0] == 429
    twin.finish(worker)
    assert twin.answer(1)[0] == 200
    twin = one_stage(capacity_bytes=1)
    worker = twin.worker()
    twin.submit(1)
    twin.finish(worker)
    assert twin.answer(1)[0] == 200


def test_who_is_refused_is_told_to_come_again_one_after_the_other_as_fast_as_others_leave() -> None:
    twin = one_stage(capacity=4)
    worker = twin.worker()
    twin.submit(5)
    assert twin.retries_ms == {5: 1000}  # nothing has left yet
    for step in range(4):  # four in 0.4 s
        twin.pass_time(0.1)
        twin.finish(worker)
        twin.submit(4, first=10 * step + 10)
    twin.retries_ms.clear()
    twin.pass_time(0.1)
    twin.submit(3, first=100)
    first, second, third = twin.retries_ms.values()
    assert first < second < third <= 10_000
    assert second - first == pytest.approx(third - second, abs=1)
    assert 10 <= second - first <= 1000


@pytest.mark.parametrize(("headers", "size"), [(0, HEAD_ITEMS), (1, WITH_HEADERS)], ids=["many", "with headers"])
def test_many_answers_at_once_leave_in_parcels_that_can_be_read(headers: int, size: int) -> None:
    column = Column()
    count = 2 * size + 1
    for seq in range(count):
        column.seqs.append(seq)
        column.statuses.append(200 + seq)
        column.mimes.append("m")
        column.trails.append(b"t")
        column.payloads.append(b"%d" % seq)
        column.speakers[seq] = seq % 4
        column.retries_ms[seq] = seq
        if headers:
            column.headers[seq] = {"x": str(seq)}
    parts = column.parted()
    assert [len(part.seqs) for part in parts] == [size, size, 1]
    found = [
        (seq, status, bytes(payload), part.speakers[index], part.retries_ms[index], part.headers.get(index))  # type: ignore[arg-type]  # one part
        for part in parts
        for index, (seq, status, payload) in enumerate(zip(part.seqs, part.statuses, part.payloads, strict=True))
    ]
    assert found == [
        (seq, 200 + seq, b"%d" % seq, seq % 4, seq, {"x": str(seq)} if headers else None) for seq in range(count)
    ]
    assert len(Column(seqs=[1] * 9).parted()) == 1


def test_headers_of_a_worker_that_are_more_than_it_may_send_are_left_out() -> None:
    assert modest({"x": "y" * (OWN_HEADERS_MOST - 1)})
    assert not modest({"x": "y" * OWN_HEADERS_MOST})


def test_draining_is_503() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.front.door.draining = True
    twin.submit(1, first=2)
    assert twin.answer(2)[0] == 503
    twin.finish(worker)
    assert twin.answer(1)[0] == 200


def test_no_worker_of_any_stage_of_the_route_is_503_naming_it() -> None:
    twin = Twin(topology((0, 1), (0,), stages=2), [SPEC, SPEC])
    twin.worker(0)
    twin.submit(1)
    assert twin.answer(1) == (503, b"service unavailable: stage s1 has no worker")
    twin.submit(1, first=2, route=1)
    assert (b"f", 2) not in twin.answers


def test_no_time_left_is_408() -> None:
    twin = one_stage()
    twin.worker()
    twin.submit(1, budget_s=0)
    assert twin.answer(1)[0] == 408
    assert rejected(twin) == {"deadline": 1}


def test_an_unknown_route_is_an_error_of_that_request_alone() -> None:
    twin = one_stage()
    worker = twin.worker()
    message = Submit([1, 2, 3], [0, 99, -1], [10**6] * 3, [b""] * 3)
    twin.introduce(b"f")
    twin.front.submit(b"f", message, [b"x", b"y", b"z"], twin.now)
    twin.run()
    twin.finish(worker)
    assert [twin.answer(seq)[0] for seq in (1, 2, 3)] == [200, 500, 500]


def test_a_deadline_is_answered_wherever_the_item_is() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1, budget_s=1.0)
    twin.submit(2, first=2, budget_s=1.0)
    twin.pass_time(1.01)
    assert [twin.answer(seq) for seq in (1, 2, 3)] == [(408, b"inference timeout")] * 3
    assert len(worker.lane) <= 2
    while worker.lane:
        twin.finish(worker)
    assert twin.front.stats.duplicates >= 1
    assert twin.is_empty()


def test_the_next_deadline_is_known() -> None:
    twin = one_stage()
    twin.worker()
    twin.submit(1, budget_s=5.0)
    twin.submit(1, first=2, budget_s=3.0)
    assert twin.front.expire(twin.now) == pytest.approx(twin.now + 3.0)


def test_where_all_are_answered_no_deadline_wakes_anybody() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(3, budget_s=5.0)
    twin.finish(worker)
    assert twin.front.expire(twin.now) == inf


def test_sent_again_is_admitted_once() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.submit(1)
    twin.finish(worker)
    assert not worker.lane
    assert twin.answer(1)[0] == 200
    assert twin.is_empty()


def test_equal_numbers_of_two_frontends_are_two_requests() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1, peer=b"a")
    twin.submit(1, peer=b"b")
    while worker.lane:
        twin.finish(worker)
    assert twin.answer(1, b"a")[0] == twin.answer(1, b"b")[0] == 200


def test_a_frontend_that_dies_takes_its_requests_along() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1, peer=b"a")
    twin.submit(3, first=5, peer=b"b")
    twin.front.gone(b"b")
    twin.run()
    assert not len(twin.stages[0].queue)
    twin.finish(worker)
    assert set(twin.answers) == {(b"a", 1)}
    assert twin.is_empty()


def test_a_silent_frontend_is_noticed_and_is_a_stranger_afterwards() -> None:
    twin = one_stage()
    twin.introduce(b"a")
    twin.front.beat(b"a", FrontendBeat(b"m"), twin.now)
    twin.pass_seconds(int(FRONTEND_SILENCE_S) + 2)
    assert twin.front.silent(twin.now) == [b"a"]
    twin.front.gone(b"a")
    assert not twin.front.knows(b"a")
    with pytest.raises(KeyError):
        twin.front.submit(b"a", Submit([1], [0], [1], [b""]), [b"x"], twin.now)


def test_a_frontend_is_told_the_brokers_table_and_keeps_its_session() -> None:
    twin = Twin(topology((0, 1), (1,), stages=2), [SPEC, SPEC])
    welcome = twin.front.introduce(b"a", frontend_words(twin.topology, "one"), twin.now)
    assert isinstance(welcome, FrontendWelcome)
    assert (welcome.stages, welcome.routes) == (["s0", "s1"], [("/r0", [0, 1]), ("/r1", [1])])
    again = twin.front.introduce(b"a", frontend_words(twin.topology, "one"), twin.now)
    assert again == welcome
    other = twin.front.introduce(b"b", frontend_words(twin.topology, "two"), twin.now)
    assert isinstance(other, FrontendWelcome)
    assert other.session != welcome.session


def test_the_same_frontend_by_a_new_connection_is_a_new_session_without_requests() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(3, peer=b"a")
    former = twin.front.frontends[b"a"].session
    welcome = twin.front.introduce(b"b", frontend_words(twin.topology, "a"), twin.now)
    twin.run()
    assert isinstance(welcome, FrontendWelcome)
    assert welcome.session != former
    assert set(twin.front.frontends) == {b"b"}
    assert not twin.front.ledger
    twin.finish(worker)
    assert not twin.answers
    assert twin.is_empty()


def test_a_frontend_has_the_lowest_number_that_nobody_has() -> None:
    """So that numbers, and with them labels of metrics, do not become more and more over restarts."""
    twin = one_stage()
    for peer in (b"a", b"b", b"c"):
        twin.introduce(peer)
    twin.front.gone(b"b")
    for peer in (b"d", b"e", b"a"):
        twin.introduce(peer)
    assert {peer: one.slot for peer, one in twin.front.frontends.items()} == {b"a": 1, b"c": 3, b"d": 2, b"e": 4}


def test_answers_say_whose_word_they_are() -> None:
    twin = one_stage(capacity=4)
    worker = twin.worker()
    twin.submit(5)
    twin.front.expire(twin.now)
    twin.submit(1, first=9, budget_s=0)
    twin.finish(worker, statuses={"r1": 429})
    assert twin.speakers == {5: Speaker.DOOR, 9: Speaker.DOOR, **dict.fromkeys((1, 2, 3, 4), Speaker.WORKER)}
    twin.submit(1, first=20)
    twin.pass_time(SPEC.timeout_s)
    assert twin.speakers[20] == Speaker.STAGE


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("who", ["another worker", "nobody", "its worker by another batch", "its worker of others too"])
def test_results_count_only_from_the_worker_that_holds_the_batch(who: str, stages: int) -> None:
    """At the egress and at the next stage's intake: whoever names a request, a batch or a worker of others changes
    nothing, not even the credit of him whose batch it is."""
    route = tuple(range(stages))
    twin = Twin(topology(route, stages=stages), [replace(SPEC, name=f"s{index}") for index in route])
    one, other = twin.worker(0), twin.worker(0, slot=2)
    last = twin.worker(1) if stages == 2 else None
    twin.submit(1)
    twin.submit(1, first=2)
    batch, others = one.lane[0][0].uids, other.lane[0][0].uids
    number = one.batches[batch[0]]
    key = {"another worker": other.key, "nobody": 99}.get(who, one.key)
    false = Results(
        0,
        key,
        number + 100 if who.endswith("another batch") else number,
        others if who.endswith("others too") else batch,
        [200],
        [b""],
        "text/plain",
        compute_us=5_000_000,
    )
    twin.deliver(false, [b"forged"], 1 if stages == 2 else FINAL)
    twin.run()
    assert not twin.answers
    assert len(twin.front.ledger) == 2
    assert not any(lane.forward_s for lane in twin.stages[0].stats.lanes.values()) or who.endswith("others too")
    assert twin.stages[0].state().in_flight == 2
    twin.finish(one)
    twin.finish(other)
    while last is not None and last.lane:
        twin.finish(last)
    for seq in (1, 2):
        assert twin.answer(seq) == (200, b"body%d+0" % seq + b"+1" * (stages - 1))
    assert twin.is_empty()


def test_a_number_cancelled_twice_is_cancelled_once() -> None:
    twin = one_stage()
    twin.worker()
    twin.submit(2)
    twin.front.cancel(b"f", [1, 1, 7, 1])
    twin.run()
    assert (len(twin.front.ledger), twin.front.stats.cancelled) == (1, 1)


def test_uids_carry_the_epoch() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    assert worker.lane[0][0].uids[0] >> EPOCH_SHIFT == 7


def test_events_go_to_whoever_waits() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(2)
    batch = worker.lane[0][0]
    out = twin.front.events(
        StreamEvents(0, worker.key, [*batch.uids, 999], batch=batch.batch), [b"one", b"two", b"three"], twin.now
    )
    events, bodies = out[b"f"]
    assert (events.seqs, bodies) == ([1, 2], [b"one", b"two"])


def test_what_comes_back_with_ok_from_the_wrong_stage_is_no_answer() -> None:
    twin = Twin(topology((0, 1), stages=2), [SPEC, SPEC])
    a, b = twin.worker(0), twin.worker(1)
    twin.submit(1)
    lane = list(a.lane)
    twin.finish(a)
    a.lane = lane
    batch = a.lane[0][0]
    from engine.core.messages import Results

    twin.deliver(Results(0, a.key, batch.batch, batch.uids, [200], [b""]), [b"early"], -1)
    twin.run()
    assert (b"f", 1) not in twin.answers
    twin.finish(b)
    assert twin.answer(1)[0] == 200

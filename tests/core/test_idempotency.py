"""Requests with an Idempotency-Key: all tries of one are computed once, while that can be, and told the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.core.batching import Policy
from engine.core.front import FrontSpec
from engine.core.idempotency import HOLD_S, OVERHEAD, Flight, Kept, Keys
from engine.core.items import Request
from engine.core.liveness import SETTLE_S
from engine.core.messages import KEY_SIZE, Flow, Speaker, StreamEvents
from engine.core.stage import StageSpec
from tests.core.twin import FakeWorker, Twin, topology

SPEC = StageSpec("s0", 1, Policy(1, 1 << 20, 0.0), timeout_s=60.0, kill_after_s=1.0, max_queue_bytes=1 << 20)
REPLAYED = {"idempotent-replayed": "true"}


def key(whose: str, asked: str = "this") -> bytes:
    return whose.encode().ljust(KEY_SIZE // 2, b".") + asked.encode().ljust(KEY_SIZE // 2, b".")


def deployed(*, flow: Flow = Flow.WHOLE, shared: bool = False, **front: int) -> tuple[Twin, FakeWorker]:
    twin = Twin(topology(), [SPEC], FrontSpec(**{"capacity": 100, "capacity_bytes": 1 << 20, **front}), shared=shared)
    return twin, twin.worker(flow=flow)


def test_tries_beside_each_other_are_one_computation() -> None:
    """Of one frontend, and of others."""
    twin, worker = deployed(shared=True)
    twin.submit(1, key=key("a"))
    twin.submit(2, first=2, key=key("a"))
    twin.submit(1, peer=b"g", key=key("a"))
    assert not twin.answers
    assert twin.front.tries.keys.waiting == 3
    twin.finish(worker)
    assert not worker.lane
    assert twin.answers == {
        (peer, seq): [(200, b"body1+0")] for peer, seq in ((b"f", 1), (b"f", 2), (b"f", 3), (b"g", 1))
    }
    assert [twin.headers[b"f", seq] for seq in (1, 2, 3)] == [{}, REPLAYED, REPLAYED]
    assert (twin.front.stats.admitted, twin.front.stats.joined) == (1, 3)
    assert twin.is_empty()


def test_later_tries_get_the_answer_that_is_kept_for_a_while_even_where_nobody_else_is_let_in() -> None:
    twin, worker = deployed()
    twin.submit(1, key=key("a"))
    twin.finish(worker)
    twin.front.door.draining = True
    twin.pass_time(HOLD_S - 0.1)
    twin.submit(1, first=2, key=key("a"))
    assert twin.answer(2) == (200, b"body1+0")
    assert twin.headers[b"f", 2] == REPLAYED
    assert twin.front.stats.replayed == 1
    twin.front.door.draining = False
    twin.pass_time(0.1)
    twin.submit(1, first=3, key=key("a"))
    twin.finish(worker)
    assert twin.answer(3) == (200, b"body3+0")
    assert twin.headers[b"f", 3] == {}
    assert twin.is_empty()


def test_another_request_with_the_same_key_is_422_while_computed_and_afterwards() -> None:
    twin, worker = deployed()
    twin.submit(1, key=key("a"))
    twin.submit(1, first=2, key=key("a", "something else"))
    twin.finish(worker)
    twin.submit(1, first=3, key=key("a", "something else"))
    assert twin.answer(1)[0] == 200
    for seq in (2, 3):
        status, text = twin.answer(seq)
        assert (status, twin.speakers[seq]) == (422, Speaker.DOOR)
        assert b"idempotency-key" in text
        assert twin.headers[b"f", seq] == {"x-should-retry": "false"}
    assert twin.front.stats.rejected == {"key_reused": 2}
    assert twin.is_empty()


def test_keys_of_others_and_requests_without_one_have_nothing_to_do_with_it() -> None:
    twin, worker = deployed()
    twin.submit(1, key=key("a"))
    twin.submit(1, first=2, key=key("b"))
    twin.submit(1, first=3)
    for _ in range(3):
        twin.finish(worker)
    assert [twin.answer(seq) for seq in (1, 2, 3)] == [(200, b"body%d+0" % seq) for seq in (1, 2, 3)]


@pytest.mark.parametrize("status", [200, 307, 400, 404, 408, 409, 422, 425, 429, 500, 503])
def test_which_words_of_a_worker_are_kept(status: int) -> None:
    is_kept = status < 500 and status not in (408, 425, 429)
    twin, worker = deployed()
    twin.submit(1, key=key("a"))
    twin.finish(worker, statuses={"r1": status})
    assert twin.answer(1)[0] == status
    twin.submit(1, first=2, key=key("a"))
    if not is_kept:
        twin.finish(worker)
        assert twin.answer(2) == (200, b"body2+0")
    else:
        assert twin.answer(2)[0] == status
        assert twin.headers[b"f", 2] == REPLAYED
    assert twin.is_empty()


def test_refusals_are_not_kept() -> None:
    twin, worker = deployed(capacity=1)
    twin.submit(1)
    twin.submit(1, first=2, key=key("a"))
    assert twin.answer(2)[0] == 429
    twin.finish(worker)
    twin.submit(1, first=3, key=key("a"))
    twin.finish(worker)
    assert twin.answer(3) == (200, b"body3+0")


def test_what_the_broker_says_of_a_computation_is_told_to_all_and_not_kept() -> None:
    twin = Twin(topology(), [replace(SPEC, idempotent=False)])
    worker = twin.worker()
    twin.submit(2, key=key("a"))
    twin.kill(worker)
    twin.pass_time(SETTLE_S)
    assert [twin.answer(seq)[0] for seq in (1, 2)] == [500, 500]
    assert [twin.headers[b"f", seq] for seq in (1, 2)] == [{}, {}]
    worker = twin.worker()
    twin.submit(1, first=3, key=key("a"))
    twin.finish(worker)
    assert twin.answer(3) == (200, b"body3+0")
    assert twin.is_empty()


def test_a_worker_that_dies_does_not_cost_the_tries_anything() -> None:
    twin, worker = deployed()
    twin.submit(2, key=key("a"))
    twin.kill(worker)
    twin.finish(twin.worker())
    assert [twin.answer(seq) for seq in (1, 2)] == [(200, b"body1+0")] * 2
    assert twin.is_empty()


def test_a_frontend_that_dies_leaves_the_computation_to_the_next_try() -> None:
    twin, worker = deployed(shared=True)
    twin.submit(1, key=key("a"), peer=b"killed")
    twin.submit(1, first=2, peer=b"killed")
    twin.front.gone(b"killed")
    twin.run()
    assert twin.front.stats.cancelled == 1  # the one without a key
    twin.submit(1, first=9, key=key("a"))
    twin.finish(worker)
    assert twin.answers == {(b"f", 9): [(200, b"body1+0")]}
    twin.submit(1, first=10, key=key("a"))
    assert twin.answer(10) == (200, b"body1+0")
    while worker.lane:
        twin.skip(worker)
    assert twin.is_empty()


@pytest.mark.parametrize("which", [1, 2])
def test_a_client_that_leaves_leaves_the_answer_to_the_others(which: int) -> None:
    twin, worker = deployed()
    twin.submit(2, key=key("a"))
    twin.front.cancel(b"f", [which, which])
    twin.run()
    twin.finish(worker)
    assert set(twin.answers) == {(b"f", 3 - which)}
    assert twin.is_empty()


def test_when_all_have_left_it_is_computed_and_kept() -> None:
    twin, worker = deployed()
    twin.submit(2, key=key("a"))
    twin.front.cancel(b"f", [1, 2])
    twin.run()
    twin.finish(worker)
    assert not twin.answers
    twin.submit(1, first=3, key=key("a"))
    assert twin.answer(3) == (200, b"body1+0")
    assert twin.is_empty()


def test_a_try_with_less_time_than_the_one_it_joined_is_late_on_its_own() -> None:
    twin, worker = deployed()
    twin.submit(1, key=key("a"), budget_s=10.0)
    twin.submit(1, first=2, key=key("a"), budget_s=1.0)
    assert twin.front.expire(twin.now) == pytest.approx(twin.now + 1.0)
    twin.pass_time(1.0)
    assert twin.answer(2) == (408, b"inference timeout")
    twin.finish(worker)
    assert twin.answer(1)[0] == 200
    assert len(twin.answers[b"f", 2]) == 1
    assert twin.is_empty()


def test_a_try_with_more_time_than_the_one_it_joined_is_submitted_again() -> None:
    """By a real link, which has kept it."""
    twin, worker = deployed()
    frontend = twin.frontend("f")
    frontend.submit(1, key=key("a"), budget_s=1.0)
    twin.pass_time(0.5)
    frontend.submit(2, key=key("a"), budget_s=1.0)
    frontend.submit(3, key=key("a"), budget_s=1.0)
    twin.pass_time(0.5)
    assert [answer.status for answer in frontend.answers[1] if answer] == [408]
    while worker.lane:
        twin.finish(worker)
    for number in (2, 3):
        (answer,) = frontend.answers[number]
        assert answer is not None
        assert (answer.status, bytes(answer.body)) == (200, b"body2+0")
    assert twin.is_empty()


def test_a_frontend_that_comes_back_by_a_new_connection_joins_what_it_had_asked() -> None:
    twin, worker = deployed()
    frontend = twin.frontend("f")
    frontend.submit(1, key=key("a"))
    frontend.cut()
    frontend.heal()
    twin.run()
    twin.finish(worker)
    assert not worker.lane
    assert [answer.status for answer in frontend.answers[1] if answer] == [200]
    assert twin.is_empty()


def test_a_broker_that_dies_has_kept_nothing_and_is_asked_again() -> None:
    twin, worker = deployed()
    frontend = twin.frontend("f")
    frontend.submit(1, key=key("a"))
    twin.finish(worker)
    frontend.submit(2, key=key("b"))
    frontend.submit(3, key=key("b"))
    twin.broker_dies()
    frontend.heal()
    twin.run()
    frontend.submit(4, key=key("a"))
    (worker,) = twin.workers.values()
    while worker.lane:
        twin.finish(worker)
    bodies = {number: bytes(answer.body) for number, (answer,) in frontend.answers.items() if answer}
    assert bodies == {1: b"body1+0", 2: b"body2+0", 3: b"body2+0", 4: b"body4+0"}
    assert twin.is_empty()


# --- streams ---------------------------------------------------------------------------------------------------------


def event(twin: Twin, worker: FakeWorker, flow: Flow = Flow.EVENTS) -> dict[bytes, list[int]]:
    """The worker sends an event of what it was given last: to whom it goes."""
    batch, _ = worker.lane[-1]
    words = StreamEvents(0, worker.key, batch.uids, flow=int(flow), mime="text/event-stream", batch=batch.batch)
    sent = twin.front.events(words, [b"piece"] * len(batch.uids), twin.now)
    twin.run()
    return {peer: events.seqs for peer, (events, _) in sent.items()}


@pytest.mark.parametrize("flow", [Flow.EVENTS, Flow.CHUNKS])
def test_a_stream_is_read_by_one_and_its_tries_are_refused_while_it_lasts(flow: Flow) -> None:
    twin, worker = deployed(flow=flow)
    twin.submit(1, key=key("a"))
    assert event(twin, worker, flow) == {b"f": [1]}
    twin.submit(1, first=2, key=key("a"))
    assert (twin.answer(2)[0], twin.speakers[2]) == (409, Speaker.DOOR)
    twin.front.consumed(b"f", {1: 9})
    (grant,) = twin.front.actions
    twin.front.actions.clear()
    assert grant.nbytes == 9  # type: ignore[union-attr]  # a Grant
    twin.finish(worker)
    assert twin.answer(1)[0] == 200
    twin.submit(1, first=3, key=key("a"))  # not kept
    twin.finish(worker)
    assert twin.headers[b"f", 3] == {}
    assert twin.is_empty()


def test_a_stream_ends_with_its_reader() -> None:
    twin, worker = deployed(flow=Flow.EVENTS)
    twin.submit(1, key=key("a"))
    event(twin, worker)
    twin.front.cancel(b"f", [1])
    twin.run()
    assert not twin.front.ledger
    assert twin.front.tries.keys.in_flight == 0
    twin.submit(1, first=2, key=key("a"))  # is not joined to what nobody reads
    twin.skip(worker)
    twin.finish(worker)
    assert twin.answer(2)[0] == 200
    assert twin.is_empty()


def test_who_has_joined_before_it_was_known_to_be_a_stream_is_refused_then() -> None:
    twin, worker = deployed()
    twin.submit(2, key=key("a"))
    assert event(twin, worker) == {b"f": [1]}
    assert twin.answer(2)[0] == 409
    twin.finish(worker)
    assert twin.answer(1)[0] == 200
    assert twin.is_empty()


def test_a_stream_that_nobody_reads_is_given_up_with_its_first_event() -> None:
    twin, worker = deployed()
    twin.submit(1, key=key("a"))
    twin.front.cancel(b"f", [1])
    twin.run()
    assert len(twin.front.ledger) == 1
    assert event(twin, worker) == {}
    assert not twin.front.ledger
    twin.skip(worker)
    assert twin.is_empty()


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_tries_that_wait_count_towards_the_capacity() -> None:
    twin, worker = deployed(capacity=3)
    twin.submit(5, key=key("a"))
    assert [twin.answer(seq)[0] for seq in (4, 5)] == [429, 429]
    twin.finish(worker)
    assert [twin.answer(seq)[0] for seq in (1, 2, 3)] == [200] * 3


def request(uid: int, deadline: float = 10.0) -> Request:
    return Request(uid, b"", uid, 0, deadline, deadline, deadline, b"", 0)


def keep(keys: Keys, whose: str, size: int, now: float, room: int) -> None:
    uid = keys.in_flight + 1
    keys.begin(key(whose), request(uid), (b"f", 1))
    keys.keep(keys.end(uid), 200, "", {}, bytes(size), now, room)


def test_answers_take_as_many_bytes_as_there_is_room_for_and_the_oldest_give_way() -> None:
    keys = Keys()
    each = 100 + OVERHEAD
    room = 5 * each
    for n in range(8):
        keep(keys, f"k{n}", 100, now=float(n), room=room)
    assert (len(keys), keys.nbytes) == (5, room)
    assert [n for n in range(8) if keys.find(key(f"k{n}"), 8.0) is not None] == [3, 4, 5, 6, 7]
    keep(keys, "large", room // 4, now=9.0, room=room)  # with its overhead more than its share
    assert keys.find(key("large"), 9.0) is None
    keep(keys, "k5", 100, now=10.0, room=room)  # was there before
    assert (len(keys), keys.nbytes) == (5, room)
    assert keys.expire(10.0) == []
    assert keys.due_at == 4.0 + HOLD_S or keys.due_at == 3.0 + HOLD_S
    assert keys.expire(10.0 + HOLD_S) == []
    assert (len(keys), keys.nbytes) == (0, 0)


def test_no_room_keeps_nothing() -> None:
    keys = Keys()
    keep(keys, "a", 0, now=0.0, room=0)
    assert keys.find(key("a"), 0.0) is None


def test_deadlines_of_tries_are_forgotten_with_them() -> None:
    """However many join and get their answers long before their time is over."""
    keys = Keys()
    for n in range(10_000):
        keys.begin(key("a"), request(n, deadline=100.0), (b"f", 1))
        found = keys.find(key("a"), 0.0)
        assert isinstance(found, Flight)
        keys.join(found, (b"f", 2), 50.0)
        keys.end(n)
    assert len(keys._late) < 200
    assert keys.waiting == 0


def test_a_kept_answer_that_is_too_old_is_not_found_before_anybody_has_looked() -> None:
    keys = Keys()
    keep(keys, "a", 1, now=0.0, room=1 << 20)
    assert isinstance(keys.find(key("a"), HOLD_S - 0.1), Kept)
    assert keys.find(key("a"), HOLD_S) is None

"""Streams and the death of workers: a client that has read events of one computation never reads those of another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import wording
from engine.core.batching import Policy
from engine.core.front import FrontMachine
from engine.core.messages import EVENT_COST, CancelItems, Events, Flow, Granted, Ready, StreamEvents
from engine.core.stage import StageSpec
from engine.core.wire import decode, encode
from tests.core.twin import FakeWorker, Twin, ids_of, topology

SPEC = StageSpec("s0", 1, Policy(4, 1 << 20, 0.010), timeout_s=2.0, kill_after_s=1.0, max_queue_bytes=1 << 20)
DIED = b"internal error: a worker of stage s0 died while it streamed this request"


def one_stage(**changes: object) -> Twin:
    return Twin(topology(), [replace(SPEC, **changes)])  # type: ignore[arg-type]


def send(twin: Twin, worker: FakeWorker, uid: int, text: bytes = b"event") -> dict[bytes, list[tuple[int, bytes]]]:
    """The worker sends an event; what frontends get of it, as (number of the request, text)."""
    batch = worker.batches.get(uid, 0)
    message, payloads = decode(encode(StreamEvents(worker.stage, worker.key, [uid], batch=batch), [text]))
    assert isinstance(message, StreamEvents)
    got = {}
    for peer, (events, bodies) in twin.front.events(message, payloads, twin.now).items():
        assert isinstance(events, Events)
        got[peer] = [(seq, bytes(body)) for seq, body in zip(events.seqs, bodies, strict=True)]  # type: ignore[arg-type]
    twin.run()
    return got


def die_unnoticed(twin: Twin, worker: FakeWorker, uid: int) -> None:
    """An event of the worker is passed on while its stage, on another thread, has just looked whether there was one."""
    assert send(twin, worker, uid) == {b"f": [(1, b"event")]}
    request = twin.front.ledger.requests[uid]
    seen, request.stream_hop = request.stream_hop, -1
    twin.kill(worker)
    request.stream_hop = seen


def uids(worker: FakeWorker) -> list[int]:
    return worker.lane[0][0].uids


def test_events_go_to_the_frontend_that_waits() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1, peer=b"a")
    twin.submit(1, peer=b"b")
    (uid,) = uids(worker)
    assert send(twin, worker, uid) == {b"a": [(1, b"event")]}


def test_what_has_sent_events_is_not_replayed_and_the_rest_of_its_batch_is() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    twin.submit(2, first=2)
    twin.finish(worker)
    first, _ = uids(worker)
    send(twin, worker, first)
    twin.kill(worker)
    assert twin.answer(2) == (500, DIED)
    again = twin.worker()
    assert [ids_of(batch) for batch, _ in again.lane] == [["r3"]]
    twin.finish(again)
    assert twin.answer(3)[0] == 200
    assert twin.is_empty()


def test_a_replay_that_began_before_the_event_was_known_ends_the_stream_as_a_failure() -> None:
    """The worker's last event is still on its way when its death is seen."""
    twin = one_stage()
    old = twin.worker()
    twin.submit(1)
    (uid,) = uids(old)
    die_unnoticed(twin, old, uid)
    new = twin.worker()
    assert uids(new) == [uid]
    assert send(twin, new, uid) == {}
    assert twin.answer(1) == (500, wording.TORN.encode())
    assert new.told == [CancelItems([uid])]
    twin.finish(new)
    assert twin.is_empty()


def test_nor_does_the_replays_result_pass_for_the_end_of_that_stream() -> None:
    twin = one_stage()
    old = twin.worker()
    twin.submit(1)
    (uid,) = uids(old)
    die_unnoticed(twin, old, uid)
    new = twin.worker()
    twin.finish(new)
    assert twin.answer(1) == (500, wording.TORN.encode())
    assert twin.is_empty()


def test_a_dead_workers_events_are_dropped() -> None:
    twin = one_stage()
    old = twin.worker()
    twin.submit(1)
    (uid,) = uids(old)
    twin.kill(old)
    assert send(twin, old, uid) == {}
    new = twin.worker()
    assert send(twin, new, uid) == {b"f": [(1, b"event")]}
    assert send(twin, old, uid) == {}
    twin.finish(new)
    assert twin.answer(1)[0] == 200
    assert twin.is_empty()


@pytest.mark.parametrize("who", ["a worker of its stage", "a worker of another stage", "its worker by another batch"])
def test_events_of_what_somebody_else_holds_are_dropped(who: str) -> None:
    twin = Twin(topology((0, 1), stages=2), [SPEC, replace(SPEC, name="s1")])
    one, other, next_one = twin.worker(0), twin.worker(0, slot=2), twin.worker(1, flow=Flow.EVENTS)
    twin.submit(1)
    (uid,) = uids(one)
    assert not other.lane
    sender = {"a worker of its stage": other, "a worker of another stage": next_one}.get(who, one)
    sender.batches[uid] = one.batches[uid] + (sender is one)
    assert send(twin, sender, uid) == {}
    assert twin.front.ledger.requests[uid].streamer == -1
    assert send(twin, one, uid) == ({} if sender is one else {b"f": [(1, b"event")]})


def test_a_stage_before_the_last_may_report_and_what_comes_behind_it_is_replayed_all_the_same() -> None:
    twin = Twin(topology((0, 1), stages=2), [SPEC, replace(SPEC, name="s1")])
    first, second = twin.worker(0, flow=Flow.EVENTS), twin.worker(1, flow=Flow.EVENTS)
    twin.submit(1)
    (uid,) = uids(first)
    assert send(twin, first, uid, b"halfway") == {b"f": [(1, b"halfway")]}
    twin.finish(first)
    assert send(twin, first, uid, b"late but first") == {b"f": [(1, b"late but first")]}
    twin.kill(second)
    other = twin.worker(1)
    assert send(twin, other, uid, b"second") == {b"f": [(1, b"second")]}
    assert send(twin, first, uid, b"too late") == {}
    twin.finish(other)
    assert twin.answer(1)[0] == 200
    assert twin.is_empty()


@pytest.mark.parametrize("flow", [Flow.WHOLE, Flow.CHUNKS])
def test_progress_that_the_answer_has_no_place_for_is_dropped_and_costs_nothing(flow: Flow) -> None:
    twin = Twin(topology((0, 1), stages=2), [SPEC, replace(SPEC, name="s1")])
    first, second = twin.worker(0), twin.worker(1, flow=flow)
    twin.submit(1)
    (uid,) = uids(first)
    assert send(twin, first, uid, b"12345") == {}
    assert first.told == [Granted({uid: 5 + EVENT_COST})]
    twin.kill(first)  # nobody has read anything: it may be computed again
    twin.finish(twin.worker(0))
    twin.finish(second)
    assert twin.answer(1)[0] == 200


def test_events_of_a_stage_the_request_has_not_reached_are_dropped() -> None:
    twin = Twin(topology((0, 1), (1,), stages=3), [SPEC, replace(SPEC, name="s1"), replace(SPEC, name="s2")])
    first, second, stranger = twin.worker(0), twin.worker(1), twin.worker(2)
    twin.submit(1)
    (uid,) = uids(first)
    assert send(twin, second, uid) == send(twin, stranger, uid) == {}
    twin.finish(first)
    twin.finish(second)
    assert twin.answer(1)[0] == 200


def test_a_time_out_ends_a_stream() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    (uid,) = uids(worker)
    send(twin, worker, uid)
    twin.pass_time(2.1)
    assert twin.answer(1) == (408, b"inference timeout")
    assert send(twin, worker, uid) == {}


def test_what_a_client_has_taken_is_granted_to_the_worker_that_sends() -> None:
    twin = one_stage()
    worker = twin.worker()
    twin.submit(1)
    (uid,) = uids(worker)
    twin.front.consumed(b"f", {1: 10})  # of nothing that was sent
    send(twin, worker, uid)
    twin.front.consumed(b"f", {1: 300, 99: 5})
    twin.front.consumed(b"nobody", {1: 300})
    twin.run()
    assert worker.told == [Granted({uid: 300})]
    twin.finish(worker)
    twin.front.consumed(b"f", {1: 300})
    twin.run()
    assert worker.told == [Granted({uid: 300})]


def test_how_a_stage_answers_is_known_from_its_first_worker_on() -> None:
    twin = one_stage()
    assert twin.stages[0].state().flow == Flow.UNKNOWN
    worker = twin.worker(ready=False)
    assert twin.front.stages[0].state.flow == Flow.UNKNOWN
    twin.stages[0].ready(Ready(worker.key, "text/event-stream", flow=Flow.EVENTS), twin.now)
    twin.run()
    twin.kill(worker)
    state = twin.front.stages[0].state
    assert (state.ready, state.flow, state.mime) == (0, Flow.EVENTS, "text/event-stream")


def test_of_a_stage_that_was_not_heard_of_nothing_is_believed() -> None:
    twin = one_stage()
    assert [view.state.flow for view in twin.front.stages] == [Flow.UNKNOWN]


def test_what_comes_before_the_news_is_passed_on() -> None:
    """On threads of their own: a worker is ready and sends events while what its stage says of it is on its way."""
    twin = Twin(topology((0, 1), stages=2), [SPEC, replace(SPEC, name="s1")])
    first, second = twin.worker(0), twin.worker(1, flow=Flow.EVENTS)
    twin.submit(1)
    (uid,) = uids(first)
    for view in twin.front.stages:  # as they were before the first news
        view.state = FrontMachine(twin.front.spec, twin.topology, 7).stages[0].state
    assert send(twin, first, uid, b"progress") == {b"f": [(1, b"progress")]}
    twin.finish(first)
    assert send(twin, second, uid, b"answer") == {b"f": [(1, b"answer")]}


@pytest.mark.parametrize("believed", Flow)
def test_events_of_the_last_stage_are_passed_on_whatever_is_believed_of_it(believed: Flow) -> None:
    twin = one_stage()
    worker = twin.worker(flow=believed)
    twin.submit(1)
    (uid,) = uids(worker)
    assert send(twin, worker, uid) == {b"f": [(1, b"event")]}


def test_a_stage_that_is_changing_is_not_known_until_all_its_workers_agree() -> None:
    """Its workers are replaced one by one by others that stream."""
    twin = Twin(topology((0, 1), stages=2), [SPEC, replace(SPEC, name="s1")])
    first = twin.worker(0)
    old = twin.worker(1, flow=Flow.WHOLE)
    told = twin.front.stages[1]
    assert told.state.flow == Flow.WHOLE
    twin.submit(1)
    (uid,) = uids(first)
    assert send(twin, first, uid) == {}
    new = twin.worker(1, slot=2, flow=Flow.EVENTS)
    assert told.state.flow == Flow.UNKNOWN
    assert send(twin, first, uid) == {b"f": [(1, b"event")]}
    twin.finish(first)
    busy, idle = (old, new) if old.lane else (new, old)
    assert busy.lane
    twin.stages[1].leave(old.key, twin.now)
    twin.run()
    assert told.state.flow == (Flow.UNKNOWN if busy is old else Flow.EVENTS)
    twin.finish(busy)
    assert told.state.flow == Flow.EVENTS
    twin.kill(idle)
    twin.kill(busy)
    assert told.state.flow == Flow.EVENTS  # as the last one said


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_dies_a_client_reads_one_computation_and_gets_one_answer(data: st.DataObject) -> None:
    """Workers send, finish and die in any order, and what they had sent arrives before or after their death is seen."""
    twin = one_stage(max_attempts=3)
    read: dict[int, list[int]] = {}  # request -> the workers whose events its client has read
    on_the_way: list[tuple[FakeWorker, int]] = []
    alive: list[FakeWorker] = []
    requests = 0

    def arrive(worker: FakeWorker, uid: int) -> None:
        for events in send(twin, worker, uid, b"%d" % worker.key).values():
            for seq, text in events:
                assert (b"f", seq) not in twin.answers, "an event after the answer"
                read.setdefault(seq, []).append(int(text))

    for _ in range(data.draw(st.integers(5, 40))):
        match data.draw(st.sampled_from(["submit", "worker", "send", "arrive", "finish", "kill"])):
            case "submit":
                requests += 1
                twin.submit(1, first=requests)
            case "worker":
                alive.append(twin.worker(slot=len(alive) + 1))
            case "send" if any(one.lane for one in alive):
                worker = data.draw(st.sampled_from([one for one in alive if one.lane]))
                on_the_way.append((worker, data.draw(st.sampled_from(uids(worker)))))
            case "arrive" if on_the_way:
                arrive(*on_the_way.pop(data.draw(st.integers(0, len(on_the_way) - 1))))
            case "finish" if any(one.lane for one in alive):
                worker = data.draw(st.sampled_from([one for one in alive if one.lane]))
                for sent in [sent for sent in on_the_way if sent[0] is worker]:  # one socket: they come first
                    on_the_way.remove(sent)
                    arrive(*sent)
                twin.finish(worker)
            case "kill" if alive:
                twin.kill(alive.pop(data.draw(st.integers(0, len(alive) - 1))))
    for sent in on_the_way:
        arrive(*sent)
    twin.pass_time(200)
    for seq in range(1, requests + 1):
        status, _ = twin.answer(seq)
        workers = set(read.get(seq, []))
        assert len(workers) <= 1
        if status == 200 and workers:
            assert twin.computed[f"r{seq}"] >= 1
    assert not twin.front.ledger

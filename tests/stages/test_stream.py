"""Streaming workers without a server: what they send, where they may stand, and what is never computed twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import config
from engine.core import wire
from engine.core.messages import STREAM_WINDOW, Flow, StreamEvents
from engine.core.meta import pack
from engine.errors import StartError, ValidationError
from stages import SSEWorker, StreamWorker, Worker
from stages.build import create, examples
from stages.compute import SPOILED, Codec, run_batch
from stages.context import PADDING, ItemIn
from stages.local import Pipeline
from stages.runtime.parcels import Origin
from stages.runtime.shared import Numbers
from stages.runtime.streams import Streams
from stages.runtime.window import Windows
from stages.stream import PIECE_MAX, check_place, flow_of, stream_flow_of, whole_mime_of
from stages.warming import WarmUp, warm_up
from stages.watchdog import Watchdog


class Echo(SSEWorker):
    """Sends every word; "fail" raises, "bad" fails its own."""

    def forward(self, data: Any) -> Any:
        single = self.max_batch_size == 1
        results: list[Any] = []
        for index, text in enumerate([data] if single else data):
            for word in text.split():
                if word == "fail":
                    raise ValidationError(f"because of {text}")
                if word != "bad":
                    self.send_stream_event(word, index=index)
            results.append(ValidationError("bad") if "bad" in text.split() else object())
        return results[0] if single else results


class Count(StreamWorker):
    resp_mime_type = "text/plain"

    def __init__(self) -> None:
        self.closed = 0

    def forward(self, data: Any) -> Iterator[Any]:
        try:
            yield from data
        finally:
            self.closed += 1


def made(cls: type, **options: Any) -> Any:
    given: dict[str, Any] = {"stage": "s", "worker_id": 1, "max_batch_size": 1, "device": "cpu", "args": {}}
    return create(cls, **{**given, **options})


def item(uid: int, text: str) -> ItemIn:
    return ItemIn(uid, f'"{text}"'.encode(), meta=pack(f"r{uid}"))


def into(worker: Any, *, refuse_after: int = 1 << 30) -> list[tuple[int, bytes]]:
    """What the worker sends from now on, by uid."""
    sent: list[tuple[int, bytes]] = []

    def sink(index: int, data: bytes) -> bool:
        sent.append((worker._items[index].uid, data))
        return len(sent) < refuse_after

    worker._sink = sink
    return sent


# --- events ---


def test_offline_events_go_nowhere_or_where_they_are_collected() -> None:
    worker = Echo()
    worker.forward("unheard")
    with worker.collect() as events:
        worker.forward("one two")
    worker.forward("unheard")
    assert events == [(0, "one"), (0, "two")]


def test_a_warm_up_sends_to_nobody() -> None:
    worker = made(Echo, max_batch_size=2)
    worker.multi_examples = [["a b", "c"]]
    plan = WarmUp(2)
    assert warm_up(worker, plan, examples(worker), asked_s=None)
    assert set(plan.tried) == {1, 2}


def test_results_of_streams_are_dropped_at_the_end_of_a_route_and_passed_on_before_it() -> None:
    codec = Codec(made(Echo))
    assert codec.encode(item(1, ""), object()) == b""
    passed = codec.encode(ItemIn(1, b"", last=False), {"x": 1})
    assert Codec(made(Echo)).decode(ItemIn(1, passed, first=False)) == {"x": 1}


def test_a_failed_batch_computes_again_only_what_has_sent_nothing() -> None:
    worker = made(Echo, max_batch_size=4)
    sent = into(worker)
    items = [item(1, "one"), item(2, "bad"), item(3, "fail"), item(4, "four")]
    computed = run_batch(worker, items, max_batch_size=4, begun=lambda one: one.uid in {uid for uid, _ in sent})
    assert sent == [(1, b"one"), (4, b"four")]
    first, second, third, fourth = computed.outcomes
    assert first == SPOILED
    assert (second.status, second.payload) == (422, b"request validation error: bad")
    assert (third.status, third.payload) == (422, b"request validation error: because of fail")
    assert (fourth.status, fourth.payload) == (200, b"")


def test_a_lone_stream_that_fails_is_told_its_own_error() -> None:
    worker = made(Echo, max_batch_size=4)
    into(worker)
    (outcome,) = run_batch(worker, [item(1, "one fail")], max_batch_size=4, begun=lambda _: True).outcomes
    assert (outcome.status, outcome.payload) == (422, b"request validation error: because of one fail")


class Either(Echo):
    whole_mime_type = "application/json"

    def forward(self, data: Any) -> Any:
        super().forward([text.removeprefix("whole") for text in data])
        return [ValidationError("bad") if text == "bad" else {"said": text} for text in data]


def test_where_a_request_may_be_answered_whole_its_result_is_the_answer_unless_it_was_a_stream() -> None:
    worker = made(Either, max_batch_size=4)
    sent = into(worker)
    codec = Codec(worker)
    codec.has_begun = lambda one: one.uid in {uid for uid, _ in sent}
    items = [item(1, "one"), item(2, "whole"), item(3, "bad"), item(4, "")]
    computed = run_batch(worker, items, max_batch_size=4, codec=codec)
    assert sent == [(1, b"one")]
    assert [(one.status, one.payload) for one in computed.outcomes] == [
        (200, b""),
        (200, b'{"said":"whole"}'),
        (422, b"request validation error: bad"),
        (200, b'{"said":""}'),
    ]


# --- pieces ---


def run(worker: Any, data: Any) -> Any:
    worker.deserialize = lambda _: data
    (outcome,) = run_batch(worker, [item(1, "")], max_batch_size=1).outcomes
    return outcome


def test_pieces_are_sent_one_by_one_and_empty_ones_are_not() -> None:
    worker = made(Count)
    sent = into(worker)
    outcome = run(worker, [b"a", b"", bytearray(b"b"), memoryview(b"c")])
    assert sent == [(1, b"a"), (1, b"b"), (1, b"c")]
    assert (outcome.status, outcome.payload) == (200, b"")
    assert worker.closed == 1


def test_a_generator_is_closed_when_nobody_listens() -> None:
    worker = made(Count)
    sent = into(worker, refuse_after=2)
    run(worker, [b"a", b"b", b"c"])
    assert [data for _, data in sent] == [b"a", b"b"]
    assert worker.closed == 1


@pytest.mark.parametrize("returned", [b"whole", "text", None, 7])
def test_what_is_no_generator_of_bytes_is_a_failure(returned: object) -> None:
    class Wrong(StreamWorker):
        def forward(self, data: Any) -> Any:
            return returned

    assert run(made(Wrong), "").status == 500
    with pytest.raises(TypeError, match="must yield bytes"):
        made(Wrong)._pump("")


def test_a_large_piece_goes_in_parts_and_an_empty_one_not_at_all() -> None:
    worker = made(Count)
    sent = into(worker)
    whole = bytes(range(256)) * (3 * PIECE_MAX // 256) + b"rest"
    run(worker, [b"", memoryview(whole), b"a"])
    assert [len(data) for _, data in sent] == [PIECE_MAX] * 3 + [4, 1]
    assert b"".join(data for _, data in sent) == whole + b"a"


def test_a_piece_that_is_no_bytes_is_a_failure() -> None:
    worker = made(Count)
    into(worker)
    assert run(worker, [b"a", "b"]).status == 500
    assert worker.closed == 1


def test_a_warm_up_of_pieces_runs_the_generator_to_its_end() -> None:
    worker = made(Count)
    worker.example = [b"a"]
    warm_up(worker, WarmUp(1), examples(worker))
    assert worker.closed == 1


def test_a_stream_worker_must_say_what_it_yields() -> None:
    class Nothing(StreamWorker):
        pass

    with pytest.raises(StartError, match="must define forward"):
        made(Nothing)


def test_where_a_stream_worker_may_stand() -> None:
    check_place(made(Count), is_last=True)
    check_place(made(Echo, max_batch_size=8), is_last=False)
    with pytest.raises(StartError, match="max_batch_size to 1"):
        check_place(made(Count, max_batch_size=2), is_last=True)
    with pytest.raises(StartError, match="last stage"):
        check_place(made(Count), is_last=False)


def test_flows() -> None:
    kinds: list[Worker] = [Worker(), Echo(), Count(), Either()]
    assert [flow_of(one) for one in kinds] == [Flow.WHOLE, Flow.EVENTS, Flow.CHUNKS, Flow.UNKNOWN]
    assert [stream_flow_of(one) for one in kinds] == [Flow.WHOLE, Flow.EVENTS, Flow.CHUNKS, Flow.EVENTS]
    assert [whole_mime_of(one) for one in kinds[::3]] == ["application/json"] * 2


# --- a whole route ---

SERVICE = """
from engine import SSEWorker, StreamWorker, ValidationError

class Tell(SSEWorker):
    def forward(self, data):
        self.send_stream_event("a\\nb")
        if data == "fail":
            raise ValidationError("no")

class Either(SSEWorker):
    whole_mime_type = "application/json"
    def forward(self, data):
        if data == "fail":
            raise ValidationError("no")
        if data == "stream":
            self.send_stream_event("a")
        return {"whole": data}

class Count(StreamWorker):
    resp_mime_type = "text/plain"
    def forward(self, data):
        yield b"one "
        if data == "fail":
            raise ValidationError("no")
        yield b"two"
"""
TOML = """
[[stage]]
name = "tell"
worker = "streamed:Tell"
[[stage]]
name = "count"
worker = "streamed:Count"
[[stage]]
name = "either"
worker = "streamed:Either"
[[route]]
path = "/tell"
stages = ["tell"]
[[route]]
path = "/either"
stages = ["either"]
[[route]]
path = "/count"
stages = ["count"]
"""


def test_a_local_pipeline_answers_as_a_client_would_see_it(tmp_path: Path) -> None:
    (tmp_path / "streamed.py").write_text(SERVICE)
    (tmp_path / "stages.toml").write_text(TOML)
    with Pipeline(config.load(tmp_path / "stages.toml")) as pipeline:
        assert pipeline.call("/tell", b"1") == (200, b"data: a\ndata: b\n\n", "text/event-stream")
        failed = pipeline.call("/tell", b'"fail"')
        assert failed.status == 200
        assert failed.body.endswith(
            b"event: error\ndata: SSE inference error: 422: Unprocessable Content: request validation error: no\n\n"
        )
        assert pipeline.call("/either", b'"x"') == (200, b'{"whole":"x"}', "application/json")
        assert pipeline.call("/either", b'"stream"') == (200, b"data: a\n\n", "text/event-stream")
        assert pipeline.call("/either", b'"fail"')[:2] == (422, b"request validation error: no")
        assert pipeline.call("/count", b"1") == (200, b"one two", "text/plain")
        assert pipeline.call("/count", b'"fail"')[:2] == (422, b"request validation error: no")


# --- windows ---


@pytest.fixture
def windows() -> Iterator[Windows]:
    made = Windows()
    yield made
    made.close()


def test_a_window_closes_with_what_is_sent_and_opens_with_what_is_taken(windows: Windows) -> None:
    assert not windows.has_begun(1)
    windows.sent(1, STREAM_WINDOW - 1)
    assert windows.has_room(1)
    windows.sent(1, 10 * STREAM_WINDOW)  # the last may go beyond
    assert not windows.has_room(1)
    assert windows.has_room(2)
    windows.granted({1: 10 * STREAM_WINDOW, 2: 5})
    assert windows.has_room(1)
    assert windows.has_begun(1)


def test_what_was_taken_of_another_stages_progress_opens_no_window(windows: Windows) -> None:
    windows.sent(1, 1)
    windows.granted({1: STREAM_WINDOW})
    windows.sent(1, STREAM_WINDOW)
    assert not windows.has_room(1)


def test_waiting_ends_when_something_is_granted(windows: Windows) -> None:
    windows.sent(1, STREAM_WINDOW)
    other = threading.Thread(target=windows.granted, args=[{1: 1}])
    other.start()
    windows.wait(20)
    other.join()
    assert windows.has_room(1)


def test_nothing_is_remembered_of_streams_that_are_over(windows: Windows) -> None:
    windows.sent(1, STREAM_WINDOW)
    windows.granted({1: 5})
    windows.forget([1])
    windows.granted({1: 5})  # on its way when the stream ended
    windows.sent(2, 1)
    windows.forget([])
    assert windows.has_room(1)
    assert not windows.has_begun(1)
    assert windows._granted == {}


def test_what_a_batch_is_padded_with_sends_no_events(windows: Windows) -> None:
    sent: list[tuple[int, bytes]] = []

    class Outlet:
        def send(self, _target: int, frames: list[Any]) -> None:
            message, payloads = wire.decode(frames)
            assert isinstance(message, StreamEvents)
            sent.append((message.uids[0], bytes(payloads[0])))

    outlets: Any = Outlet()
    worker = made(Echo, max_batch_size=8, batch_sizes=(8,))
    streams = Streams(worker, outlets=outlets, cancelled=Numbers(), windows=windows, watchdog=Watchdog(60.0, 60.0))
    streams.origin = Origin(0, 1)
    given = [item(1, "a b"), item(2, "c")]
    assert [one.status for one in run_batch(worker, given, max_batch_size=8, sizes=(8,)).outcomes] == [200, 200]
    assert sent == [(1, b"a"), (1, b"b"), (2, b"c")]
    assert not windows.has_begun(PADDING)

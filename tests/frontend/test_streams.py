"""Streams in the ASGI application, with a fake broker: heads, ends, windows, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fakes import READY, Exchange, FakeClient, Response, Service, echo, run, unavailable

from engine.config.schema import OPENAI, PLAIN, FrontendSection
from engine.core import sse
from engine.core.call import Answer, StreamEvent
from engine.core.messages import EVENT_COST, STREAM_WINDOW, Flow, Speaker
from engine.core.wire import pack_step
from frontend import streams, waiting
from frontend.protocols import openai_event

TRAIL = pack_step(1, 2, 3) * 2
END = Answer(200, b"", "text/event-stream", TRAIL)
FAILED = Answer(422, b"request validation error: no", "", TRAIL)


@dataclass
class Rig:
    """A service whose last stage streams, and one request to it."""

    flow: Flow = Flow.EVENTS
    mime: str = "text/event-stream"
    protocol: str = PLAIN
    frontend: FrontendSection = field(default_factory=lambda: FrontendSection(address="127.0.0.1", port=0))

    def __post_init__(self) -> None:
        first, last = READY.stages
        self.client = FakeClient(reply=lambda _: None)
        self.client.current = replace(READY, stages=(first, replace_flow(last, self.flow, self.mime)))
        self.service = Service(self.client, self.frontend, self.protocol)
        self.exchange = Exchange(self.service.app, "POST", "/inference", [b"1"])

    def send(self, *texts: bytes, flow: Flow | None = None) -> None:
        for text in texts:
            self.client.streams[0](StreamEvent(text, self.flow if flow is None else flow, self.mime))

    def answer(self, answer: Answer) -> None:
        self.client.waiting[0].set_result(answer)

    @property
    def written(self) -> bytes:
        return b"".join(event.get("body", b"") for event in self.exchange._sent)

    def play(self, *steps: Callable[[], Any]) -> Response:
        """The answer to the request, while the steps are taken; each waits for the one before to have its effect."""

        async def scenario() -> Response:
            answer = asyncio.create_task(self.exchange.response())
            await until(lambda: self.client.submitted)
            for step in steps:
                got = step()
                if isinstance(got, Coroutine):
                    await got
                else:
                    await settle()
            return await answer

        response: Response = run(scenario())
        self.check_left()
        return response

    def check_left(self) -> None:
        assert (self.service.gate.pending, self.service.gate.held) == (0, 0)


def replace_flow(state: Any, flow: Flow, mime: str) -> Any:
    fields = {name: getattr(state, name) for name in state.__struct_fields__}
    return type(state)(**{**fields, "flow": int(flow), "mime": mime})


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    end = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it never came true"
        await asyncio.sleep(0.002)


def test_events_are_framed_and_the_end_is_silent() -> None:
    rig = Rig()
    response = rig.play(lambda: rig.send(b"one"), lambda: rig.send(b"two\nlines", b""), lambda: rig.answer(END))
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert "x-request-id" in response.headers
    assert response.body == b"data: one\n\ndata: two\ndata: lines\n\ndata: \n\n"


def test_an_event_is_written_before_the_answer_is_known() -> None:
    rig = Rig()
    rig.play(
        lambda: rig.send(b"now"),
        lambda: until(lambda: rig.written == b"data: now\n\n"),
        lambda: rig.answer(END),
    )


@pytest.mark.parametrize("events", [(), (b"one",)])
def test_a_failure_is_the_last_event_also_as_the_first(events: tuple[bytes, ...]) -> None:
    rig = Rig()
    response = rig.play(lambda: rig.send(*events), lambda: rig.answer(FAILED))
    assert response.status == 200
    assert response.body == b"".join(map(sse.event, events)) + sse.error(422, "request validation error: no")
    assert b"SSE inference error: 422: Unprocessable Content: request validation error: no" in response.body


def test_on_a_route_that_speaks_openais_api_a_failure_is_an_event_that_its_clients_understand() -> None:
    rig = Rig(protocol=OPENAI)
    response = rig.play(lambda: rig.send(b"{}"), lambda: rig.answer(FAILED))
    assert response.body == sse.event(b"{}") + openai_event(422, "request validation error: no")


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_by_the_broker_is_a_plain_answer(status: int) -> None:
    rig = Rig()
    response = rig.play(
        lambda: rig.answer(Answer(status, b"too many requests: 5 are being served", speaker=int(Speaker.DOOR)))
    )
    assert (response.status, response.text) == (status, "too many requests: 5 are being served")
    assert response.headers["retry-after"] == "1"


def test_a_workers_own_503_is_an_event() -> None:
    rig = Rig()
    response = rig.play(lambda: rig.answer(Answer(503, b"not today", "", TRAIL)))
    assert (response.status, response.body) == (200, sse.error(503, "not today"))


def test_a_request_that_is_not_submitted_is_refused_plainly() -> None:
    rig = Rig()
    rig.client.reply = lambda _: unavailable()
    response = run(rig.exchange.response())
    assert (response.status, response.headers["retry-after"]) == (503, "7")
    rig.check_left()


def test_the_head_does_not_wait_long_for_the_first_event() -> None:
    rig = Rig()
    response = rig.play(lambda: until(lambda: rig.written == b":\n\n"), lambda: rig.answer(END))
    assert (response.status, response.body) == (200, b":\n\n")


def test_an_idle_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "KEEPALIVE_S", 0.02)
    rig = Rig()
    response = rig.play(
        lambda: rig.send(b"x"), lambda: until(lambda: rig.written.count(b":\n\n") >= 2), lambda: rig.answer(END)
    )
    assert response.body.startswith(b"data: x\n\n:\n\n:\n\n")


def test_a_broker_that_does_not_answer_in_time_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(frontend=FrontendSection(address="127.0.0.1", port=0, timeout=0.2))
    response = rig.play(lambda: rig.send(b"x"))
    assert response.body == b"data: x\n\n" + sse.error(408, "inference timeout")
    assert len(rig.client.cancelled) == 1


def test_a_broker_that_cannot_be_reached_is_named() -> None:
    rig = Rig(frontend=FrontendSection(address="127.0.0.1", port=0, timeout=0.2))
    rig.service.view(connected=False)
    response = rig.play(lambda: rig.send(b"x"))
    assert response.body.endswith(sse.error(503, "service unavailable: the broker cannot be reached"))


@pytest.mark.parametrize("events", [(), (b"one",)])
def test_a_client_that_leaves_cancels_its_request(events: tuple[bytes, ...]) -> None:
    rig = Rig()

    async def scenario() -> None:
        task = asyncio.create_task(rig.exchange.call())
        await until(lambda: rig.client.submitted)
        rig.send(*events)
        await settle()
        rig.exchange.leave()
        await task

    run(scenario())
    assert len(rig.client.cancelled) == 1
    rig.check_left()
    (codes,) = [one for one in rig.service.metrics.families() if one.name == "engine_throughput"]
    assert [sample.labels["code"] for sample in samples(codes)] == ["499"]


def samples(family: Any) -> list[Any]:
    return [sample for sample in family.samples if sample.value]


def test_a_client_that_leaves_is_noticed_while_its_connection_is_full() -> None:
    rig = Rig()

    async def scenario() -> None:
        free = stuck(rig, [])
        task = asyncio.create_task(rig.exchange.call())
        await until(lambda: rig.client.submitted)
        rig.send(b"one")
        await until(lambda: rig.written)
        rig.exchange.leave()
        await until(lambda: rig.client.cancelled)
        free.set()
        await task

    run(scenario())
    rig.check_left()


def test_what_a_client_has_taken_is_reported_and_what_waits_is_not() -> None:
    rig = Rig()
    quarter = b"." * (STREAM_WINDOW // 4)
    rig.play(
        lambda: rig.send(b"small"),
        lambda: until(lambda: rig.written),
        lambda: rig.send(quarter),
        lambda: until(lambda: rig.client.taken),
        lambda: rig.answer(END),
    )
    assert rig.client.taken == {1: len(quarter) + len(b"small") + 2 * EVENT_COST}


def test_a_burst_of_small_events_is_written_together() -> None:
    rig = Rig()
    rig.play(lambda: rig.send(*[b"x"] * 1000), lambda: rig.answer(END))
    assert len(rig.exchange._sent) < 10
    assert rig.written == b"data: x\n\n" * 1000


def stuck(rig: Rig, cuts: list[bool]) -> asyncio.Event:
    """The client's connection takes no more until the event is set; how the server cuts it is noted."""
    free = asyncio.Event()
    send = rig.exchange._send

    async def slow(event: Any) -> None:
        await send(event)
        if event["type"] == "http.response.body":
            await free.wait()

    def cut(at_once: bool) -> None:
        cuts.append(at_once)
        rig.exchange.leave()
        free.set()

    rig.exchange._send = slow  # type: ignore[method-assign]
    rig.exchange._scope["stageline.cut"] = cut
    return free


def test_a_client_that_takes_nothing_for_long_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "STALL_S", 0.05)
    rig = Rig()
    cuts: list[bool] = []

    async def scenario() -> None:
        stuck(rig, cuts)
        task = asyncio.create_task(rig.exchange.call())
        await until(lambda: rig.client.submitted)
        rig.send(b"one")
        await task

    run(scenario())
    assert cuts == [True]
    assert len(rig.client.cancelled) == 1
    rig.check_left()


# --- bodies in pieces ---


def chunked() -> Rig:
    return Rig(Flow.CHUNKS, "image/x-thing")


def test_pieces_are_passed_on_as_they_are() -> None:
    rig = chunked()
    response = rig.play(
        lambda: rig.send(b"\0\n"), lambda: until(lambda: rig.written == b"\0\n"), lambda: rig.send(b"\r"),
        lambda: rig.answer(Answer(200, b"", "image/x-thing", TRAIL)),
    )  # fmt: skip
    assert (response.status, response.headers["content-type"], response.body) == (200, "image/x-thing", b"\0\n\r")
    assert "content-length" not in response.headers


def test_the_head_of_pieces_waits_for_the_first_of_them() -> None:
    rig = chunked()
    response = rig.play(lambda: asyncio.sleep(streams.HEAD_S * 2), lambda: rig.answer(FAILED))
    assert (response.status, response.text) == (422, "request validation error: no")


def test_pieces_that_do_not_come_are_408() -> None:
    rig = Rig(Flow.CHUNKS, frontend=FrontendSection(address="127.0.0.1", port=0, timeout=0.1))
    response = rig.play()
    assert (response.status, response.text) == (408, "inference timeout")
    assert len(rig.client.cancelled) == 1


def test_a_failure_after_the_first_piece_leaves_the_body_without_its_end() -> None:
    rig = chunked()
    cuts: list[bool] = []
    rig.exchange._scope["stageline.cut"] = cuts.append
    response = rig.play(lambda: rig.send(b"begun"), lambda: rig.answer(FAILED))
    assert cuts == [False]
    assert (response.status, response.body) == (200, b"begun")
    assert rig.exchange._sent[-1].get("more_body") is True


@pytest.mark.parametrize(("rig", "answer", "at_once"), [(Rig(), END, False), (chunked(), FAILED, True)])
def test_over_http_1_0_a_stream_ends_with_its_connection(rig: Rig, answer: Answer, at_once: bool) -> None:
    cuts: list[bool] = []
    rig.exchange._scope["http_version"] = "1.0"
    rig.exchange._scope["stageline.cut"] = cuts.append
    rig.play(lambda: rig.send(b"x"), lambda: rig.answer(answer))
    assert cuts == [at_once]  # at once: what is not whole must not look so


# --- what was heard of a stage is old, or nothing was ---


def test_events_of_a_stage_that_was_thought_to_answer_at_once_are_a_stream() -> None:
    rig = Rig(Flow.EVENTS)
    rig.client.current = READY
    response = rig.play(lambda: rig.send(b"x"), lambda: rig.answer(END))
    assert (response.headers["content-type"], response.body) == ("text/event-stream", b"data: x\n\n")


def test_an_answer_at_once_of_a_stage_that_was_thought_to_stream_is_given_whole() -> None:
    rig = Rig(Flow.EVENTS)
    response = rig.play(lambda: rig.answer(Answer(200, b"whole", "text/plain", TRAIL)))
    assert (response.status, response.headers["content-type"], response.body) == (200, "text/plain", b"whole")


def test_and_is_an_event_when_the_stream_has_begun() -> None:
    rig = Rig(Flow.EVENTS)
    response = rig.play(
        lambda: until(lambda: rig.written == b":\n\n"), lambda: rig.answer(Answer(200, b"whole", "text/plain", TRAIL))
    )
    assert response.body == b":\n\ndata: whole\n\n"


def test_a_stream_without_an_event_is_one_all_the_same() -> None:
    rig = Rig(Flow.EVENTS)
    rig.client.current = READY
    response = rig.play(lambda: rig.answer(END))
    assert (response.status, response.headers["content-type"], response.body) == (200, "text/event-stream", b"")


def test_progress_waits_until_it_is_known_whether_it_has_a_place() -> None:
    rig = Rig(Flow.EVENTS)
    rig.client.current = replace(READY, stages=())
    response = rig.play(
        lambda: rig.client.streams[0](StreamEvent(b"halfway", Flow.EVENTS, "")),
        lambda: rig.send(b"x"),
        lambda: rig.answer(END),
    )
    assert response.body == b"data: halfway\n\ndata: x\n\n"
    assert not rig.client.taken


def test_a_stage_that_was_unknown_is_what_its_events_say() -> None:
    rig = Rig(Flow.UNKNOWN)
    rig.client.current = replace(READY, stages=())
    response = rig.play(lambda: rig.send(b"x", flow=Flow.EVENTS), lambda: rig.answer(END))
    assert response.body == b"data: x\n\n"
    assert response.headers["content-type"] == "text/event-stream"


def test_a_stage_that_was_unknown_may_answer_at_once_after_all() -> None:
    rig = Rig(Flow.UNKNOWN)
    service = rig.service

    def learn() -> None:
        rig.client.current = READY
        rig.answer(echo(rig.client.submitted[0]))

    response = rig.play(learn)
    assert (response.status, response.body) == (200, b"1")
    assert response.headers["content-length"] == "1"
    assert service.gate.pending == 0


def test_progress_of_an_earlier_stage_is_an_event_like_any_other() -> None:
    rig = Rig()
    response = rig.play(
        lambda: rig.client.streams[0](StreamEvent(b"halfway", Flow.EVENTS, "")),
        lambda: rig.send(b"x"),
        lambda: rig.answer(END),
    )
    assert response.body == b"data: halfway\n\ndata: x\n\n"


@pytest.mark.parametrize("known", [True, False])
def test_progress_of_an_earlier_stage_has_no_place_in_a_body(known: bool) -> None:
    rig = chunked()
    if not known:
        rig.client.current = replace(READY, stages=())
    response = rig.play(
        lambda: rig.client.streams[0](StreamEvent(b"halfway", Flow.EVENTS, "")),
        lambda: rig.send(b"piece"),
        lambda: rig.answer(Answer(200, b"", "image/x-thing", TRAIL)),
    )
    assert (response.body, response.headers["content-type"]) == (b"piece", "image/x-thing")
    assert rig.client.taken == {1: len(b"halfway") + EVENT_COST}

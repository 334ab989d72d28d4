"""Jobs: what becomes of them, the file they are kept in, and what clients are told."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import READY, FakeClient, Service, run, unavailable
from hypothesis import given
from hypothesis import strategies as st

from engine import config
from engine.config.schema import OIP, PLAIN, FrontendSection
from engine.core.call import Answer, StreamEvent
from engine.core.messages import Flow, Speaker
from engine.core.routing import Route, Topology
from engine.errors import ConfigError
from frontend.idempotency import INLINE_MAX
from frontend.jobs import hooks, rules, runner
from frontend.jobs.rules import LEASE_S, State
from frontend.jobs.runner import Runner
from frontend.jobs.store import Job, Store
from frontend.memo import Memos

ROUTE = "/inference"
ASYNC = ("prefer", "respond-async")
REFUSED = Answer(429, b"full", speaker=int(Speaker.DOOR))
OK = Answer(200, b'"done"', trail=b"")


# --- rules -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(0, 10_000))
def test_a_refusal_is_asked_again_ever_later_and_never_sooner_than_told(refused: int, retry_ms: int) -> None:
    again = rules.asks_again(Answer(503, b"", speaker=int(Speaker.STAGE), retry_ms=retry_ms), refused)
    assert again is not None
    assert again >= retry_ms / 1000
    assert rules.AGAIN_S <= again <= max(rules.AGAIN_MOST_S, retry_ms / 1000)


@pytest.mark.parametrize(
    "answer", [OK, Answer(429, b"", speaker=int(Speaker.WORKER)), Answer(408, b""), Answer(500, b"")]
)
def test_what_a_worker_says_is_the_answer(answer: Answer) -> None:
    assert rules.asks_again(answer, 0) is None


def test_who_is_taken_over() -> None:
    assert rules.taken_over(1, idempotent=True) is None
    assert rules.taken_over(rules.TRIES_MOST, idempotent=True) == rules.GIVEN_UP
    assert rules.taken_over(1, idempotent=False) == rules.UNKNOWN
    assert rules.after(OK) is State.DONE
    assert rules.after(rules.LATE) is State.FAILED


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = Store(path, kept_s=100.0)
    yield made
    made.close()


def job(id: str, *, now: float = 0.0, for_s: float = 1000.0, route: str = ROUTE, what: bytes = b"") -> Job:
    return Job(id, route, b"", what, State.WAITING, now, now + for_s)


def take(store: Store, owner: str, now: float, *, most: int = 10, once: tuple[str, ...] = ()) -> list[str]:
    return [one.id for one in store.take(owner, most, now, once=once)]


def test_a_job_is_taken_once_the_oldest_first_and_its_answer_kept(store: Store, path: Path) -> None:
    for number in range(3):
        store.add(job(f"{number}", now=float(number)), b"body", b"meta")
    other = Store(path, kept_s=100.0)
    assert take(store, "a", 10, most=2) == ["0", "1"]
    assert take(other, "b", 10) == ["2"]
    assert take(store, "a", 10) == []
    assert store.end("a", "0", OK, 11)
    found, answer = other.find("0"), other.answer("0")
    assert found is not None
    assert (found.state, found.started, found.ended, found.expires) == (State.DONE, 10, 11, 111)
    assert answer == OK
    assert other.answer("1") is None
    other.close()


def test_the_file_is_for_its_user_alone_and_of_no_later_version(store: Store, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(sqlite3.DatabaseError, match="later version"):
        Store(path, kept_s=1)


def test_who_does_not_renew_loses_its_jobs_and_only_those(store: Store) -> None:
    store.add(job("a"), b"", b"")
    store.add(job("b"), b"", b"")
    assert take(store, "gone", 0) == ["a", "b"]
    assert store.renew("gone", ["a"], LEASE_S - 1) == []
    assert take(store, "next", LEASE_S) == ["b"]
    assert store.renew("gone", ["a", "b"], LEASE_S) == ["b"]
    assert not store.end("gone", "b", OK, LEASE_S)
    assert store.end("next", "b", OK, LEASE_S)
    assert not store.end("gone", "b", OK, LEASE_S)


def test_what_must_not_be_computed_twice_is_not_taken_over(store: Store) -> None:
    store.add(job("a"), b"", b"")
    assert take(store, "gone", 0, once=(ROUTE,)) == ["a"]
    assert take(store, "next", LEASE_S, once=(ROUTE,)) == []
    assert store.answer("a") == rules.UNKNOWN


def test_what_ends_process_after_process_is_given_up(store: Store) -> None:
    store.add(job("a"), b"", b"")
    for number in range(rules.TRIES_MOST):
        assert take(store, f"{number}", number * LEASE_S) == ["a"]
    assert take(store, "last", rules.TRIES_MOST * LEASE_S) == []
    assert store.answer("a") == rules.GIVEN_UP


def test_what_was_given_back_waits_and_counts_no_try(store: Store) -> None:
    store.add(job("a"), b"", b"")
    for number in range(3 * rules.TRIES_MOST):
        assert take(store, "a", number) == ["a"]
        store.give_back("a", ["a"], number + 0.5)
        assert take(store, "a", number + 0.4) == []


def test_how_often_it_was_refused_whoever_has_it_next_knows(store: Store) -> None:
    store.add(job("a"), b"", b"")
    for number in range(3):
        (taken,) = store.take(f"{number}", 1, number, once=())
        assert taken.refused == number
        store.give_back(f"{number}", ["a"], number, refused=True)


def test_a_key_finds_the_job_that_there_is(store: Store) -> None:
    first = store.add(job("a", what=b"x"), b"1", b"", key=b"k")
    assert store.add(job("b", what=b"y"), b"2", b"", key=b"k") == first
    assert store.find("b") is None


def test_what_is_over_is_forgotten_and_its_place_used_again(store: Store) -> None:
    empty = store.used()
    for number in range(20):
        store.add(job(f"{number}"), bytes(100_000), b"")
    full = store.used()
    assert full > 2_000_000
    ended = take(store, "a", 1, most=10)
    for id in ended:
        assert store.end("a", id, OK, 1)
    taken = take(store, "a", 1, most=20)
    assert (len(ended), len(taken)) == (10, 10)
    for id in taken:
        store.cancel(id, 2)
    assert store.find(taken[0]).state is State.CANCELLED  # type: ignore[union-attr]
    assert store.sweep(50) == 0
    assert store.sweep(103) == 20
    assert store.used() <= empty + 50_000
    assert store.find(ended[0]) is None


def test_who_waits_too_long_is_late(store: Store) -> None:
    store.add(job("a", for_s=5), b"", b"")
    store.add(job("b", for_s=5), b"", b"")
    assert take(store, "x", 5, most=1) == []
    assert store.answer("a") == rules.LATE
    store.sweep(6)
    assert store.answer("b") == rules.LATE


# --- a process -------------------------------------------------------------------------------------------------------


class Process:
    """The application of one process of the frontend, with jobs."""

    def __init__(self, path: Path, client: FakeClient | None = None, *, protocol: str = PLAIN, **frontend: Any) -> None:
        section = FrontendSection(address="127.0.0.1", port=0, jobs=str(path), **frontend)
        self.service = Service(client or FakeClient(), section, protocol)
        assert self.service.metrics.jobs is not None
        self.runner: Runner = self.service.metrics.jobs

    async def ask(self, method: str, path: str, body: bytes = b"", *headers: tuple[str, str]) -> Any:
        from fakes import Exchange

        return await Exchange(self.service.app, method, path, [body], headers=headers).response()

    async def made(self, body: bytes = b'"x"', *headers: tuple[str, str]) -> str:
        answer = await self.ask("POST", ROUTE, body, ASYNC, *headers)
        assert answer.status == 202, answer.text
        assert answer.headers["preference-applied"] == "respond-async"
        told = json.loads(answer.body)
        assert answer.headers["location"] == told["url"] == f"/jobs/{told['id']}"
        return str(told["id"])

    async def over(self, id: str) -> Any:
        answer = await self.ask("GET", f"/jobs/{id}", b"", ("prefer", "wait=10"))
        return json.loads(answer.body)


async def asked(process: Process) -> None:
    """Once the broker has been asked for its job."""
    while not process.service.client.waiting:  # noqa: ASYNC110  # the fake tells nobody
        await asyncio.sleep(0.01)


def started(*processes: Process) -> Callable[[Callable[[], Any]], None]:
    def play(scenario: Callable[[], Any]) -> None:
        async def whole() -> None:
            for process in processes:
                await process.runner.start()
            try:
                await scenario()
            finally:
                for process in processes:
                    await process.runner.close()

        run(whole())

    return play


def test_the_time_that_a_body_asks_for_is_a_jobs_too(tmp_path: Path) -> None:
    """As tritonclient's ``timeout`` does, in microseconds."""
    process = Process(tmp_path / "jobs", protocol=OIP)

    async def scenario() -> None:
        told = []
        for timeout_us in (0, 30_000_000):
            body = json.dumps({"inputs": [], "parameters": {"timeout": timeout_us}}).encode()
            answer = await process.ask("POST", "/v2/models/inference/infer", body, ASYNC)
            assert answer.status == 202, answer.text
            job = json.loads(answer.body)
            began, ends = (datetime.fromisoformat(job[name].replace("Z", "+00:00")) for name in ("created", "expires"))
            told.append((ends - began).total_seconds())
        assert told == pytest.approx([process.service.frontend.jobs_timeout, 30.0], abs=0.01)

    started(process)(scenario)


def test_a_job_is_what_the_request_would_have_been(path: Path) -> None:
    process = Process(path)

    async def scenario() -> None:
        id = await process.made(b'"hello"', ("x-request-id", "mine"))
        told = await process.over(id)
        assert (told["status"], told["route"], told["result"]) == ("done", ROUTE, f"/jobs/{id}/result")
        assert told["created"] <= told["started"] <= told["ended"] < told["expires"]
        result = await process.ask("GET", f"/jobs/{id}/result")
        assert (result.status, result.body, result.headers["content-type"]) == (200, b'"hello"', "application/json")
        (asked,) = process.service.client.submitted
        assert (asked.body, asked.request_id) == (b'"hello"', "mine")
        assert process.runner.finished == {"done": 1}

    started(process)(scenario)


@pytest.mark.parametrize("fields", [(), ("text",)], ids=["whole", "fields"])
@pytest.mark.parametrize("size", [1, INLINE_MAX])
def test_the_cache_of_the_first_stage_knows_a_job_as_it_knows_a_request(
    path: Path, fields: tuple[str, ...], size: int
) -> None:
    process = Process(path)
    paths = [ROUTE, "/second"]
    table = Topology(("first", "second stage"), tuple(Route(one, (0, 1)) for one in paths), {0: fields})
    process.service.gate.memos = Memos(table)
    body = json.dumps({"text": "x" * size}).encode()

    async def scenario() -> None:
        for headers in ((ASYNC,), ()):
            answer = await process.ask("POST", ROUTE, body, ("content-type", "application/json"), *headers)
            if headers:
                await process.over(json.loads(answer.body)["id"])
        job, request = process.service.client.submitted
        assert job.memo == request.memo != b""

    started(process)(scenario)


def test_errors_have_their_status_and_the_form_of_their_route(path: Path) -> None:
    process = Process(path, FakeClient(lambda item: Answer(422, b"request validation error: no")))

    async def scenario() -> None:
        id = await process.made()
        assert (await process.over(id))["status"] == "failed"
        result = await process.ask("GET", f"/jobs/{id}/result", b"", ("accept", "application/problem+json"))
        assert (result.status, json.loads(result.body)["detail"]) == (422, "request validation error: no")

    started(process)(scenario)


def test_what_was_refused_is_asked_again(path: Path) -> None:
    answers: list[Answer | Exception] = [REFUSED, unavailable(), REFUSED, OK]
    answers[1].retry_after_s = 0.01  # type: ignore[union-attr]
    process = Process(path, FakeClient(lambda item: answers.pop(0)))

    async def scenario() -> None:
        assert (await process.over(await process.made()))["status"] == "done"
        assert len(process.service.client.submitted) == 4

    started(process)(scenario)


def test_while_it_is_not_known_its_result_is_asked_for_again(path: Path) -> None:
    process = Process(path, FakeClient(lambda item: None))

    async def scenario() -> None:
        id = await process.made()
        result = await process.ask("GET", f"/jobs/{id}/result")
        assert (result.status, result.headers["retry-after"]) == (202, "1")
        await asked(process)
        assert (await process.ask("DELETE", f"/jobs/{id}")).status == 204
        assert len(process.service.client.cancelled) == 1
        assert (await process.ask("GET", f"/jobs/{id}/result")).status == 410
        assert process.runner.running == 0

    started(process)(scenario)


def test_a_stream_is_kept_whole(path: Path) -> None:
    client = FakeClient(lambda item: None)
    process = Process(path, client)

    async def scenario() -> None:
        id = await process.made()
        await asked(process)
        for word in (b"one", b"two"):
            client.streams[0](StreamEvent(word, Flow.EVENTS, "text/event-stream"))
        client.waiting[0].set_result(Answer(200, b""))
        assert (await process.over(id))["status"] == "done"
        result = await process.ask("GET", f"/jobs/{id}/result")
        assert (result.headers["content-type"], result.body) == ("text/event-stream", b"data: one\n\ndata: two\n\n")
        assert sum(client.taken.values()) > 6  # the window was opened again

    started(process)(scenario)


def test_an_answer_that_is_too_large_fails_its_job(path: Path) -> None:
    client = FakeClient(lambda item: None)
    process = Process(path, client, max_response_size=100)

    async def scenario() -> None:
        id = await process.made()
        await asked(process)
        for _ in range(3):
            client.streams[0](StreamEvent(bytes(60), Flow.CHUNKS, "text/plain"))
        assert (await process.over(id))["status"] == "failed"
        assert client.cancelled == client.waiting

    started(process)(scenario)


def test_who_asks_with_a_key_again_gets_the_same_job(path: Path) -> None:
    process = Process(path)
    key = ("idempotency-key", "k")

    async def scenario() -> None:
        first = await process.made(b'"a"', key)
        assert await process.made(b'"a"', key) == first
        other = await process.ask("POST", ROUTE, b'"b"', ASYNC, key)
        assert other.status == 422
        await process.over(first)
        assert len(process.service.client.submitted) == 1

    started(process)(scenario)


def test_what_came_with_a_token_is_for_whoever_has_it(path: Path) -> None:
    process = Process(path)
    mine, other = ("authorization", "Bearer mine"), ("authorization", "Bearer other")

    async def scenario() -> None:
        id = await process.made(b"1", mine)
        for headers in ([], [other]):
            assert (await process.ask("GET", f"/jobs/{id}", b"", *headers)).status == 404
            assert (await process.ask("GET", f"/jobs/{id}/result", b"", *headers)).status == 404
            assert (await process.ask("DELETE", f"/jobs/{id}", b"", *headers)).status == 404
        assert (await process.ask("GET", f"/jobs/{id}", b"", mine)).status == 200

    started(process)(scenario)


def test_a_full_file_refuses_and_so_does_one_that_cannot_be_written(path: Path) -> None:
    process = Process(path, jobs_bytes=1 << 20)

    async def scenario() -> None:
        full = await process.ask("POST", ROUTE, bytes(1 << 20), ASYNC)
        assert (full.status, full.headers["retry-after"]) == (429, "10")
        await process.runner.ask(lambda store: store._db.execute("DROP TABLE asked"))
        lost = await process.ask("POST", ROUTE, b"1", ASYNC)
        assert (lost.status, lost.text) == (503, "service unavailable: jobs cannot be kept")

    started(process)(scenario)


def test_a_process_that_drains_takes_none_and_gives_back_what_it_has(path: Path) -> None:
    first, second = Process(path, FakeClient(lambda item: None)), Process(path)

    async def scenario() -> None:
        await first.runner.start()
        id = await first.made()
        await asked(first)
        first.service.gate.draining = True
        assert (await first.ask("POST", ROUTE, b"1", ASYNC)).status == 503
        await first.runner.close()
        assert first.service.client.cancelled == first.service.client.waiting
        await second.runner.start()
        assert (await second.over(id))["status"] == "done"
        await second.runner.close()

    run(scenario())


def test_a_job_of_a_process_that_was_killed_is_taken_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOOK_S", 0.02)
    dead, alive = Process(path, FakeClient(lambda item: None)), Process(path)

    async def scenario() -> None:
        alive.service.client.current = replace(READY, stages=())  # or it might take the job first
        id = await dead.made()
        await asked(dead)
        alive.service.client.current = READY
        dead.runner._task.cancel()  # type: ignore[union-attr]  # it says nothing any more
        alive.runner.clock = lambda: dead.runner.clock() + 1.5 * LEASE_S
        assert (await alive.over(id))["status"] == "done"
        dead.service.client.waiting[0].set_result(Answer(200, b'"late"'))
        await asyncio.gather(*dead.runner._ending)
        assert (await alive.ask("GET", f"/jobs/{id}/result")).body == b'"x"'

    started(dead, alive)(scenario)


def test_nothing_holds_on_to_a_job_that_is_over(path: Path) -> None:
    process = Process(path, FakeClient(lambda item: None))

    async def scenario() -> None:
        id = await process.made()
        await asked(process)
        (running,) = process.runner._running.values()
        assert running.limit is not None
        assert not running.limit.cancelled()
        process.service.client.waiting[0].set_result(OK)
        assert running.limit.cancelled()
        assert (await process.over(id))["status"] == "done"

    started(process)(scenario)


def test_a_job_that_comes_while_others_are_looked_for_does_not_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LOOK_S", 1000.0)
    process = Process(path)
    looked = asyncio.Event()
    take, times = process.runner._take, 0

    async def look() -> None:
        nonlocal times
        await take()
        times += 1
        if times == 1:
            process.runner.wake()  # as for a job that came a moment too late to be seen
        else:
            looked.set()

    monkeypatch.setattr(process.runner, "_take", look)

    async def scenario() -> None:
        await looked.wait()

    started(process)(scenario)


def test_without_the_header_or_the_file_there_are_no_jobs(path: Path) -> None:
    process = Process(path)

    async def scenario() -> None:
        assert (await process.ask("POST", ROUTE, b"1")).status == 200
        assert (await process.ask("POST", ROUTE, b"1", ("prefer", "return=minimal"))).status == 200

    started(process)(scenario)
    service = Service()
    assert service.call("POST", ROUTE, b"1", headers=[ASYNC]).status == 200
    assert service.call("GET", "/jobs/x").status == 404


def test_a_route_where_jobs_are_is_refused(tmp_path: Path) -> None:
    text = '[frontend]\njobs = "jobs.db"\n[[stage]]\nname = "a"\nworker = "a:A"\n'
    text += '[[route]]\npath = "/jobs/a"\nstages = ["a"]\n'
    file = tmp_path / "stages.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="/jobs is where jobs are asked for"):
        config.load(file)
    own = '[[endpoint]]\npath = "/jobs/own"\nhandler = "a:f"\n'
    file.write_text(text.replace("/jobs/a", "/a") + own)
    with pytest.raises(ConfigError, match="/jobs is where jobs are asked for"):
        config.load(file)
    file.write_text(text.replace("/jobs/a", "/jobsa"))
    assert config.load(file).frontend.jobs == str(tmp_path / "jobs.db")


# --- webhooks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://a.example/hooks/x", True),
        ("https://a.example/hooks", True),
        ("https://A.example/hooks/x?y=1", True),
        ("https://a.example/hooksx", False),
        ("https://a.example/hooks/../admin", False),
        ("https://a.example/hooks/%2e%2E/admin", False),
        ("https://a.example.evil/hooks/x", False),
        ("https://a.example@evil/hooks/x", False),
        ("https://evil/https://a.example/hooks/", False),
        ("http://a.example/hooks/x", False),
        ("https://a.example:444/hooks/x", False),
        ("https://a.example:x/hooks/x", False),
        ("https://a.example\\@evil/hooks/x", False),
        ("https://a.example/hooks/ x", False),
        ("file:///etc/passwd", False),
        ("http://[::1]:9000/any", True),
        ("", False),
    ],
)
def test_where_a_webhook_may_go(url: str, allowed: bool) -> None:
    assert hooks.is_allowed(url, ("https://a.example/hooks/", "http://[::1]:9000")) is allowed


def test_a_message_is_signed_as_the_standard_has_it() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")  # the standard's own example
    told = hooks.signed(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert told["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert [hooks.again_s(tries) for tries in range(1, 7)] == [*hooks.LATER_S, None]


class Hooked:
    """A server that is told; answers by the next of ``statuses``, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.told: list[tuple[dict[str, str], bytes]] = []
        left = list(statuses)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.told.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(left.pop(0) if left else 200)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_who_asked_for_it_is_told_until_it_is_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOOK_S", 0.02)
    monkeypatch.setattr(hooks, "LATER_S", (0.01, 0.01))
    there = Hooked(503, 302)
    process = Process(path, webhooks=(f"{there.url}/hooks/",))

    async def scenario() -> None:
        id = await process.made(b'"x"', ("x-webhook-url", f"{there.url}/hooks/done"))
        while not process.runner.hooks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert process.runner.hooks == {"told": 1}
        assert len(there.told) == 3
        headers, body = there.told[-1]
        assert json.loads(body) == json.loads((await process.ask("GET", f"/jobs/{id}")).body)
        secret = hooks.secret_of(str(path))
        at = int(headers["webhook-timestamp"])
        assert headers["webhook-id"] == id
        assert headers["webhook-signature"] == hooks.signed(secret, id, at, body)["webhook-signature"]
        refused = await process.ask("POST", ROUTE, b"1", ASYNC, ("x-webhook-url", f"{there.url}/elsewhere"))
        assert refused.status == 400

    try:
        started(process)(scenario)
    finally:
        there.close()
    assert path.with_name("jobs.db.secret").stat().st_mode & 0o777 == 0o600


def test_nobody_is_told_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOOK_S", 0.02)
    monkeypatch.setattr(hooks, "LATER_S", (0.01, 0.01))
    nowhere = "http://127.0.0.1:1/"  # nobody listens
    process = Process(path, webhooks=(nowhere,))

    async def scenario() -> None:
        await process.made(b'"x"', ("x-webhook-url", nowhere))
        while not process.runner.hooks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert process.runner.hooks == {"not told": 1}

    started(process)(scenario)


@pytest.mark.parametrize("url", ["ftp://a/", "https://", "https://a/?x", "a", "https://u@a/"])
def test_a_place_for_webhooks_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    file = tmp_path / "stages.toml"
    file.write_text(f'[frontend]\nwebhooks = "{url}"\n[[stage]]\nname = "a"\nworker = "a:A"\n')
    with pytest.raises(ConfigError, match="a URL like"):
        config.load(file)


def test_webhooks_without_jobs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "stages.toml"
    file.write_text('[frontend]\nwebhooks = "https://a/"\n[[stage]]\nname = "a"\nworker = "a:A"\n')
    with pytest.raises(ConfigError, match="there are none without"):
        config.load(file)

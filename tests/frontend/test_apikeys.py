"""Who may ask: API keys at the gate, over both ways in, and what all processes of a frontend know of their limits."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import Exchange, Response, Service, deployment, echo, run
from leanbench import Bench, settle
from leanbench import run as run_bench
from openapi_spec_validator import validate
from running import PATIENCE_S, Running, frontend, post
from test_same import SERVERS, Seen, look, request

from engine import apikeyfile
from engine.config.schema import OIP, OPENAI, FrontendSection
from engine.core.apikeys import Limits, digest_of
from engine.core.call import Answer
from frontend import errors
from frontend.apikeys import ADMITTED, LOOK_S, Keys
from frontend.board import ROWS, Board
from frontend.errors import Refusal
from frontend.openapi import document

REMOTE = ("192.0.2.7", 1)
NOBODY = Limits()


@contextmanager
def seated(processes: int = 1) -> Iterator[Board]:
    board = Board(processes)
    board.sit()
    try:
        yield board
    finally:
        board.close()


@pytest.fixture
def board() -> Iterator[Board]:
    with seated() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "api.keys")


class Site:
    """A file of keys, and a service behind it."""

    def __init__(self, path: str, board: Board, **limits: Any) -> None:
        self.path = path
        self.token = apikeyfile.add(path, "alice", Limits(**limits))
        self.keys = Keys(path, board)

    def service(self, **about: Any) -> Service:
        made = Service(**about)
        made.gate.keys = made.metrics.keys = self.keys
        return made

    def bench(self, **about: Any) -> Bench:
        section = FrontendSection(api_keys=self.path)
        return Bench(keys=self.keys, api_keys=section.api_keys, **about)


@pytest.fixture
def site(path: str, board: Board) -> Site:
    return Site(path, board)


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


# --- the gate --------------------------------------------------------------------------------------------------------


def test_who_has_a_key_is_served_and_the_service_does_not_see_it(site: Site) -> None:
    one = site.service()
    for headers in (bearer(site.token), [("x-api-key", site.token)], [("Authorization", f"bearer  {site.token}")]):
        answer = one.call("POST", "/inference", b"1", headers=[*headers, ("x-a", "b")])
        assert (answer.status, answer.body) == (200, b"1")
    for item in one.client.submitted:
        assert (b"x-a", b"b") in item.headers
        assert not any(site.token.encode() in value for _, value in item.headers)


def test_of_models_only_whether_they_are_ready_is_told_to_all(site: Site) -> None:
    one = site.service(protocol=OIP)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert one.call("GET", path).status == 200
    for method, path in (
        ("GET", "/v2"),
        ("GET", "/v2/models/inference/ready"),
        ("GET", "/v2/models/stats"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/models/inference/infer"),
        ("POST", "/v2/models/inference/versions/1/infer"),
    ):
        answer = one.call(method, path, b'{"inputs": []}')
        assert (answer.status, list(json.loads(answer.body))) == (401, ["error"])
        assert one.call(method, path, b'{"inputs": []}', headers=bearer(site.token)).status != 401


@pytest.mark.parametrize(
    ("headers", "challenge", "reason"),
    [
        ([], "Bearer", "missing_api_key"),
        (bearer("sl-wrong"), 'Bearer error="invalid_token"', "invalid_api_key"),
        ([("authorization", "Basic YTpi")], 'Bearer error="invalid_token"', "invalid_api_key"),
        ([("x-api-key", "é")], 'Bearer error="invalid_token"', "invalid_api_key"),
        (bearer(""), 'Bearer error="invalid_token"', "invalid_api_key"),
    ],
)
def test_who_has_none_is_told_so_before_the_body_is_read(
    site: Site, headers: list[tuple[str, str]], challenge: str, reason: str
) -> None:
    one = site.service()
    exchange = Exchange(one.app, "POST", "/inference", [b"x"] * 10, headers=headers, length=1 << 20)
    answer: Response = run(exchange.response())
    assert (answer.status, answer.headers["www-authenticate"]) == (401, challenge)
    assert exchange.received == 0
    assert not one.client.submitted
    assert one.metrics._rejections == {reason: 1}


@pytest.mark.parametrize(
    ("target", "status", "local"),
    [
        ("/", 200, 200),
        ("/healthz", 200, 200),
        ("/readyz", 200, 200),
        ("/metrics", 401, 200),
        ("/openapi/metadata.json", 401, 200),
        ("/openapi/swagger/", 401, 200),
        ("/ui/", 401, 200),
        ("/ui/data", 401, 200),
        ("/uix", 401, 401),
        ("/nothing", 401, 401),
        ("/models", 401, 401),
        ("/inference", 401, 401),
    ],
)
def test_what_is_open_to_whom(site: Site, target: str, status: int, local: int) -> None:
    one = site.service(protocol=OPENAI, frontend=FrontendSection(ui="all"))
    local_host = [("host", "localhost")]
    assert one.call("GET", target, peer=REMOTE).status == status
    assert one.call("GET", target, headers=local_host).status == local
    known = one.call("GET", target, headers=bearer(site.token), peer=REMOTE).status
    assert known == {"/inference": 405, "/nothing": 404, "/uix": 404}.get(target, 200)


def test_a_refusal_has_the_form_of_the_route(site: Site) -> None:
    answer = site.service(protocol=OPENAI).call("POST", "/inference", b"1")
    assert json.loads(answer.body)["error"] == {
        "message": "unauthorized: an API key is needed, as `authorization: Bearer KEY`",
        "type": "authentication_error",
        "param": None,
        "code": "missing_api_key",
    }


def test_more_than_its_rate_is_429_and_says_when_to_come_again(path: str, board: Board) -> None:
    site = Site(path, board, rate=0.5, burst=2)
    one = site.service()
    statuses = [one.call("POST", "/inference", b"1", headers=bearer(site.token)) for _ in range(3)]
    assert [answer.status for answer in statuses] == [200, 200, 429]
    assert statuses[2].headers["retry-after"] == "2"
    assert 1900 < int(statuses[2].headers["retry-after-ms"]) <= 2000
    assert site.keys.outcomes() == [
        ({"key": "alice", "outcome": ADMITTED}, 2),
        ({"key": "alice", "outcome": "rate_limit_exceeded"}, 1),
    ]
    (family,) = [one for one in one.metrics.families() if one.name == "engine_api_key_requests"]
    assert [(sample.labels["key"], sample.value) for sample in family.samples] == [("alice", 2), ("alice", 1)]


def test_more_at_a_time_than_its_limit_is_429_until_one_is_over(path: str, board: Board) -> None:
    site = Site(path, board, concurrent=1)
    one = site.service()
    one.client.reply = lambda item: None

    async def scenario() -> tuple[int, int]:
        first = asyncio.create_task(
            Exchange(one.app, "POST", "/inference", [b"1"], headers=bearer(site.token)).response()
        )
        await settle()
        second = await Exchange(one.app, "POST", "/inference", [b"2"], headers=bearer(site.token)).response()
        one.client.waiting[0].set_result(Answer(200, b"1"))
        return (await first).status, second.status

    assert run(scenario()) == (200, 429)
    one.client.reply = echo
    assert one.call("POST", "/inference", b"3", headers=bearer(site.token)).status == 200


def test_the_document_says_how_to_send_a_key(site: Site) -> None:
    found = document(deployment(FrontendSection(api_keys=site.path)), {})
    validate(found)
    assert found["components"]["securitySchemes"] == {"apiKey": {"type": "http", "scheme": "bearer"}}
    assert found["paths"]["/inference"]["post"]["security"] == [{"apiKey": []}]
    assert "401" in found["paths"]["/inference"]["post"]["responses"]
    assert "security" not in found["paths"]["/metrics"]["get"]
    assert "securitySchemes" not in document(deployment(), {})["components"]


# --- the quick path --------------------------------------------------------------------------------------------------


def test_a_key_is_good_in_place_and_its_requests_are_counted_until_their_answers(path: str, board: Board) -> None:
    async def scenario() -> None:
        site = Site(path, board, concurrent=2)
        bench = site.bench()
        (key,) = site.keys._by_digest.values()
        for _ in range(5):
            bench.feed(post(b"1", f"authorization: Bearer {site.token}"))
            await settle()
        assert bench.replies == [(200, b"1")] * 5
        assert not bench.handed
        assert key.outcomes == {ADMITTED: 5}
        bench.client.reply = lambda item: None
        bench.feed(post(b"1", f"authorization: Bearer {site.token}"))
        assert counted(board, key.row) == 1
        bench.connection.connection_lost(None)
        assert counted(board, key.row) == 0
        assert (bench.gate.pending, bench.gate.held) == (0, 0)
        assert not any(site.token.encode() in value for item in bench.client.submitted for _, value in item.headers)

    run_bench(scenario())


def test_its_limits_hold_in_place(path: str, board: Board) -> None:
    async def scenario() -> None:
        site = Site(path, board, rate=0.001, burst=2)
        bench = site.bench()
        bench.feed(*[post(b"1", f"authorization: Bearer {site.token}")] * 3)
        await settle()
        assert [status for status, _ in bench.replies] == [200, 200, 429]
        assert not bench.handed
        (key,) = site.keys._by_digest.values()
        assert counted(board, key.row) == 0

    run_bench(scenario())


@pytest.mark.parametrize("spoil", ["capacity", "draining"])
def test_who_is_refused_for_another_reason_counts_no_more(site: Site, board: Board, spoil: str) -> None:
    async def scenario() -> None:
        bench = site.bench()
        setattr(bench.gate, {"capacity": "_capacity", "draining": "draining"}[spoil], spoil == "draining")
        bench.feed(post(b"1", f"authorization: Bearer {site.token}"))
        await settle()
        assert bench.replies[0][0] in (429, 503)
        (key,) = site.keys._by_digest.values()
        assert counted(board, key.row) == 0

    run_bench(scenario())


def test_a_key_that_is_taken_away_is_refused_also_on_a_connection_that_has_sent_it(site: Site) -> None:
    async def scenario() -> None:
        bench = site.bench()
        sent = post(b"1", f"authorization: Bearer {site.token}")
        bench.feed(sent)
        await settle()
        apikeyfile.remove(site.path, "alice")
        site.keys.look(1e9)
        bench.feed(sent)
        await settle()
        assert [status for status, _ in bench.replies] == [200, 401]
        bench.feed(sent[:-1])  # and before its body is whole
        assert bench.handed == [sent[:-1]]

    run_bench(scenario())


def counted(board: Board, row: int) -> int:
    first = board._cell(row, 0)
    return sum(board._counts[first : first + board._seats])


# --- the file --------------------------------------------------------------------------------------------------------


def test_what_changes_in_the_file_counts_and_what_is_under_way_stays_counted(site: Site, board: Board) -> None:
    credentials = site.token.encode()
    key = site.keys.enter(credentials, 1.0)
    other = apikeyfile.add(site.path, "bob", Limits(concurrent=1))
    text = Path(site.path).read_text().replace("alice ", "anna ")
    apikeyfile._write(
        site.path, "\n".join(line + " concurrent=1" * line.startswith("anna") for line in text.split("\n"))
    )
    site.keys.look(10.0)
    assert (key.name, key.limits.concurrent) == ("anna", 1)
    assert site.keys.find(other.encode()) is not None
    with pytest.raises(Refusal) as caught:
        site.keys.enter(credentials, 11.0)
    assert caught.value.problem is errors.KEY_CONCURRENCY
    site.keys.leave(key)
    assert site.keys.enter(credentials, 11.0) is key


def test_a_file_that_is_spoilt_changes_nothing_and_is_told_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.keys.look(10.0)
    Path(site.path).write_text(f"alice {site.token}\n")  # somebody wrote the token where its hash belongs
    with caplog.at_level(logging.WARNING):
        for instant in (20.0, 30.0, 40.0):
            site.keys.look(instant)
    assert site.keys.find(site.token.encode()) is not None
    assert len(caplog.records) == 1
    assert "not taken" in caplog.text
    assert site.token not in caplog.text
    os.unlink(site.path)
    site.keys.look(50.0)
    assert site.keys.find(site.token.encode()) is not None
    apikeyfile.add(site.path, "bob", NOBODY)
    site.keys.look(50.0 + LOOK_S / 2)  # not every time
    assert site.keys.find(site.token.encode()) is not None
    site.keys.look(60.0)
    assert site.keys.find(site.token.encode()) is None


def test_a_hash_of_which_only_the_beginning_is_right_is_no_key(site: Site) -> None:
    (key,) = site.keys._by_digest.values()
    key.digest = bytes(32)
    assert site.keys.find(site.token.encode()) is None


# --- the board -------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], object], *, wait: bool = True) -> int:
    """Run it in a forked process, which then waits for the end of its life or ends; its id."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reading)
            work()
            os.write(writing, b".")
            if not wait:
                os._exit(0)
            os.close(writing)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b".", "the child failed"
    os.close(reading)
    return pid


def end(pid: int) -> None:
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def test_a_limit_is_one_for_all_processes_and_who_is_killed_leaves_nothing(board: Board) -> None:
    row = board.row(digest_of(b"a"), set())
    limits = Limits(concurrent=3)

    def work() -> None:
        board.sit()
        assert board.enter(row, limits, 1.0) == board.enter(row, limits, 1.0) == 0

    pid = in_child(work)
    try:
        assert board.enter(row, limits, 1.0) == 0
        assert board.enter(row, limits, 1.0) == -1
        board.sweep()  # it lives
        assert board.enter(row, limits, 1.0) == -1
    finally:
        end(pid)
    board.sweep()
    assert board.enter(row, limits, 1.0) == board.enter(row, limits, 1.0) == 0
    assert board.enter(row, limits, 1.0) == -1


def test_a_rate_is_one_for_all_processes(board: Board) -> None:
    row = board.row(digest_of(b"a"), set())
    limits = Limits(rate=1, burst=1000)
    pids = [
        in_child(lambda: (board.sit(), [board.enter(row, limits, 5.0) for _ in range(250)]), wait=False)
        for _ in range(3)
    ]
    for pid in pids:
        os.waitpid(pid, 0)
    assert [board.enter(row, limits, 5.0) for _ in range(250)] == [0.0] * 250
    assert board.enter(row, limits, 5.0) == pytest.approx(1.0)


def test_who_is_stopped_with_a_row_in_its_hand_stops_nobody(board: Board) -> None:
    row = board.row(digest_of(b"a"), set())

    def work() -> None:
        board.sit()
        board._hold(row)

    pid = in_child(work)
    try:
        assert board.enter(row, Limits(rate=1), 5.0) == 0
    finally:
        end(pid)


def test_each_process_has_a_seat_and_takes_that_of_a_dead_one_clean(board: Board) -> None:
    row = board.row(digest_of(b"a"), set())
    pid = in_child(lambda: (board.sit(), board.enter(row, NOBODY, 1.0)))
    end(pid)
    assert counted(board, row) == 1
    pid = in_child(board.sit)
    try:
        assert counted(board, row) == 0
    finally:
        end(pid)


def test_keys_have_rows_of_their_own_and_those_of_removed_ones_are_used_again(board: Board) -> None:
    digests = [digest_of(b"%d" % number) for number in range(ROWS)]
    rows = {board.row(digest, set()) for digest in digests}
    assert len(rows) == ROWS
    assert board.row(digests[7], set()) == board.row(digests[7], rows)
    kept = board.row(digests[7], set())
    board.enter(kept, Limits(rate=1), 5.0)
    taken = board.row(digest_of(b"new"), rows - {board.row(digests[3], rows)})
    assert taken == board.row(digest_of(b"new"), rows)
    assert taken != kept


# --- both ways in ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Running], str]]:
    path = str(tmp_path_factory.mktemp("keys") / "api.keys")
    token = apikeyfile.add(path, "alice", NOBODY)
    with ExitStack() as stack:
        yield (
            [
                stack.enter_context(frontend(tmp_path_factory.mktemp(server), server=server, api_keys=path, tells=True))
                for server in SERVERS
            ],
            token,
        )


LENGTH = "content-length: 3"


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (request(LENGTH), [401]),
        (request(LENGTH, "authorization: Bearer TOKEN"), [200]),
        (request(LENGTH, "x-api-key: TOKEN"), [200]),
        (request(LENGTH, "authorization: Bearer TOKEN", "authorization: Bearer TOKEN"), [400]),
        (request(LENGTH, "authorization: Bearer nope"), [401]),
        (request(LENGTH, "authorization: Bearer nope", "x-api-key: TOKEN"), [401]),
        (request("content-length: 99999999", body=b""), [401]),
        (request(LENGTH, "expect: 100-continue"), [401]),
        (request("transfer-encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"), [401]),
        (request(LENGTH, "content-encoding: br"), [401]),
        (request(LENGTH, line="PUT /inference HTTP/1.1"), [401]),
        (request(LENGTH, line="POST /nothing HTTP/1.1"), [401]),
        (request(line="GET /readyz HTTP/1.1", body=b""), [200]),
        (request(line="GET /metrics HTTP/1.1", body=b""), [401]),  # its host is not this machine's
    ],
)
def test_both_servers_ask_for_a_key_alike(keyed: tuple[list[Running], str], data: bytes, statuses: list[int]) -> None:
    servers, token = keyed
    data = data.replace(b"TOKEN", token.encode())
    probe = b"POST /second HTTP/1.1\r\nhost: probe\r\ncontent-length: 5\r\nx-api-key: %b\r\n\r\nprobe" % token.encode()
    seen: list[Seen] = [
        look(running, pieces)
        for running in servers
        for pieces in ([data + probe], [data[: len(data) // 2], data[len(data) // 2 :] + probe])
    ]
    assert all(one.agrees(other) for one in seen for other in seen), seen
    assert [status for status, _, _ in max(seen, key=lambda one: len(one.answers)).answers] == statuses
    assert token not in json.dumps([one.answers for one in seen], default=str)


def test_a_token_is_in_no_log(keyed: tuple[list[Running], str]) -> None:
    servers, token = keyed
    for running in servers:
        with socket.create_connection(running.address, timeout=PATIENCE_S) as sock:
            sock.sendall(post(b"1", f"authorization: Bearer {token}", "connection: close"))
            while sock.recv(65536):
                pass
        assert token not in running.text()

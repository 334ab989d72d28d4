"""Streams as clients see them, through real processes: server-sent events, and bodies in pieces."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from harness import SERVICES, Deployed, altered, deployed, wait_for

ERROR = "event: error\ndata: SSE inference error: "


@pytest.fixture(scope="module", params=["lean", "asgi"])
def streams(request: pytest.FixtureRequest) -> Iterator[Deployed]:
    # With compression on, whoever accepts it is served by the other: turned off, so that this one serves all.
    keys = {"server": f'"{request.param}"', "compression": "false" if request.param == "lean" else "true"}
    with altered(SERVICES / "streams.toml", **keys) as file, deployed(file) as running:
        yield running


@pytest.fixture
def client(streams: Deployed) -> Iterator[httpx.Client]:
    with streams.client() as made:
        yield made


@pytest.fixture
def own() -> Iterator[httpx.Client]:
    """Of a deployment for this test alone: one that replaces workers does not end as it began."""
    with deployed(SERVICES / "streams.toml") as running, running.client() as made:
        yield made


def without_comments(text: str) -> str:
    """The stream without its keep-alives: when the head leaves before the first event depends on the machine's load."""
    return "".join(block + "\n\n" for block in text.split("\n\n")[:-1] if block != ":")


def told(client: httpx.Client, **what: Any) -> str:
    answer = client.post("/tell", json={"events": [], **what})
    assert answer.status_code == 200
    return without_comments(answer.text)


@contextmanager
def begun(client: httpx.Client, path: str, **what: Any) -> Iterator[Iterator[str]]:
    """A stream, and its lines as they come."""
    with client.stream("POST", path, json=what) as answer:
        assert answer.status_code == 200, answer.read()
        yield (line for line in answer.iter_lines() if line and line != ":")


def test_a_stream_is_made_of_events(client: httpx.Client) -> None:
    answer = client.post("/tell", json={"events": ["hello", "two\nlines", "a\r\nb\rc", "", " lead"]})
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-encoding" not in answer.headers  # although compression is on, and httpx takes gzip
    assert without_comments(answer.text) == (
        "data: hello\n\ndata: two\ndata: lines\n\ndata: a\ndata: b\ndata: c\n\ndata: \n\ndata:  lead\n\n"
    )


def test_the_first_event_leaves_before_forward_returns(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with begun(client, "/tell", events=["now"], do="wait", gate=str(gate)) as lines:
        assert next(lines) == "data: now"
        gate.touch()
        assert list(lines) == []


def test_where_either_may_be_each_request_is_answered_as_it_asks(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with begun(client, "/either", events=["now"], do="wait", gate=str(gate)) as lines:
        assert next(lines) == "data: now"
        gate.touch()
        assert list(lines) == []  # what forward returned is dropped
    late = client.post("/either", json={"events": [], "pause": 0.3})  # longer than a stream's head is kept back
    assert (late.status_code, late.headers["content-type"], late.json()) == (200, "application/json", {"whole": []})
    failed = client.post("/either", json={"events": [], "do": "fail"})
    assert (failed.status_code, failed.text.split(":")[-1]) == (422, " not that")
    told = client.post("/either", json={"events": ["one"], "do": "fail", "pause": 0.3})
    assert told.headers["content-type"] == "text/event-stream"
    assert (
        without_comments(told.text)
        == f"data: one\n\n{ERROR}422: Unprocessable Content: request validation error: not that\n\n"
    )
    tries = [client.post("/either", json={"events": []}, headers={"idempotency-key": f"k-{tmp_path}"}) for _ in "12"]
    assert [one.headers.get("idempotent-replayed") for one in tries] == [None, "true"]  # whole answers are kept
    document = client.get("/openapi/metadata.json").json()["paths"]["/either"]["post"]["responses"]["200"]
    assert set(document["content"]) == {"application/json", "text/event-stream"}


@pytest.mark.parametrize(
    ("do", "events", "end"),
    [
        ("fail early", "", "422: Unprocessable Content: request validation error: no such - thing"),
        ("fail", "data: x\n\n", "422: Unprocessable Content: request validation error: not that"),
        ("break", "data: x\n\n", "500: Internal Server Error: inference internal error"),
        ("sleep", "data: x\n\n", "408: Request Timeout: inference timeout"),
    ],
)
def test_a_failure_is_the_last_event(client: httpx.Client, do: str, events: str, end: str) -> None:
    assert told(client, events=["x"], do=do) == f"{events}{ERROR}{end}\n\n"


def test_malformed_input_is_an_event_too(client: httpx.Client) -> None:
    answer = client.post("/tell", content=b"{")
    assert answer.status_code == 200
    assert without_comments(answer.text).startswith(f"{ERROR}400: Bad Request: decoding error")


def test_the_deadline_of_the_request_ends_its_stream(client: httpx.Client) -> None:
    headers = {"x-request-timeout-ms": "400"}
    answer = client.post("/tell", json={"events": ["x"], "do": "sleep"}, headers=headers)
    assert without_comments(answer.text) == f"data: x\n\n{ERROR}408: Request Timeout: inference timeout\n\n"


def test_a_killed_worker_ends_its_stream_and_the_request_is_not_computed_again(
    own: httpx.Client, tmp_path: Path
) -> None:
    client = own
    log, gate = tmp_path / "log", tmp_path / "gate"
    with begun(client, "/tell", events=["x"], do="die", gate=str(gate), log=str(log)) as lines:
        assert next(lines) == "data: x"
        gate.touch()
        rest = list(lines)
    assert rest == [
        "event: error",
        "data: SSE inference error: 500: Internal Server Error: "
        "internal error: a worker of stage tell died while it streamed this request",
    ]
    assert log.read_text() == "1\n"
    assert told(client, events=["again"]) == "data: again\n\n"


def test_a_worker_that_dies_before_its_first_event_is_replaced_in_silence(own: httpx.Client, tmp_path: Path) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    gate.touch()
    answer = told(own, do="die", gate=str(gate), log=str(log))
    assert answer.startswith(f"{ERROR}422: Unprocessable Content: workers of stage tell died 3 times")
    assert log.read_text() == "1\n2\n3\n"


def test_a_client_that_leaves_stops_the_work(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with begun(client, "/tell", events=["x"], do="until left", gate=str(gate)) as lines:
        assert next(lines) == "data: x"
    assert wait_for("the end of forward", lambda: gate.exists() and gate.read_text()) == "left"


def together(client: httpx.Client, *requests: dict[str, Any]) -> list[str]:
    """The answers to requests that make one batch."""
    answers: list[str] = [""] * len(requests)

    def ask(index: int) -> None:
        answers[index] = without_comments(client.post("/crowd", json=requests[index]).text)

    threads = [threading.Thread(target=ask, args=[index]) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def test_every_stream_of_a_batch_gets_its_own_events(client: httpx.Client) -> None:
    assert together(client, {"name": "a"}, {"name": "b"}) == ["data: a 2\n\n", "data: b 2\n\n"]


def test_one_failure_in_a_batch_ends_one_stream(client: httpx.Client) -> None:
    failed, other = together(client, {"name": "a", "do": "fail"}, {"name": "b"})
    assert failed == (f"data: a 2\n\n{ERROR}422: Unprocessable Content: request validation error: not a\n\n")
    assert other == "data: b 2\n\n"


def test_a_batch_that_has_begun_to_stream_is_not_computed_again_and_tells_nobody_whose_error_it_was(
    client: httpx.Client,
) -> None:
    end = f"{ERROR}500: Internal Server Error: internal error: forward failed after it had begun to stream\n\n"
    assert together(client, {"name": "a", "do": "raise"}, {"name": "b"}) == [
        f"data: a 2\n\n{end}",
        f"data: b 2\n\n{end}",
    ]


def raw(streams: Deployed, path: str, **what: Any) -> socket.socket:
    """A client that has asked and reads nothing; its own buffer is small."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(30)
    sock.connect(("127.0.0.1", urlsplit(streams.url).port or 0))
    body = json.dumps(what).encode()
    sock.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body))
    return sock


def read_all(sock: socket.socket) -> bytes:
    """What it gets until the end of its body; the connection is not kept."""
    got = bytearray()
    while not got.endswith(b"\r\n0\r\n\r\n"):
        piece = sock.recv(1 << 20)
        if not piece:
            break
        got += piece
    return bytes(got)


def test_a_client_that_does_not_read_loses_its_own_stream_only_and_costs_little(
    streams: Deployed, client: httpx.Client
) -> None:
    flood = 3000  # events of 16 KiB: 48 MiB, far more than sockets can hold
    passing = [
        *streams.processes("frontend"),
        *streams.processes("broker"),
        *streams.processes("worker", stage="crowd"),
    ]

    def resident() -> int:
        return sum(process.memory_info().rss for process in passing if process.status() != psutil.STATUS_ZOMBIE)

    before = resident()
    with raw(streams, "/crowd", name="slow", flood=flood) as slow:
        with begun(client, "/crowd", name="quick", flood=flood) as lines:
            assert next(lines) == "data: quick 2"
            numbers = [int(line.removeprefix("data: ").rstrip(".")) for line in lines]
        assert numbers == list(range(flood))
        assert resident() - before < 16 << 20
        end = read_all(slow)
    assert b"data: slow 2\n\n" in end
    assert b"SSE inference error: 408: Request Timeout: the client reads too slowly\n\n" in end[-200:]
    assert len(end) < flood * 16 * 1024 // 2


def collect(got: list[bytes], answer: httpx.Response) -> None:
    for piece in answer.iter_raw():
        got.append(piece)


# --- bodies in pieces ------------------------------------------------------------------------------------------------


def test_pieces_leave_before_forward_returns(client: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with client.stream("POST", "/pieces", json={"gate": str(gate)}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain"
        assert "content-length" not in answer.headers
        pieces = answer.iter_raw()
        assert next(pieces) == b"0\n"
        gate.touch()
        assert b"".join(pieces) == b"1\n2\n"


def test_no_pieces_are_an_empty_body(client: httpx.Client) -> None:
    answer = client.post("/pieces", json={"count": 0})
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"", "text/plain")


def test_an_error_before_the_first_piece_is_answered_plainly(client: httpx.Client) -> None:
    answer = client.post("/pieces", json={"do": "fail early"})
    assert (answer.status_code, answer.text) == (422, "request validation error: not even begun")


@pytest.mark.parametrize("http2", [False, True])
def test_an_error_after_it_cuts_the_body(streams: Deployed, http2: bool) -> None:
    with streams.client(http1=not http2, http2=http2) as client:
        got: list[bytes] = []
        with client.stream("POST", "/pieces", json={"do": "fail"}) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                collect(got, answer)
        assert b"".join(got) == b"0\n1\n2\n"
        assert client.post("/pieces", json={}).text == "0\n1\n2\n"


def test_a_client_that_reads_late_gets_all_of_it(streams: Deployed, client: httpx.Client) -> None:
    """It holds its own worker back, and not the other one."""
    with raw(streams, "/pieces", count=1500, size=16 * 1024) as slow:
        assert client.post("/pieces", json={}).text == "0\n1\n2\n"
        got = read_all(slow)
    assert got.count(b"\n1499\n") == 0  # the last line stands behind dots
    assert got.count(b".") > 1500 * 16_000
    assert got.endswith(b".1499\n\r\n0\r\n\r\n")


def test_a_client_that_leaves_closes_the_generator(client: httpx.Client, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    what = {"count": 100_000, "size": 16 * 1024, "closed": str(closed)}
    with client.stream("POST", "/pieces", json=what) as answer:
        next(answer.iter_raw())
    assert wait_for("the end of forward", lambda: closed.exists() and closed.read_text()) == "True"


# --- the deployment around them --------------------------------------------------------------------------------------


def test_streams_over_http2(streams: Deployed) -> None:
    with streams.client(http1=False, http2=True) as client:
        answer = client.post("/tell", json={"events": ["x"], "do": "fail"})
    assert answer.http_version == "HTTP/2"
    assert without_comments(answer.text).startswith("data: x\n\nevent: error\n")


def test_the_metrics_tell_how_streams_ended(streams: Deployed, client: httpx.Client) -> None:
    def count(code: int) -> float:
        return sum(
            value
            for name, value in streams.metrics().items()
            if name.startswith("engine_throughput") and f'code="{code}"' in name and "/tell" in name
        )

    good, bad = count(200), count(422)
    told(client, events=["x"])
    told(client, events=["x"], do="fail")
    wait_for("the counts", lambda: (count(200), count(422)) == (good + 1, bad + 1))


def test_a_lost_broker_ends_streams_that_have_begun(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with deployed(SERVICES / "streams.toml") as running, running.client() as client:
        with begun(client, "/tell", events=["x"], do="wait", gate=str(gate)) as lines:
            assert next(lines) == "data: x"
            (broker,) = running.processes("broker")
            broker.kill()
            assert list(lines) == [
                "event: error",
                "data: SSE inference error: 500: Internal Server Error: "
                "internal error: the broker was lost while this request was streamed",
            ]
        gate.touch()
        wait_for("the new broker", lambda: client.get("/readyz").status_code == 200)
        assert told(client, events=["again"]) == "data: again\n\n"

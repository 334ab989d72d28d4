"""``engine bench``: answers that are read, figures, the search, the comparison, and the client before a server of its
own. What it finds on a deployment is in tests/e2e."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import cli
from engine.bench import payloads, target, told, versus
from engine.bench.figures import CUT, LATE, Figures, Outcome, Sample, figures
from engine.bench.highest import Found, highest
from engine.bench.http import Answer, BadAnswer, request
from engine.bench.load import Client
from engine.bench.target import Target
from engine.errors import ConfigError
from engine.exitcodes import ExitCode

# --- answers ---------------------------------------------------------------------------------------------------------

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nx: y\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + PLAIN


@pytest.mark.parametrize("data", [PLAIN, CHUNKED, EARLY], ids=["plain", "chunked", "early hints"])
def test_an_answer_is_whole_at_its_end_however_it_is_cut(data: bytes) -> None:
    for cut in range(1, len(data)):
        answer = Answer()
        assert not answer.feed(data[:cut])
        assert answer.feed(data[cut:])
        assert (answer.status, answer.nbytes, answer.begun, answer.closes) == (200, 5, b"hello", False)


@pytest.mark.parametrize(
    ("head", "method", "closes"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", "POST", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n", "HEAD", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", "GET", True),
    ],
)
def test_an_answer_without_a_body_ends_with_its_head(head: bytes, method: str, closes: bool) -> None:
    answer = Answer(method)
    assert answer.feed(head)
    assert answer.closes is closes


def test_an_answer_of_no_length_ends_with_its_connection() -> None:
    answer = Answer()
    assert not answer.feed(b"HTTP/1.1 200 OK\r\n\r\nhel")
    assert answer.ended()
    cut = Answer()
    cut.feed(PLAIN[:-1])
    assert not cut.ended()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        PLAIN + b"more",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (1 << 17),
    ],
)
def test_what_is_no_answer_is_none(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        Answer().feed(data)


# --- figures ---------------------------------------------------------------------------------------------------------


def sample(at: float, took_s: float = 0.01, status: int = 200, lag_s: float = 0.0) -> Sample:
    return Sample(at, lag_s, took_s, took_s, status, 10)


def made(samples: list[Sample], slo_s: float = 0.0, rate: float = 10.0) -> Figures:
    return figures(Outcome(samples, {429: "too many"}, 1, 0), rate, 1.0, 11.0, slo_s)


def test_a_warm_up_does_not_count_and_latencies_are_those_of_answers() -> None:
    found = made([sample(0.5, 9.0), *(sample(1 + n / 10, (n + 1) / 1000) for n in range(100)), sample(10.9, 0.0, 429)])
    assert (found.sent, found.answered, found.good) == (101, 100, 100)
    assert found.statuses == {"200": 100, "429": 1}
    assert found.wrong == {"429": "too many"}
    assert (found.p50_ms, found.p99_ms, found.max_ms) == pytest.approx((50, 99, 100))
    assert found.curve_ms[-1] == pytest.approx(100)
    assert found.throughput == 10.0


def test_rates_count_what_came_in_the_time_that_is_looked_at() -> None:
    """Of a service that can do 5/s and is asked 10 times a second every answer comes, late."""
    found = made([sample(1 + n / 10, n / 10) for n in range(100)], 1.0)
    assert (found.sent, found.answered, found.good) == (100, 100, 11)
    assert found.throughput == pytest.approx(5.0)
    assert found.goodput == pytest.approx(1.1)


def test_good_is_what_is_answered_within_the_goal() -> None:
    found = made(
        [sample(1, 0.05), sample(2, 0.2), sample(3, 0.01, 503), sample(4, 0.01, CUT), sample(5, 30, LATE)], 0.1
    )
    assert (found.good, found.share, found.goodput) == (1, 0.2, 0.1)
    assert found.statuses == {"no answer": 1, "cut off": 1, "200": 2, "503": 1}


@pytest.mark.parametrize(
    ("lags", "behind", "disturbed"),
    [([0.0] * 100, False, False), ([0.0] * 95 + [0.05] * 5, False, True), ([0.05] * 100, True, True)],
)
def test_a_client_that_cannot_keep_up_is_noticed(lags: list[float], behind: bool, disturbed: bool) -> None:
    found = made([sample(1 + n / 100, 0.1, lag_s=lag) for n, lag in enumerate(lags)])
    assert (found.is_behind, found.is_disturbed) == (behind, disturbed)


def test_of_nothing_there_are_no_latencies() -> None:
    found = made([sample(1, 0.01, 500)])
    assert (found.answered, found.p99_ms, found.curve_ms) == (0, 0.0, [])
    assert "1 of 1 were not answered: 1 times 500" in told.table(once(found))


# --- the highest rate ------------------------------------------------------------------------------------------------


def searched(
    share: Callable[[float], float], *, lag_ms: Callable[[float], float] = lambda rate: 0.0
) -> tuple[Found, int]:
    """Against a service of which so much is good at a rate."""
    whole = made([sample(1.0 + n / 100) for n in range(100)])
    tries = highest(16.0, 0.99)
    step = next(tries)
    count = 0
    try:
        while True:
            count += 1
            good = round(share(step.rate) * 100)
            step = tries.send(replace(whole, rate=step.rate, good=good, lag_p90_ms=lag_ms(step.rate)))
    except StopIteration as end:
        found: Found = end.value
        return found, count


@pytest.mark.parametrize("limit", [0.3, 7.0, 16.0, 333.0, 20_000.0])
def test_the_highest_rate_is_found(limit: float) -> None:
    found, count = searched(lambda rate: 1.0 if rate <= limit else 0.5)
    assert found.figures is not None
    assert limit / 1.06 <= found.figures.rate <= limit
    assert found.missed is not None
    assert limit < found.missed.rate
    assert count < 40


def test_a_miss_by_chance_is_not_believed() -> None:
    rng = random.Random(1)
    seen: set[float] = set()

    def share(rate: float) -> float:
        if rate > 1000 or (rate not in seen and rng.random() < 0.5):
            seen.add(rate)
            return 0.5
        return 1.0

    found, _ = searched(share)
    assert found.figures is not None
    assert 1000 / 1.06 <= found.figures.rate <= 1000


def test_what_never_keeps_the_goal_has_no_rate() -> None:
    found, _ = searched(lambda rate: 0.0)
    assert found.figures is None
    assert "no rate was found" in told.table(replace(once(made([sample(1)])), highest=found, slo_s=0.1))


def test_a_rate_that_is_not_kept_for_longer_is_none() -> None:
    """What a service can do for a moment with an empty queue is not what it can do."""
    whole = made([sample(1.0 + n / 100) for n in range(100)])
    tries = highest(16.0, 0.99)
    step, confirmed = next(tries), []
    found: Found | None = None
    while found is None:
        if step.is_last:
            confirmed.append(step.rate)
        good = 100 if step.rate <= (100.0 if step.is_last else 170.0) else 50
        try:
            step = tries.send(replace(whole, rate=step.rate, good=good))
        except StopIteration as end:
            found = end.value
    assert found.figures is not None
    assert 85 < found.figures.rate <= 100
    assert confirmed[0] > 150


def test_a_service_that_fails_at_any_rate_is_not_asked_for_long() -> None:
    failing = made([sample(1.0 + n / 100, status=404) for n in range(100)])
    tries = highest(16.0, 0.99)
    next(tries)
    tries.send(failing)
    with pytest.raises(StopIteration) as end:
        tries.send(failing)
    found: Found = end.value.value
    assert (found.figures, found.missed) == (None, failing)
    assert "404" in told.step(failing, 0.1, 0.99, is_last=False)


def test_where_the_client_is_the_limit_that_is_said() -> None:
    found, _ = searched(lambda rate: 1.0, lag_ms=lambda rate: 0.0 if rate < 5000 else 1000.0)
    assert found.figures is not None
    assert found.missed is None
    assert "It may be higher" in told.table(replace(once(found.figures), highest=found, slo_s=0.1))


# --- two -------------------------------------------------------------------------------------------------------------


def rounds(factor: float, noise: float, count: int = 10) -> tuple[list[Figures], list[Figures]]:
    rng = random.Random(3)
    one = made([sample(1.0 + n / 100) for n in range(100)])
    first, second = [], []
    for _ in range(count):
        machine = rng.uniform(1, 2)  # what falls on both
        for side, quick in ((first, 1.0), (second, factor)):
            took = 10 * machine * quick * rng.uniform(1 - noise, 1 + noise)
            side.append(replace(one, mean_ms=took, p50_ms=took, p99_ms=2 * took))
    return first, second


def test_a_difference_is_found_in_spite_of_the_machine() -> None:
    by_name = {one.name: one for one in versus.verdicts(*rounds(0.8, 0.05))}
    assert by_name["p50"].sure
    assert by_name["p50"].low < 0.8 < by_name["p50"].high
    assert by_name["p50"].words.endswith("less: better")
    assert not by_name["goodput"].sure


def test_equals_are_told_to_be_no_different_nearly_always() -> None:
    wrong = 0
    for seed in range(200):
        rng = random.Random(seed)
        _, low, high = versus.interval([rng.gauss(0, 0.1) for _ in range(6)])
        wrong += not low <= 0 <= high
    assert wrong < 20  # 95 %


def test_two_rounds_say_nothing() -> None:
    with pytest.raises(ValueError, match="3 or more"):
        versus.interval([0.1, 0.2])


def test_a_comparison_is_told_in_words_and_as_data() -> None:
    first, second = rounds(3.0, 0.01)
    found = replace(
        once(first[0]), services=["http://a", "http://b"], sends=["x", "x"], rounds=(first, second),
        verdicts=versus.verdicts(first, second),
    )  # fmt: skip
    assert "times: worse" in told.table(found)
    data = json.loads(told.as_json(found))
    assert data["verdicts"][0]["sure"] is True
    assert len(data["rounds"]["A"]) == 10
    assert told.picture(found).startswith("<svg")


def once(run: Figures) -> told.Found:
    return told.Found(["http://127.0.0.1"], ["as given"], "Poisson", 0.0, 0.99, [run], True)


def test_one_run_is_told_in_words_as_data_and_as_a_picture() -> None:
    run = made([sample(1 + n / 20, 0.01 + n / 10_000) for n in range(100)], 0.015)
    found = replace(once(run), slo_s=0.015, is_met=False)
    table = told.table(found)
    assert "IN TIME" in table
    assert "goal: 99 % within 15.0 ms: MISSED (51 %)" in table
    data = json.loads(told.as_json(found))
    assert (data["met"], data["slo_ms"], data["runs"][0]["share"]) == (False, 15.0, 0.51)
    assert "goal" in told.picture(found)


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_bodies_are_a_file_its_lines_or_a_folders_files(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"x": 3}')
    (tmp_path / "many.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "images" / "b.png").write_bytes(b"b")
    assert payloads.of_file(tmp_path / "one.json", "").bodies == [b'{"x": 3}']
    lines = payloads.of_file(tmp_path / "many.jsonl", "")
    assert (lines.bodies, lines.mime) == ([b'{"x": 1}', b'{"x": 2}'], "application/json")
    images = payloads.of_file(tmp_path / "images", "")
    assert (images.bodies, images.mime, images.words) == ([b"a", b"b"], "image/png", "2 of images")
    with pytest.raises(ConfigError, match="cannot be read"):
        payloads.of_file(tmp_path / "none", "")


@pytest.mark.parametrize(
    ("content", "body"),
    [
        ({"application/json": {"example": {"x": 3}}}, b'{"x": 3}'),
        ({"text/plain": {"example": "hello"}}, b"hello"),
        ({"application/json": {"example": "hello"}}, b'"hello"'),
        ({"application/json": {"examples": {"a": {"value": [1]}}}}, b"[1]"),
        ({"application/msgpack": {"examples": {"a": {"externalValue": "data:a/b;base64,gaF4Aw=="}}}}, b"\x81\xa1x\x03"),
        ({"application/msgpack": {"examples": {"a": {"externalValue": "https://elsewhere/x"}}}}, None),
        ({"application/json": {"schema": {}}}, None),
        ({"application/json": None}, None),
        ({"application/json": {"examples": {"a": 3}}}, None),
    ],
)
def test_the_example_is_that_of_the_openapi_document(content: dict[str, Any], body: bytes | None) -> None:
    document = {"paths": {"/do": {"post": {"requestBody": {"content": content}}}}}
    found = payloads.of_service(document, "/do")
    assert (found and list(found.bodies)) == (body if body is None else [body])
    assert payloads.of_service(document, "/else") is None


@pytest.mark.parametrize(
    "document", [{}, {"paths": None}, {"paths": []}, {"paths": {"/do": None}}, {"paths": {"/do": 3}}]
)
def test_a_document_of_another_shape_has_no_routes(document: dict[str, Any]) -> None:
    assert payloads.routes(document) == []
    assert payloads.of_service(document, "/do") is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host/a?b=c", Target("host", 80, path="/a?b=c")),
        ("https://[::1]:8443", Target("::1", 8443, tls=True)),
    ],
)
def test_an_address_is_taken_apart(url: str, expected: Target) -> None:
    assert target.parse(url) == expected


@pytest.mark.parametrize("url", ["http://", "http://host:x/", "ftp://host/", "http://host/a b"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(ConfigError):
        target.parse(url)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["http://h"], "how many requests?"),
        (["a", "b", "c", "--rate", "1"], "one service, or two"),
        (["http://a", "http://b", "--slo", "1s"], "at which rate"),
        (["http://h", "--rate", "1", "--data", "f", "--body", "x"], "one of the two"),
        (["http://h", "--rate", "1", "--picture", "x.png"], "ends in .svg"),
        (["http://h", "--rate", "1", "--path", "x"], "begins with /"),
        (["http://h", "--rate", "1", "--header", "nonsense"], "expected NAME:VALUE"),
        (["http://h", "--rate", "1", "--header", "x: \u20ac"], "expected NAME:VALUE"),
        (["http://h", "--rate", "1", "--path", "/a b"], "without spaces"),
        (["http://h", "--rate", "1", "--method", "P OST"], "expected one such as POST"),
        (["http://h", "--rate", "1", "--header", "a: b\r\nc: d"], "expected NAME:VALUE"),
        (["http://a", "http://b", "--rate", "1", "--rounds", "2"], "takes 3 or more"),
    ],
)
def test_words_that_do_not_go_together(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(["bench", *words])
    assert end.value.code == ExitCode.USAGE
    assert hint in capsys.readouterr().err


# --- the client ------------------------------------------------------------------------------------------------------


@contextmanager
def server(handle: Callable[[socket.socket, int], None]) -> Iterator[Target]:
    """Somebody who listens; ``handle`` is called with each connection and its number, on a thread of its own."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threads: list[threading.Thread] = []
        open_ones: list[socket.socket] = []

        def serve() -> None:
            number = 0
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                open_ones.append(connection)
                threads.append(threading.Thread(target=run, args=(connection, number), name=f"serve {number}"))
                threads[-1].start()
                number += 1

        def run(connection: socket.socket, number: int) -> None:
            try:
                handle(connection, number)
            except OSError:
                pass
            finally:
                connection.close()

        accepting = threading.Thread(target=serve, name="accept")
        accepting.start()
        try:
            yield Target("127.0.0.1", listening.getsockname()[1], path="/do")
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in open_ones:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended by itself
            for thread in threads:
                thread.join()


def requests_of(connection: socket.socket) -> Iterator[bytes]:
    """Each one that comes, of one length."""
    data = b""
    while True:
        while len(data) < len(REQUEST):
            more = connection.recv(65536)
            if not more:
                return
            data += more
        yield data[: len(REQUEST)]
        data = data[len(REQUEST) :]


REQUEST = request("POST", "/do", "127.0.0.1", [("content-type", "application/json")], b'{"x": 3}')


def asked(where: Target, due: list[float], **words: Any) -> Outcome:
    words = {"connections": 16, "timeout_s": 10.0, **words}
    client = Client(where, [REQUEST], **words)
    try:
        return client.run(due)
    finally:
        client.close()


def test_all_are_answered_and_connections_used_again() -> None:
    def handle(connection: socket.socket, number: int) -> None:
        for _ in requests_of(connection):
            connection.sendall(PLAIN)

    with server(handle) as where:
        outcome = asked(where, [n / 500 for n in range(200)])
    assert [one.status for one in outcome.samples] == [200] * 200
    assert all(one.took_s >= one.first_s > 0 for one in outcome.samples)
    assert outcome.connections <= 16


def test_latency_counts_from_the_instant_that_was_meant() -> None:
    """One connection, and answers that are held until all have been meant to leave: a closed loop would see one."""
    due = [0.0, 0.01, 0.02, 0.03]

    def handle(connection: socket.socket, number: int) -> None:
        for place, _ in enumerate(requests_of(connection)):
            if not place:
                time.sleep(0.2)
            connection.sendall(PLAIN)

    with server(handle) as where:
        outcome = asked(where, due, connections=1)
    assert outcome.waited == 3
    by_at = sorted(outcome.samples)
    assert all(one.took_s + one.at >= 0.2 for one in by_at)
    assert by_at[-1].lag_s >= 0.2 - due[-1]


def test_a_connection_that_is_closed_costs_what_was_under_way_on_it() -> None:
    closed: list[int] = []

    def handle(connection: socket.socket, number: int) -> None:
        for place, _ in enumerate(requests_of(connection)):
            if not closed and place == 2:
                closed.append(number)
                return
            connection.sendall(PLAIN)

    with server(handle) as where:
        outcome = asked(where, [n / 50 for n in range(10)], connections=1)
    assert sorted(one.status for one in outcome.samples) == [CUT] + [200] * 9
    assert outcome.wrong[CUT]


def test_a_server_that_closes_after_each_answer_costs_nothing() -> None:
    def handle(connection: socket.socket, number: int) -> None:
        for _ in requests_of(connection):
            connection.sendall(PLAIN.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            return

    with server(handle) as where:
        outcome = asked(where, [n / 100 for n in range(20)], connections=2)
    assert [one.status for one in outcome.samples] == [200] * 20


def test_an_answer_before_all_of_the_body_was_sent_is_that_answer_and_the_next_goes_elsewhere() -> None:
    large = request("POST", "/do", "127.0.0.1", [], b"x" * (24 << 20))
    over = threading.Event()

    def handle(connection: socket.socket, number: int) -> None:
        if connection.recv(1000):
            connection.sendall(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\nno")
            over.wait(20)  # it reads no more

    with server(handle) as where:
        client = Client(where, [large], connections=1, timeout_s=10.0)
        try:
            outcome = client.run([0.0, 0.01, 0.02])
        finally:
            client.close()
            over.set()
    assert [one.status for one in outcome.samples] == [429] * 3
    assert outcome.wrong == {429: "no"}


def test_what_a_user_says_of_the_host_stands_once() -> None:
    made = request("POST", "/do", "here", [("Host", "there"), ("x-a", "b")], b"1")
    assert made == b"POST /do HTTP/1.1\r\nHost: there\r\nx-a: b\r\ncontent-length: 1\r\n\r\n1"


def test_who_does_not_answer_is_given_up() -> None:
    def handle(connection: socket.socket, number: int) -> None:
        for _ in requests_of(connection):
            pass

    with server(handle) as where:
        outcome = asked(where, [0.0, 0.01, 0.02], connections=2, timeout_s=0.2)
    assert [one.status for one in outcome.samples] == [LATE] * 3


def test_what_is_no_answer_fails_its_request() -> None:
    def handle(connection: socket.socket, number: int) -> None:
        for _ in requests_of(connection):
            connection.sendall(b"SSH-2.0\r\n\r\n")

    with server(handle) as where:
        outcome = asked(where, [0.0, 0.01])
    assert [one.status for one in outcome.samples] == [CUT] * 2
    assert "no answer of HTTP" in outcome.wrong[CUT]


def test_nobody_there_is_said_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
    assert cli.run(["bench", f"http://127.0.0.1:{port}/do", "--rate", "1"]) == ExitCode.CONFIG
    assert "nobody answers there" in capsys.readouterr().err


def test_a_service_without_an_example_is_asked_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    def handle(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    with server(handle) as where:
        assert cli.run(["bench", f"{where.base}/do", "--rate", "1"]) == ExitCode.CONFIG
    assert "what shall be sent?" in capsys.readouterr().err

"""A frontend process under attack by its clients, both ways in: what it holds is read off its resident memory, and
others are served meanwhile. Each bound is measured well above what the attack would reach without it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import PATIENCE_S, Raw, Running, frontend, post, wait_until

from frontend.gate import BEHIND_ALL
from frontend.partial import PARTIAL_ALL

MIB = 1 << 20
SLOW_S = 3 * PATIENCE_S  # for what takes seconds of work on a machine that has nothing else to do


@pytest.fixture(params=["lean", "asgi"])
def server(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@contextmanager
def attacked(folder: Path, **options: Any) -> Iterator[Running]:
    with frontend(folder, forgets=True, **options) as running:
        yield running
        assert "Traceback" not in running.text()


def resident(running: Running) -> int:
    """Bytes of the one worker process."""
    (worker,) = psutil.Process(running.process.pid).children()
    size: int = worker.memory_info().rss
    return size


@contextmanager
def crowd(running: Running, count: int) -> Iterator[list[Raw]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running.connect()) for _ in range(count)]


def pour(raw: Raw, data: bytes, most: int) -> int:
    """Send without reading until the other side takes no more or ``most`` bytes have gone; how many did."""
    raw.sock.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError, ConnectionError):
        while sent < most:
            sent += raw.sock.send(data)
    return sent


def pour_whole(raw: Raw, data: bytes) -> None:
    """All of it, where it is little more than is read of one client; less where that is ended."""
    raw.sock.settimeout(1.0)
    with contextlib.suppress(TimeoutError, ConnectionError):
        raw.sock.sendall(data)
    raw.sock.settimeout(PATIENCE_S)


def test_requests_sent_in_advance_are_not_hoarded(server: str, tmp_path: Path) -> None:
    with attacked(tmp_path, server=server, timeout=60.0) as running, crowd(running, 30) as attackers:
        before = resident(running)
        for raw in attackers:
            raw.send(post(b"hang"))
        many = post(b"x", "x-pad: " + "y" * 400) * 1000
        threads = [threading.Thread(target=pour, args=(raw, many, 32 * MIB)) for raw in attackers]
        for thread in threads:
            thread.start()
        with running.connect() as other:
            for _ in range(20):
                began = time.monotonic()
                assert other.send(post(b"good")).reply().body == b"good"
                assert time.monotonic() - began < 5
        for thread in threads:
            thread.join()
        assert resident(running) - before < BEHIND_ALL + 24 * MIB


def test_requests_in_advance_are_served_at_a_cost_that_does_not_grow_with_what_waits(
    server: str, tmp_path: Path
) -> None:
    """With a copy of the rest for each request, 3,000 of them take gigabytes of copying."""
    count = 3000
    with attacked(tmp_path, server=server, timeout=60.0) as running, running.connect() as raw:
        before = resident(running)
        sender = threading.Thread(target=raw.sock.sendall, args=(post(b"1") * count,))
        sender.start()
        for _ in range(count):
            assert raw.reply().body == b"1"
        sender.join()
        assert resident(running) - before < 24 * MIB


def test_where_all_send_too_much_in_advance_a_connection_ends_behind_its_answer(server: str, tmp_path: Path) -> None:
    """Not one answer is lost or another's, and a client that sees the end can send the rest again."""
    count = BEHIND_ALL // (64 * 1024) + 100
    with attacked(tmp_path, server=server, timeout=60.0) as running, crowd(running, count) as attackers:
        before = resident(running)
        for raw in attackers:
            assert raw.send(post(b"first")).reply().body == b"first"
            raw.send(post(b"wait"))
        for raw in attackers:
            pour_whole(raw, post(b"next") * 1000)
        with running.connect() as other:  # which is read after all that
            for _ in range(10):
                assert other.send(post(b"one")).reply().body == b"one"
            assert other.send(post(b"go")).reply().body == b"go"
        assert resident(running) - before < BEHIND_ALL + 32 * MIB
        ends = 0
        for raw in attackers:
            reply = raw.reply()
            assert reply.body == b"wait"
            if reply.closes:
                assert raw.at_end()
                ends += 1
            else:
                assert raw.reply().body == b"next"
        assert ends > 0


def test_bodies_that_are_announced_and_not_sent_keep_nobody_out(server: str, tmp_path: Path) -> None:
    options = {"max_request_size": MIB, "capacity_bytes": 4 * MIB, "body_timeout": 2.0}
    with (
        attacked(tmp_path, server=server, **options) as running,
        crowd(running, 40) as slow,
        running.connect() as good,
    ):
        for raw in slow:
            raw.send(post(b"x", length=MIB))
        for size in (10, MIB):
            assert good.send(post(b"y" * size)).reply().body == b"y" * size
        statuses = set()
        for raw in slow:
            raw.send(b"x")
        for raw in slow:
            reply = raw.reply()
            statuses.add(reply.status)
            assert reply.closes
        assert statuses == {408}


def test_what_has_come_of_a_refused_body_is_not_kept(server: str, tmp_path: Path) -> None:
    """Its connection's parts refer to each other: what they hold would wait for the garbage collector."""
    with attacked(tmp_path, server=server) as running:
        before = resident(running)
        for _ in range(200):
            with running.connect() as raw:
                with contextlib.suppress(ConnectionError):
                    raw.send(post(b"x" * MIB, "x-request-timeout: soon"))
                assert raw.reply().status == 400
        assert resident(running) - before < 16 * MIB


def test_heads_that_begin_and_do_not_end_are_bounded_together(server: str, tmp_path: Path) -> None:
    options = {"max_header_size": MIB, "header_timeout": 2 * SLOW_S}
    with attacked(tmp_path, server=server, **options) as running, crowd(running, 100) as attackers:
        before = resident(running)
        lines = "".join(f"x-{number}: {'y' * 20_000}\r\n" for number in range(45))
        for raw in attackers:
            with contextlib.suppress(ConnectionError):
                raw.send(b"POST /inference HTTP/1.1\r\nhost: x\r\n" + lines.encode())
        with running.connect() as other:  # whose head comes in pieces too
            other.sock.settimeout(SLOW_S)  # 90 MB of heads are read before, and each byte looked at
            for piece in (b"POST /infer", b"ence HTTP/1.1\r\nhost: x\r\ncontent-le", b"ngth: 4\r\n\r\ngood"):
                other.send(piece)
            assert other.reply().body == b"good"
        assert resident(running) - before < PARTIAL_ALL + 24 * MIB, "of 90 MB"
        reply = attackers[0].reply()
        assert (reply.status, reply.closes) == (408, True)
        attackers[-1].sock.settimeout(SLOW_S)  # they are read in turns: there may be more to read before this one's end
        assert attackers[-1].send(b"content-length: 4\r\n\r\ngood").reply().body == b"good"


def test_a_body_that_drips_is_given_up(server: str, tmp_path: Path) -> None:
    """Each pause is short; all together are not."""
    with attacked(tmp_path, server=server, body_timeout=0.5) as running, running.connect() as raw:
        raw.send(post(b"", length=1000))
        began = time.monotonic()
        raw.sock.settimeout(0.1)
        while True:
            assert time.monotonic() - began < PATIENCE_S
            with contextlib.suppress(ConnectionError):
                raw.send(b"x")
            try:
                reply = raw.reply()
            except TimeoutError:
                continue
            break
        assert (reply.status, reply.closes) == (408, True)


def test_one_client_fills_half_of_the_room_with_bodies_that_are_not_whole(server: str, tmp_path: Path) -> None:
    options = {"max_request_size": MIB, "capacity_bytes": 4 * MIB, "body_timeout": 60.0}
    with attacked(tmp_path, server=server, **options) as running, crowd(running, 2) as slow:
        for raw in slow:
            raw.send(post(b"x" * (MIB - 1), length=MIB))
        with running.connect() as same:
            wait_until(lambda: _is_refused(running))
            reply = same.send(post(b"x" * 1000, length=MIB)).reply()
            assert (reply.status, reply.closes) == (429, True)
        with elsewhere(running) as other:
            assert other.send(post(b"y" * MIB)).reply().body == b"y" * MIB


def _is_refused(running: Running) -> bool:
    with running.connect() as raw:
        raw.send(post(b"", length=MIB))  # which takes nothing of the room
        raw.sock.settimeout(0.2)
        try:
            return raw.reply().status == 429
        except TimeoutError:
            return False


def elsewhere(running: Running) -> Raw:
    """A connection from another address of this host."""
    return Raw(socket.create_connection(running.address, PATIENCE_S, source_address=("127.0.0.2", 0)))


def test_answers_that_nobody_reads_are_bounded_together(server: str, tmp_path: Path) -> None:
    size = 8 * MIB
    options = {"max_request_size": size, "capacity_bytes": 4 * size, "timeout": 60.0}
    with attacked(tmp_path, server=server, **options) as running:
        with elsewhere(running) as raw:  # so that what every first large body costs is there
            assert len(raw.send(post(b"y" * size)).reply().body) == size
        before = resident(running)
        with ExitStack() as stack:
            for _ in range(28):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(running.address)
                with contextlib.suppress(ConnectionError):
                    sock.sendall(post(b"x" * size))
            with running.connect() as other:
                assert other.send(post(b"good")).reply().body == b"good"
            assert resident(running) - before < 14 * size, "half of what they were sent"


def test_a_refusal_is_not_lost_by_what_is_sent_behind_it(server: str, tmp_path: Path) -> None:
    """A socket that is closed while something unread is there resets its connection."""
    with attacked(tmp_path, server=server) as running:
        for request in (
            post(b"last", "connection: close"),
            post(b"bad", "x-request-timeout: soon", "connection: close"),
            b"nonsense\r\n\r\n",
            post(b"", length=100 * MIB),
        ):
            with running.connect() as raw:
                raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                raw.send(request)
                with contextlib.suppress(ConnectionError):
                    raw.send(post(b"behind") * 20_000)
                assert raw.reply().closes
                assert raw.at_end()

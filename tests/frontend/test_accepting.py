"""Connections that are served on the bare socket, and those that are adopted by the event loop: over real sockets, in
one process, with both event loops."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from fakes import FakeClient, deployment
from leanbench import END, MIME, head, plain

from engine.config.schema import FrontendSection
from engine.core.call import Answer, StreamEvent
from engine.core.messages import Flow
from frontend import accepting, lean
from frontend.accepting import Acceptor
from frontend.answer import Answering
from frontend.gate import Gate
from frontend.lean import LeanConnection
from frontend.metrics import FrontendMetrics
from frontend.shared import Shared

uvloop.new_event_loop().close()  # libuv keeps two pipes for the whole process

LAST = "Connection: close"
PATIENCE_S = 20.0
LARGE = 8 << 20  # more than a socket takes at once


class Listening(socket.socket):
    """``spent``: so many connections are not accepted, for want of descriptors."""

    spent = 0

    def _accept(self) -> Any:
        if self.spent:
            self.spent -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super()._accept()  # type: ignore[misc]


class Site:
    """An acceptor with everything behind it faked."""

    def __init__(self, **frontend: Any) -> None:
        section = FrontendSection(**frontend)
        whole = deployment(section)
        self.client = FakeClient()
        self.gate = Gate(section)
        self.handed: list[bytes] = []
        self.has_room = True
        metrics = FrontendMetrics("engine", ["/inference", "/second"], 3.0)
        self.shared = Shared(whole, self.client, self.gate, metrics, Answering.of(whole), self._hand_over)
        self.listening = Listening()
        self.listening.bind(("127.0.0.1", 0))
        self.listening.listen()
        self.listening.setblocking(False)
        self.acceptor = Acceptor([self.listening], self.shared, lambda: self.has_room, lambda: int(self.has_room))
        self.adopted = 0
        adopt = self.acceptor.adopt

        def counting(bare: accepting.Bare) -> None:
            self.adopted += 1
            adopt(bare)

        self.acceptor.adopt = counting  # type: ignore[method-assign]

    def _hand_over(self, transport: Any, data: bytes) -> asyncio.Protocol:
        self.handed.append(data)
        protocol = asyncio.Protocol()
        transport.set_protocol(protocol)
        transport.close()
        return protocol

    async def connect(self, *pieces: bytes) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        client = Client(sock)
        await asyncio.get_running_loop().sock_connect(sock, self.listening.getsockname())
        await client.send(*pieces)
        return client

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():  # noqa: ASYNC110  # polled, for anything may be asked; the scenario has its limit
            await asyncio.sleep(0.001)

    @property
    def connections(self) -> list[LeanConnection]:
        return list(self.shared.connections)


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.read = b""

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            await asyncio.get_running_loop().sock_sendall(self.sock, piece)

    async def all(self) -> bytes:
        """What comes until the connection ends; then this end is closed too."""
        try:
            while await self.more():
                pass
        finally:
            self.sock.close()
        return self.read

    async def more(self) -> bool:
        data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20)
        self.read += data
        return bool(data)


@asynccontextmanager
async def opened(**frontend: Any) -> AsyncIterator[Site]:
    site = Site(**frontend)
    try:
        yield site
        await site.until(lambda: not (site.shared.connections or site.shared.lingering))
    finally:
        site.acceptor.close()


Scenario = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=["uvloop", "asyncio"])
def play(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    loop = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()

    def play(scenario: Scenario) -> None:
        try:
            loop.run_until_complete(asyncio.wait_for(scenario(), PATIENCE_S))
        finally:
            loop.close()

    return play


Play = Callable[[Scenario], None]
ONE = plain(b"one", LAST)
BRIEF = {
    "HTTP/1.1": ONE,
    "HTTP/1.0": plain(b"one", line="POST /inference HTTP/1.0"),
    "a health page": head("Host: x", LAST, line="GET /healthz HTTP/1.1"),
    "its head": head(line="HEAD /readyz HTTP/1.0"),
    "refused": plain(b"one", LAST, "x-request-timeout: 1"),
}


@pytest.mark.parametrize("name", BRIEF)
def test_one_answer_is_given_and_the_connection_ended_without_a_transport(play: Play, name: str) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.gate.draining = name == "refused"
            data = await (await site.connect(BRIEF[name])).all()
            begin, _, body = data.partition(b"\r\n\r\n")
            assert begin.startswith(b"HTTP/1.1 503 " if name == "refused" else b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nconnection: close" in begin
            assert name not in ("HTTP/1.1", "HTTP/1.0") or body == b"one"
            assert site.adopted == 0
            assert not site.shared.lingering

    play(scenario)


def test_a_request_that_comes_in_pieces_is_waited_for_without_a_transport(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            client = await site.connect()
            await site.until(lambda: site.connections)
            for byte in ONE[:-1]:
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert site.client.submitted == []
            await client.send(ONE[-1:])
            assert (await client.all()).endswith(b"\r\n\r\none")
            assert site.adopted == 0

    play(scenario)


def test_one_that_says_too_much_or_nothing_gets_a_transport_after_a_moment(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            long = await site.connect(head("Host: x", f"X-A: {'x' * lean.EARLY_MAX}")[:-2])
            await site.until(lambda: site.adopted == 1)
            long.sock.close()
            silent = await site.connect()
            await site.until(lambda: site.connections)
            (connection,) = site.connections
            connection.sweep(connection.since + lean.BARE_S / 2)
            assert site.adopted == 1
            connection.sweep(connection.since + lean.BARE_S * 2)
            assert site.adopted == 2
            await silent.send(ONE)  # before it has one, perhaps
            assert (await silent.all()).endswith(b"\r\n\r\none")

    play(scenario)


def test_one_that_is_kept_gets_a_transport_and_loses_nothing(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            client = await site.connect(plain(b"one"), plain(b"two"))
            await client.send(plain(b"three", LAST))
            assert [block.rpartition(b"\n")[2] for block in (await client.all()).split(b"HTTP/1.1 ")][1:] == [
                b"one", b"two", b"three",
            ]  # fmt: skip
            assert site.adopted == 1

    play(scenario)


KEPT = {
    "HTTP/1.1": plain(b"one"),
    "HTTP/1.0": plain(b"one", "Connection: keep-alive", line="POST /inference HTTP/1.0"),
    "a health page": head("Host: x", line="GET /healthz HTTP/1.1"),
    "refused": plain(b"", "x-request-timeout: 9"),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("goes_on", [False, True])
def test_one_that_is_kept_gets_a_transport_with_its_second_request(play: Play, name: str, goes_on: bool) -> None:
    async def scenario() -> None:
        async with opened(capacity=1) as site:
            site.gate.pending = int(name == "refused")
            client = await site.connect(KEPT[name])
            while b"\r\n\r\n" not in client.read:
                await client.more()
            site.gate.pending = 0
            status = 429 if name == "refused" else 200
            assert client.read.startswith(b"HTTP/1.1 %d " % status)
            assert b"connection: close" not in client.read
            assert (site.adopted, len(site.connections)) == (0, 1)
            if goes_on:
                await client.send(ONE)
                assert (await client.all()).endswith(b"\r\n\r\none")
            else:
                client.sock.close()
                await site.until(lambda: not site.connections)
            assert site.adopted == int(goes_on)

    play(scenario)


def test_one_that_is_kept_and_idle_gets_a_transport_after_a_moment(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            client = await site.connect(plain(b"one"))
            await client.more()
            (connection,) = site.connections
            connection.sweep(connection.since + lean.BARE_S * 2)
            assert site.adopted == 1
            await client.send(ONE)
            assert (await client.all()).endswith(b"\r\n\r\none")

    play(scenario)


def test_a_large_answer_on_one_that_is_kept_comes_whole(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.client.reply = lambda item: Answer(200, b"x" * LARGE, "text/plain")
            client = await site.connect(plain(b"one"))
            await site.until(lambda: site.adopted)
            await client.send(ONE)
            assert (await client.all()).count(b"x" * LARGE) == 2

    play(scenario)


def test_what_is_not_plain_is_handed_over_from_its_first_byte(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            odd = head("Host: x", LAST, line="PUT /inference HTTP/1.1")
            await (await site.connect(odd)).all()
            assert b"".join(site.handed) == odd

    play(scenario)


@pytest.mark.parametrize("behind", [b"\r\n", b"x" * 200_000])
def test_what_comes_behind_the_request_does_not_reset_its_answer(play: Play, behind: bytes) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.client.reply = lambda item: None
            client = await site.connect(ONE)
            await site.until(lambda: site.client.waiting)
            await client.send(behind)
            site.client.waiting[0].set_result(Answer(200, b"answer"))
            assert (await client.all()).endswith(b"\r\n\r\nanswer")
            assert site.adopted == 1

    play(scenario)


def test_an_answer_that_does_not_fit_into_the_socket_comes_whole(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.client.reply = lambda item: Answer(200, b"x" * LARGE, "text/plain")
            client = await site.connect(ONE)
            await site.until(lambda: site.adopted)
            assert (await client.all()).endswith(b"\r\n\r\n" + b"x" * LARGE)

    play(scenario)


def test_where_the_answer_takes_long_it_is_noticed_that_the_client_has_gone(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.client.reply = lambda item: None
            client = await site.connect(ONE)
            await site.until(lambda: site.client.waiting)
            client.sock.close()
            (connection,) = site.connections
            connection.sweep(connection.since + lean.BARE_S * 2)
            await site.until(lambda: site.client.cancelled)
            assert site.gate.pending == 0

    play(scenario)


@pytest.mark.parametrize("when", ["at once", "with a transport"])
def test_an_answer_that_comes_while_there_is_hardly_a_transport_is_given(play: Play, when: str) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.client.reply = lambda item: None
            client = await site.connect(ONE)
            await site.until(lambda: site.client.waiting)
            (connection,) = site.connections
            connection.sweep(connection.since + lean.BARE_S * 2)
            if when == "with a transport":
                for _ in range(5):
                    await asyncio.sleep(0)
            site.client.waiting[0].set_result(Answer(200, b"late"))
            assert (await client.all()).endswith(b"\r\n\r\nlate")

    play(scenario)


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_in_pieces_is_given_in_pieces(play: Play, version: str, is_cut: bool) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.client.reply = lambda item: None
            client = await site.connect(plain(b"1", LAST, line=f"POST /inference HTTP/{version}"))
            await site.until(lambda: site.client.waiting)
            tell = site.client.streams[-1]
            tell(StreamEvent(b"one", Flow.EVENTS, MIME))
            while b"data: one\n\n" not in client.read:
                await client.more()  # before its end
            tell(StreamEvent(b"two", Flow.EVENTS, MIME))
            if is_cut:
                site.gate.draining = True
                site.client.waiting[0].call.waiter.answered(None)
            else:
                site.client.waiting[0].set_result(END)
            data = await client.all()
            assert b"data: one\n\n" in data
            assert b"data: two\n\n" in data
            assert b"text/event-stream" in data
            if version == "1.1":
                assert data.endswith(b"0\r\n\r\n")

    play(scenario)


@pytest.mark.parametrize("request_", [ONE, plain(b"one")])
def test_one_that_stops_sending_in_the_middle_of_a_request_is_handed_over_to_be_told_so(
    play: Play, request_: bytes
) -> None:
    async def scenario() -> None:
        async with opened() as site:
            client = await site.connect(request_[:-1])
            await site.until(lambda: site.connections and not site.connections[0].idle)
            client.sock.shutdown(socket.SHUT_WR)
            await client.all()
            assert site.handed == [request_[:-1]]

    play(scenario)


@pytest.mark.parametrize("said", [b"", ONE[:20]])
def test_one_that_goes_without_a_request_leaves_nothing(play: Play, said: bytes) -> None:
    async def scenario() -> None:
        async with opened() as site:
            client = await site.connect(said)
            await site.until(lambda: site.connections)
            client.sock.close()
            await site.until(lambda: not site.connections)
            assert site.client.submitted == []

    play(scenario)


def test_where_there_is_no_room_a_connection_ends_at_once(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.has_room = False
            client = await site.connect()
            try:
                assert await client.all() == b""
            except ConnectionResetError:
                pass

    play(scenario)


def test_an_idle_one_makes_room(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            client = await site.connect()
            await site.until(lambda: site.connections)
            assert site.connections[0].idle
            site.connections[0].end()
            assert await client.all() == b""

    play(scenario)


@pytest.mark.parametrize("when", ["before its request", "behind its answer"])
def test_one_that_has_gone_is_not_adopted_in_the_same_turn(play: Play, when: str) -> None:
    async def scenario() -> None:
        async with opened() as site:
            client = await site.connect(*([plain(b"one")] if when == "behind its answer" else []))
            await site.until(lambda: site.connections)
            if when == "behind its answer":
                await client.more()
            (connection,) = site.connections
            connection.end()
            connection.sweep(connection.since + lean.BARE_S * 2)
            await client.all()
            assert site.adopted == 0

    play(scenario)


def test_one_of_which_something_has_come_is_not_idle(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            client = await site.connect(ONE[:20])
            await site.until(lambda: site.connections and not site.connections[0].idle)
            site.connections[0].end()
            await client.send(ONE[20:])
            assert (await client.all()).endswith(b"\r\n\r\none")

    play(scenario)


def test_who_is_here_when_the_port_closes_is_served(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            silent, begun = await site.connect(), await site.connect(ONE[:20])
            await site.until(lambda: len(site.connections) == 2)
            site.acceptor.close()
            await silent.send(ONE)
            await begun.send(ONE[20:])
            assert (await silent.all()).endswith(b"\r\n\r\none")
            assert (await begun.all()).endswith(b"\r\n\r\none")

    play(scenario)


def test_where_descriptors_are_spent_it_goes_on_a_moment_later(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            site.listening.spent = 2
            begun = time.monotonic()
            assert (await (await site.connect(ONE)).all()).endswith(b"\r\n\r\none")
            assert time.monotonic() - begun >= 2 * accepting.PAUSE_S
            assert site.listening.spent == 0  # or it would have been tried in every turn of the loop

    play(scenario)


def test_what_served_a_connection_goes_with_it_and_does_not_wait_for_the_collector(play: Play) -> None:
    async def scenario() -> None:
        async with opened() as site:
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    await (await site.connect(ONE)).all()
                await asyncio.sleep(0)
                left = [one for one in gc.get_objects() if type(one) in (LeanConnection, accepting.Bare)]
                site.client.submitted.clear()
                held = {id(call.call.waiter) for call in site.client._calls}  # the fake keeps them all
                assert [one for one in left if id(one) not in held] == []
            finally:
                gc.enable()

    play(scenario)


def test_several_processes_take_few_at_a_time(play: Play) -> None:
    async def scenario() -> None:
        for processes, most in ((1, 32), (2, 8), (4, 2), (64, 1)):
            listening = socket.socket()
            site = Acceptor([listening], None, bool, int, processes=processes)  # type: ignore[arg-type]
            assert site._at_once == most
            site.close()

    play(scenario)


@pytest.mark.parametrize("size", [lean.MOST - 1, lean.MOST, lean.MOST + 1, accepting.READ_MAX, 3 * accepting.READ_MAX])
@pytest.mark.parametrize("fields", [(LAST,), (), ("Transfer-Encoding: chunked",)])
def test_requests_of_every_size_are_served_whole(play: Play, size: int, fields: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with opened() as site:
            is_chunked = fields != (LAST,) and bool(fields)
            begin = head("Host: x", *fields) if is_chunked else plain(b"x" * size, *fields)[:-size]
            body = b"x" * (size - len(begin))  # the whole is as long as is said
            request = head("Host: x", *fields) if is_chunked else plain(body, *fields)[: -len(body)]
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 13, body[13:]) if is_chunked else body
            client = await site.connect(request + framed)
            if LAST not in fields:
                await client.send(ONE)
            answer = await client.all()
            assert answer.count(b"HTTP/1.1 200 OK") == (1 if LAST in fields else 2)
            assert site.client.submitted[0].body == (body[13:] if is_chunked else body)

    play(scenario)

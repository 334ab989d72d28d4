"""A client that is not read for a while is read again: nothing that it said may stand in front of its next request for
ever, whoever serves the connection. No sockets."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from leanbench import Bench, FakeTransport, head, plain, run

from engine.config.schema import FrontendSection
from engine.core.call import Answer
from frontend.gate import BEHIND_MAX, Gate
from frontend.serving.connection import Connection

LARGE = 1 << 20


@pytest.mark.parametrize("way", ["length", "chunks"])
def test_a_large_request_that_came_whole_before_its_turn(way: str) -> None:
    async def scenario() -> None:
        bench = Bench(timeout=60.0)
        bench.client.reply = lambda item: None
        body = b"x" * (2 * BEHIND_MAX)
        in_chunks = head("host: x", "transfer-encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        bench.feed(plain(b"1"), plain(body) if way == "length" else in_chunks)
        assert not bench.transport.reading
        bench.client.waiting[-1].set_result(Answer(200, b"one"))
        assert bytes(bench.client.submitted[-1].body) == body
        assert bench.transport.reading, "its client is not heard, nor whether it has gone"
        bench.client.waiting[-1].set_result(Answer(200, b"two"))
        bench.feed(plain(b"3"))
        assert bench.client.submitted[-1].body == b"3"

    run(scenario())


class _Transport(FakeTransport):
    def __init__(self) -> None:
        super().__init__()
        self.resumed = asyncio.Event()

    def resume_reading(self) -> None:
        super().resume_reading()
        self.resumed.set()

    def set_write_buffer_limits(self, **_: Any) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> object:
        return {"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 2)}.get(name)


class _Log(logging.Logger):
    access_log_enabled = False


def _worker(app: Any) -> Any:
    """What a connection asks of gunicorn's worker."""
    section = FrontendSection()
    ours = SimpleNamespace(deployment=SimpleNamespace(frontend=section), gate=Gate(section))
    return SimpleNamespace(
        cfg=Config(), log=_Log("test"), asgi=app, app=ours, loop=asyncio.get_running_loop(), alive=True,
        connections=set(), connection_ended=lambda: None, nr_conns=0, nr=0, max_requests=1 << 30,
    )  # fmt: skip


def test_a_body_that_came_whole_and_that_nobody_wanted() -> None:
    """As one that is refused for want of room: the answer needs nothing of it, but it is there already."""

    async def scenario() -> None:
        served = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal served
            served += 1
            await send({"type": "http.response.start", "status": 429, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        transport = _Transport()
        connection = Connection(_worker(app))
        connection.connection_made(transport)
        for number in (1, 2):
            connection.data_received(plain(b"x" * LARGE))
            assert not transport.reading
            transport.resumed.clear()
            await transport.resumed.wait()
            assert (served, transport.closed) == (number, False)
        connection.connection_lost(None)

    run(scenario())

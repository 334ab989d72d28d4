"""A frontend process with a fake client behind it: ``serve_fake.py STATUS_FD EVENTS_FD OPTIONS``, OPTIONS a JSON object
of keys of ``[frontend]``, ``grace``, ``term_at``: where in its start the first worker process gets a SIGTERM, and
``stop_at``: after which fork the master gets which signal.

The body says what becomes of a request: ``hang`` is never answered, ``after 0.2`` so many seconds later, ``wait`` with
the next ``go``, ``make 1000`` with so many bytes, ``die`` kills the worker process, anything else comes back; with the
option ``tells`` the answer to everything is what the service was told of it, as JSON. What the client is asked is
written to EVENTS_FD, a line each; with ``forgets`` nothing of requests is, and nothing of them is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from fakes import FakeClient, Held, Submitted, deployment, echo

from engine import log
from engine.config.schema import PLAIN, Deployment, FrontendSection
from engine.core.call import Answer, Call
from engine.metrics import Family
from engine.process import Notifier
from frontend.serve import serve


def tell(item: Submitted) -> Answer:
    """What the service was told, but for the id where the client gave none."""
    fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in item.headers]
    offered = [value for name, value in fields if name == "x-request-id"]
    told = {
        "route": item.route,
        "query": item.query.decode("latin-1"),
        "fields": fields,
        "body": item.body.decode("latin-1"),
        "timeout_s": item.timeout_s,
        **({} if item.asked is None else {"asked": msgspec.to_builtins(item.asked)}),
        "id": item.request_id if item.request_id in offered else "new",
    }
    return Answer(200, json.dumps(told).encode())


class ScriptedClient(FakeClient):
    def __init__(self, events: int, *, tells: bool, forgets: bool) -> None:
        super().__init__()
        self._events = events
        self._tells = tells
        self._forgets = forgets
        self._waiting: list[Held] = []

    def call(self, call: Call, instant: float) -> int:
        body = bytes(call.body)
        if self._tells:
            self.reply = tell
            return super().call(call, instant)
        if body == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        held = body in (b"hang", b"wait") or body.startswith(b"after ")
        if held:
            self.reply = lambda item: None
        elif body.startswith(b"make "):
            self.reply = lambda item: Answer(200, b"x" * int(item.body.split()[1]), "text/plain")
        else:
            self.reply = echo
        seq = super().call(call, instant)
        if body.startswith(b"after "):
            answer = echo(Submitted(0, body, 0.0, "", b"", []))
            asyncio.get_running_loop().call_later(float(body.split()[1]), self._answer, self._calls[-1], answer)
        if body == b"wait":
            self._waiting.append(self._calls[-1])
        elif body == b"go":
            for one in self._waiting:
                self._answer(one, echo(Submitted(0, b"wait", 0.0, "", b"", [])))
            self._waiting.clear()
        if self._forgets:
            self.submitted.clear()
            self.streams.clear()
        else:
            self._say("submitted", body)
        return seq

    def _answer(self, held: Held, answer: Answer) -> None:
        super()._answer(held, answer)
        if self._forgets:
            del held.call

    def withdraw(self, seq: int) -> None:
        super().withdraw(seq)
        if not self._forgets:
            self._say("cancelled")

    async def start(self) -> None:
        self._say("started")
        _maybe_term("start")

    async def close(self) -> None:
        self._say("closed")

    def _say(self, what: str, body: bytes = b"") -> None:
        line = json.dumps({"what": what, "pid": os.getpid(), "size": len(body), "body": body[:40].decode("latin-1")})
        os.write(self._events, line.encode() + b"\n")


_term_at = ""
_once, _once_end = os.pipe()  # a byte for the one process that is to be told
os.set_blocking(_once, False)


def _maybe_term(where: str) -> None:
    if where == _term_at:
        with contextlib.suppress(BlockingIOError):
            if os.read(_once, 1):
                os.kill(os.getpid(), signal.SIGTERM)


def _stop_at(fork: int, number: int) -> None:
    """Within the fork itself: before the next one."""
    forks = count(1)
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), number) if next(forks) == fork else None)


def main() -> int:
    global _term_at
    status, events, options = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    log.setup("frontend", level="debug")
    grace = options.pop("grace", 5.0)
    tells = options.pop("tells", False)
    forgets = options.pop("forgets", False)
    protocol = options.pop("protocol", PLAIN)
    _term_at = options.pop("term_at", "")
    if "stop_at" in options:
        _stop_at(*options.pop("stop_at"))
    os.write(_once_end, b".")
    os.register_at_fork(after_in_child=lambda: _maybe_term("fork"))
    section = replace(FrontendSection(address="127.0.0.1", port=0), **options)

    def connect(whole: Deployment, name: str, families: Callable[[], list[Family]], url: str) -> FakeClient:
        _maybe_term("load")  # the handlers are installed, the event loop does not run yet
        return ScriptedClient(events, tells=tells, forgets=forgets)

    def made() -> Deployment:
        return deployment(section, grace=grace, protocol=protocol)

    return serve(made(), Notifier(status), connect=connect, reread=made)


if __name__ == "__main__":
    sys.exit(main())

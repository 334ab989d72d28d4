"""What a thread of the broker waits for: descriptors that tell, and sockets whose descriptor may be silent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq

from engine import transport, unix
from engine.broker import poll as module
from engine.broker.complaints import Complaints
from engine.broker.poll import Inlet, Inlets, Poll, Source
from engine.core import wire
from engine.core.messages import Bye

CAP_S = 20.0


class Part:
    due = False


@dataclass
class Bench:
    """A ROUTER that is polled, and a DEALER that speaks to it."""

    poll: Poll
    part: Part
    inlet: Inlet
    dealer: zmq.Socket[bytes]
    unread: list[bytes] = field(default_factory=list)  # peers whose words could not be read

    def say(self, number: int) -> None:
        assert self.dealer.poll(CAP_S * 1000, zmq.POLLOUT), "no connection"
        assert transport.send(self.dealer, wire.encode(Bye(number)))

    def hear(self) -> list[tuple[bytes, int]]:
        """What comes within one wait."""
        self.poll.wait(CAP_S)
        assert self.inlet.ready
        assert self.part.due
        self.part.due = False
        letters = self.inlet.letters(self.unread.append)
        return [(peer, message.worker) for peer, message, *_ in letters if isinstance(message, Bye)]

    def hear_one(self) -> tuple[bytes, int]:
        while not (heard := self.hear()):
            pass  # woken by the connection itself
        return heard[0]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp") as folder:
        ctx = transport.context()
        endpoint = f"ipc://{Path(folder) / 's'}"
        part, poll = Part(), Poll()
        inlet = Inlet(transport.router(ctx, endpoint), part, poll, Complaints({}))
        poll.add(inlet)
        dealer = transport.dealer(ctx, endpoint)
        try:
            yield Bench(poll, part, inlet, dealer)
        finally:
            inlet.sock.close()
            dealer.close()
            ctx.term()


def test_what_comes_is_told_once_to_its_owner(bench: Bench) -> None:
    bench.say(7)
    assert bench.hear_one()[1] == 7
    bench.poll.wait(0.0)
    assert not bench.inlet.ready
    assert not bench.part.due


def test_a_socket_that_was_used_is_asked_again(bench: Bench) -> None:
    bench.say(1)
    peer, _ = bench.hear_one()
    bench.say(2)
    assert bench.inlet.sock.poll(CAP_S * 1000)  # it has come, and the descriptor has told so to somebody else
    bench.poll.wait(0.0)
    assert not bench.inlet.ready  # why there are doubts
    assert bench.inlet.send(wire.encode(Bye(3)), peer)
    assert bench.hear() == [(peer, 2)]


def test_a_peer_that_takes_a_name_like_anothers_is_not_heard(bench: Bench) -> None:
    """Names of peers on unix sockets are the broker's; ZeroMQ lets a peer choose."""
    liar = bench.dealer.context.socket(zmq.DEALER)
    try:
        liar.routing_id = unix.NAMED + (1).to_bytes(7, "big")
        liar.connect(transport.bound(bench.inlet.sock))
        liar.send_multipart(wire.encode(Bye(666)))
        bench.say(1)
        heard: list[int] = []
        while len(heard) < 2:  # by themselves both are
            heard += [number for _, number in bench.hear()]
        liar.send_multipart(wire.encode(Bye(667)))
        bench.say(2)
        inlets, heard = Inlets([bench.inlet]), []
        while 2 not in heard or 3 not in heard:
            bench.poll.wait(CAP_S)
            heard += [message.worker for _, message, *_ in inlets.letters(bench.unread.append) if type(message) is Bye]
            if 2 in heard:
                bench.say(3)  # behind what the liar has said
        assert 667 not in heard
    finally:
        liar.close(linger=0)


def test_reading_that_stopped_early_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARCELS_PER_PASS", 1)
    for number in range(5):
        bench.say(number)
    heard: list[int] = []
    while len(heard) < 5:
        heard += [number for _, number in bench.hear()]
    assert heard == [0, 1, 2, 3, 4]


def test_what_cannot_be_read_is_left_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.say(1)
    peer, _ = bench.hear_one()
    assert transport.send(bench.dealer, [b"nonsense"])
    bench.say(2)
    assert bench.hear_one()[1] == 2
    assert "malformed" in caplog.text
    assert bench.unread == [peer]


def test_a_plain_descriptor() -> None:
    reading, writing = os.pipe()
    try:
        poll, part = Poll(), Part()
        source = Source(reading, part)
        poll.add(source)
        poll.wait(0.0)
        assert not source.ready
        os.write(writing, b"x")
        poll.wait(CAP_S)
        assert source.ready
        assert part.due
    finally:
        os.close(reading)
        os.close(writing)

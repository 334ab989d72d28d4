"""A broker whose ports want a key, over real sockets of the loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from engine import admin, curve, transport
from engine.broker.service import Broker
from engine.config import Deployment
from engine.core.keys import Secret
from engine.errors import Unavailable
from engine.keyfile import Keyring, make
from engine.metrics import unpack, unpack_sources
from tests.e2e.harness import free_ports
from tests.engine.test_broker import (
    CAP_S,
    Worker,
    ask,
    client,
    deploy,
    got,
    in_thread,
    ready,
    running,
    status_of,
    until,
    until_async,
    worker,
)


@pytest.fixture
def keyed(tmp_path: Path, threads: str) -> Deployment:
    """A deployment with a port and a key."""
    plain = deploy(str(tmp_path), bind=f"tcp://127.0.0.1:{free_ports(16)}", threads=threads)
    make(key := str(tmp_path / "deployment.key"))
    return replace(plain, engine=replace(plain.engine, insecure=False, key=key))


def lines(deployment: Deployment, *secrets: Secret) -> None:
    """Have the key file hold these."""
    path = Path(deployment.engine.key)
    path.write_text("\n".join(secret.line() for secret in secrets))
    path.chmod(0o600)


def secret_of(deployment: Deployment) -> Secret:
    return Keyring(deployment.engine.key).secrets[0]


def refused(deployment: Deployment) -> dict[str, int]:
    """How many connections, by why."""
    sources = unpack_sources(admin.ask(deployment, "metrics", CAP_S))
    families = [family for family in unpack(sources.broker) if family.name.endswith("connections_refused")]
    return {sample.labels["reason"]: int(sample.value) for family in families for sample in family.samples}


def fixed_ports(deployment: Deployment) -> dict[str, int]:
    """And what kind of socket belongs there."""
    found = transport.reaching(deployment)
    doors = dict.fromkeys([found.front, found.admin, found.control(0)], int(zmq.DEALER))
    return doors | dict.fromkeys([found.egress, found.intake(0)], int(zmq.PUSH))


async def serve_one(c: Any, w: Worker, body: bytes = b"hello") -> None:
    answer = ask(c, body)
    batch, payloads = await in_thread(w.batch)
    w.answer(batch, payloads)
    assert bytes((await got(answer)).body) == body + b"!"


# --- those who have it -----------------------------------------------------------------------------------------------


def test_who_has_the_key_is_served_and_what_passes_is_encrypted(keyed: Deployment) -> None:
    async def scenario() -> None:
        with running(keyed), worker(keyed) as w:
            async with client(keyed) as c:
                await until_async(lambda: ready(c), "readiness")
                await serve_one(c, w)
                await serve_one(c, w, os.urandom(300_000))
                assert status_of(keyed)["stages"][0]["ready"] == 1
                for sock in (w.control, w.lane, *w.out.values()):
                    assert sock is not None
                    assert sock.getsockopt(zmq.MECHANISM) == zmq.CURVE
                assert refused(keyed) == {}

    asyncio.run(scenario())


# --- strangers -------------------------------------------------------------------------------------------------------

STRANGERS = ["no key", "a random key", "the broker's key and one of his own", "HTTP", "silence"]


class Stranger:
    """Connects to ports as ``kind``."""

    def __init__(self, kind: str, broker: curve.Pairs) -> None:
        self.kind, self.broker = kind, broker
        self.ctx = zmq.Context()

    def connect(self, endpoint: str, socket_type: int) -> None:
        if self.kind in ("HTTP", "silence"):
            host, port = endpoint.removeprefix("tcp://").split(":")
            with socket.create_connection((host, int(port)), timeout=CAP_S) as sock:
                if self.kind == "HTTP":
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    with contextlib.suppress(ConnectionResetError):
                        while sock.recv(4096):  # what ZeroMQ greets everybody with, and the end
                            pass
            return
        sock = self.ctx.socket(socket_type)
        sock.linger, sock.immediate, sock.reconnect_ivl = 0, 1, -1
        if self.kind != "no key":
            sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()
            known = self.kind.startswith("the broker's key")
            sock.curve_serverkey = self.broker.broker_public if known else zmq.curve_keypair()[0]
        monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        sock.connect(endpoint)
        assert monitor.poll(CAP_S * 1000), "neither let in nor refused"
        (what, _) = curve.event(monitor.recv_multipart())
        assert what == zmq.EVENT_DISCONNECTED, "let in"
        sock.disable_monitor()
        monitor.close()
        sock.close()


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_are_refused_at_every_port_and_counted_while_the_service_answers(
    keyed: Deployment, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    reason = dict(zip(STRANGERS, ["no_key", "wrong_key", "unknown_key", "malformed", "unfinished"], strict=True))[kind]
    times = 8

    async def scenario() -> None:
        with running(keyed), worker(keyed) as w:
            async with client(keyed) as c:
                await until_async(lambda: ready(c), "readiness")
                lane = w.lane.endpoint if w.lane is not None else ""
                ports = fixed_ports(keyed) | {lane: int(zmq.PULL)}
                stranger = Stranger(kind, curve.pairs_of(secret_of(keyed)))
                try:
                    for port, socket_type in ports.items():
                        for _ in range(times):
                            await in_thread(stranger.connect, port, socket_type)
                        await serve_one(c, w)
                finally:
                    stranger.ctx.term()
                await until_async(lambda: sum(refused(keyed).values()) >= times * len(ports), "the count")
                counts = refused(keyed)
                hurried = counts.pop("unfinished", 0) if kind == "no key" else 0  # who has seen it first, and left
                assert counts == {reason: times * len(ports) - hurried}
                await serve_one(c, w)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    told = [record for record in caplog.records if "a connection is refused" in record.message]
    assert len(told) == len({record.message for record in told})  # each in a minute once
    assert secret_of(keyed).line() not in caplog.text


def test_without_somebody_who_answers_for_them_nobody_gets_in(
    keyed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is there to be asked about who comes: what is left fails closed."""
    monkeypatch.setattr(curve, "ZAP", "inproc://elsewhere")
    with running(keyed) as broker:
        ctx = transport.context(Keyring(keyed.engine.key))
        socks = [transport.dealer(ctx, endpoint) for endpoint in fixed_ports(keyed)]
        counts = broker.front.machine.stats.connections_refused
        try:
            until(lambda: counts.get("unfinished", 0) >= len(socks), "the refusals")
            for sock in socks:
                assert not sock.poll(0, transport.WRITABLE)
                end = sock.monitor_end
                while end is not None and end.poll(0):
                    assert curve.event(end.recv_multipart())[0] != zmq.EVENT_HANDSHAKE_SUCCEEDED
        finally:
            for sock in socks:
                sock.close()
            ctx.term()


def test_who_is_refused_says_why_and_is_let_in_once_the_key_is_right(
    keyed: Deployment, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    make(other := str(tmp_path / "other.key"))
    lost = replace(keyed, engine=replace(keyed.engine, key=other))
    with running(keyed), caplog.at_level(logging.ERROR):
        w = Worker(lost)
        try:
            until(lambda: transport.send(w.control, [b"?"]) or "none of the keys in" in caplog.text, "words")
            (told,) = [record for record in caplog.records if "none of the keys in" in record.message]
            assert f"none of the keys in {other} is the broker's (wrong key" in told.message
            other_sock = transport.dealer(w.ctx, w.endpoints.front)  # as whoever gets no answer makes one
            for _ in range(2):
                until(lambda: transport.send(other_sock, [b"?"]) or other_sock.complaint, "another refusal")
                other_sock.is_away = False
            other_sock.close()
            assert caplog.text.count("none of the keys in") == 1
            with pytest.raises(Unavailable, match="none of the keys in"):
                admin.ask(lost, "status", 0.3)
            lines(lost, secret_of(keyed))
            w.join()
        finally:
            w.close()
    assert secret_of(keyed).line() not in caplog.text


def test_who_was_given_no_key_says_so(keyed: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    plain = replace(keyed, engine=replace(keyed.engine, key="", insecure=True))
    with running(keyed), caplog.at_level(logging.ERROR):
        w = Worker(plain)
        try:
            until(
                lambda: transport.send(w.control, [b"?"]) or "it wants a key, and no engine.key" in caplog.text, "words"
            )
        finally:
            w.close()


@pytest.mark.parametrize("has_key", [True, False])
def test_a_proxy_that_reaches_no_broker_is_not_called_one_that_wants_a_key(
    keyed: Deployment, caplog: pytest.LogCaptureFixture, has_key: bool
) -> None:
    deployment = keyed if has_key else replace(keyed, engine=replace(keyed.engine, key="", insecure=True))
    port = int(keyed.engine.bind.rpartition(":")[2])
    over = threading.Event()

    def proxy(listener: socket.socket) -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", port)) as listener, caplog.at_level(logging.ERROR):
        listener.settimeout(0.05)
        thread = threading.Thread(target=proxy, args=(listener,))
        thread.start()
        ctx = transport.context(Keyring(keyed.engine.key) if has_key else None)
        sock = transport.dealer(ctx, transport.reaching(deployment).front)
        try:
            until(lambda: transport.send(sock, [b"?"]) or "no broker listens there" in caplog.text, "words")
            assert "the broker refuses" not in caplog.text, "there may be none"
        finally:
            sock.close()
            ctx.term()
            over.set()
            thread.join()


def test_a_broker_without_keys_is_no_broker_for_who_has_them(
    keyed: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    plain = replace(keyed, engine=replace(keyed.engine, key="", insecure=True))
    with running(plain), caplog.at_level(logging.ERROR):
        w = Worker(keyed)
        try:
            until(lambda: transport.send(w.control, [b"?"]) or "the broker has no" in caplog.text, "words")
        finally:
            w.close()


# --- another key -----------------------------------------------------------------------------------------------------


def test_a_peer_tries_its_lines_in_turn_and_one_that_was_deleted_no_more(keyed: Deployment) -> None:
    old, new = Secret(b"o" * 32), Secret(b"n" * 32)
    lines(keyed, old, new)
    ctx = transport.context(Keyring(keyed.engine.key))
    endpoint = transport.reaching(keyed).front
    try:
        lines(keyed, new)
        with running(keyed):  # it knows the new one alone
            lines(keyed, old, new)
            sock = transport.dealer(ctx, endpoint)
            until(lambda: transport.send(sock, [b"?"]), "a link by the second line")
            assert ctx.pairs == curve.pairs_of(new)
            sock.close()
            lines(keyed, old)
            transport.dealer(ctx, endpoint).close()
            assert ctx.pairs == curve.pairs_of(old)
    finally:
        ctx.term()


def test_a_broker_is_outdated_once_the_first_line_is_another_one(keyed: Deployment) -> None:
    old, new = Secret(b"o" * 32), Secret(b"n" * 32)
    lines(keyed, old)
    with running(keyed) as broker:
        assert not broker.is_outdated()
        lines(keyed, old, new)
        assert not broker.is_outdated()
        Path(keyed.engine.key).write_text("half")
        assert not broker.is_outdated()
        lines(keyed, new, old)
        assert broker.is_outdated()
        assert broker.is_outdated()  # until it has been begun anew


def test_a_broker_begins_anew_by_the_key_it_has_read_whatever_has_become_of_the_file(keyed: Deployment) -> None:
    old, new = Secret(b"o" * 32), Secret(b"n" * 32)
    lines(keyed, old)
    broker = Broker(keyed)
    broker.start()
    try:
        lines(keyed, new, old)
        assert broker.is_outdated()
        Path(keyed.engine.key).unlink()
    finally:
        broker.stop()
    again = broker.renewed(keyed)
    again.start()
    try:
        assert not again.is_outdated()
        lines(keyed, new)
        w = Worker(keyed)
        try:
            w.join()
        finally:
            w.close()
        lines(keyed, old)
        assert again.is_outdated(), "the file is looked at again when there is one"
    finally:
        again.stop()

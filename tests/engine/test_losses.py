"""Connections to workers that are lost: over tcp, where they are heard of at once, with workers played by the test."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import closing

import pytest
import zmq

from engine import transport
from engine.config import Deployment
from engine.core import wire
from engine.core.introduction import Introduction
from engine.core.messages import Pulse, WorkerBeat
from tests.e2e.harness import free_ports
from tests.engine.test_broker import (
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
def remote(deployment: Deployment, threads: str) -> Deployment:
    """The same over tcp: a worker without a pid of this host's is another host's."""
    return deploy(deployment.engine.run_dir, bind=f"tcp://127.0.0.1:{free_ports(16)}", threads=threads)


def pulse_of(one: Worker) -> Pulse:
    pulse = one.receive()
    assert isinstance(pulse, Pulse)
    return pulse


def pids(deployment: Deployment) -> list[int]:
    return [one["pid"] for stage in status_of(deployment)["stages"] for one in stage["workers"]]


def test_what_a_worker_of_another_host_had_is_given_to_others_as_soon_as_its_lane_is_lost(remote: Deployment) -> None:
    async def scenario() -> None:
        with running(remote), worker(remote) as one:
            async with client(remote) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"work")
                batch, _ = await in_thread(one.batch)
                with worker(remote, slot=2) as other:
                    assert one.lane is not None
                    lost_at = time.monotonic()
                    one.lane.close()  # the rest of it still lives
                    one.lane = None
                    again, payloads = await in_thread(other.batch)
                    assert time.monotonic() - lost_at < 1.0  # by nobody's silence
                    assert again.uids == batch.uids
                    assert again.attempts == batch.attempts == [1]  # no death is counted
                    other.answer(again, payloads)
                    assert (await got(answer)).status == 200
                    assert not pulse_of(one).known  # it is asked to introduce itself
                    (stage,) = status_of(remote)["stages"]
                    assert (stage["deaths"], stage["replayed"]) == (0, 1)

    asyncio.run(scenario())


def test_a_process_of_this_host_is_not_given_up_for_its_lane_but_introduces_itself_anew(remote: Deployment) -> None:
    async def scenario() -> None:
        with running(remote), worker(remote, pid=os.getpid()) as one:
            async with client(remote) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"work")
                batch, payloads = await in_thread(one.batch)
                assert one.lane is not None
                one.lane.close()
                one.lane = None
                assert not pulse_of(one).known
                one.send(WorkerBeat(one.key))
                assert pulse_of(one).known  # by its pid it lives
                one.answer(batch, payloads)
                assert (await got(answer)).status == 200
                former = one.key
                await in_thread(one.join)
                assert one.key != former
                assert pids(remote) == [os.getpid()]

    asyncio.run(scenario())


def test_whoever_knocks_at_a_lane_and_is_not_let_in_costs_its_worker_nothing(remote: Deployment) -> None:
    with running(remote), worker(remote) as one:
        until(lambda: [stage["ready"] for stage in status_of(remote)["stages"]] == [1], "readiness")
        assert one.lane is not None
        port = int(one.lane.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        for words in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x09" + bytes(60)):
            for _ in range(5):
                with closing(socket.create_connection(("127.0.0.1", port))) as stranger:
                    stranger.sendall(words)
        one.send(WorkerBeat(one.key))
        assert pulse_of(one).known
        assert transport.recv(one.control) is None


def test_a_worker_that_introduces_itself_again_gets_what_was_in_its_dead_connection(remote: Deployment) -> None:
    async def scenario() -> None:
        with running(remote), worker(remote) as one:
            async with client(remote) as c:
                await until_async(lambda: ready(c), "readiness")
                answer = ask(c, b"work")
                first, _ = await in_thread(one.batch)
                assert isinstance(one.who, Introduction)
                await in_thread(one.join)
                again, payloads = await in_thread(one.batch)
                assert (again.uids, again.attempts) == (first.uids, [1])
                one.answer(again, payloads)
                assert (await got(answer)).status == 200

    asyncio.run(scenario())


def told(losses: transport.Losses) -> list[int]:
    """The ports at which connections were lost since it was asked last."""
    ports = []
    while (frames := transport.recv(losses.sock)) is not None:
        ports.append(losses.lost(frames))
    return [port for port in ports if port is not None]


def test_losses_are_heard_by_name_and_port() -> None:
    with transport.context() as ctx:
        losses = transport.Losses(ctx)
        bound = [transport.lane(ctx, "tcp://127.0.0.1:*") for _ in range(3)]
        for number, sock in enumerate(bound):
            losses.hear(str(number))  # before or after: whoever listens first waits
            transport.tell_losses(sock, str(number))
        ends = [transport.lane_end(ctx, transport.bound(sock)) for sock in bound]
        for sock in bound:
            until(lambda sock=sock: transport.send(sock, wire.encode(WorkerBeat(1))), "a connection")  # type: ignore[misc]
        assert told(losses) == []
        ends[1].close()
        until(lambda: told(losses) == [transport.port_of(bound[1])], "the loss")
        transport.unbind(bound[2])  # what we end ourselves is no loss
        ends[0].close()
        until(lambda: told(losses) == [transport.port_of(bound[0])], "the loss")
        assert told(losses) == []
        for sock in (*bound[:2], ends[2], losses.sock):
            sock.close()


def test_a_machine_that_gives_our_own_token_is_another_one_all_the_same(remote: Deployment) -> None:
    """Two that began as one snapshot of a third do: where a connection comes from is the kernel's word."""
    with running(remote), worker(remote, pid=os.getpid()) as here:
        (one,) = status_of(remote)["stages"][0]["workers"]
        assert one["here"]
        here.control.close()
        here.control = here.ctx.socket(zmq.DEALER)
        there = here.endpoints.control(0).replace("tcp://", "tcp://127.0.0.7:0;")
        here.control.connect(there)
        here.join()
        (one,) = status_of(remote)["stages"][0]["workers"]
        assert not one["here"]

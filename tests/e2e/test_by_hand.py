"""The same deployment as separate processes over tcp, started by hand in any order, coming and going under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from harness import SERVICES, Running, free_ports, wait_for, write_service
from load import Load, right

Start = Callable[..., Running]


LANES = 8  # of six workers, and those that take their places
PORTS = 7 + LANES  # of the broker: front, admin, egress, two for each of two stages, and lanes


class ByHand:
    """A deployment file with a bind and a port of its own, and the processes started from it."""

    def __init__(self, folder: Path, stack: ExitStack, host: str = "127.0.0.1") -> None:
        first = free_ports(1 + 2 * PORTS)
        self.url = f"http://127.0.0.1:{first}"
        self.port = first + 1  # of the broker
        self.free = self.port + PORTS  # and as many more
        text = (SERVICES / "chain.toml").read_text()
        bind = f'bind = "tcp://{host}:{self.port}"\nlanes = {LANES}\ninsecure = true\n'
        text = text.replace("[engine]\n", f"[engine]\n{bind}")
        text = text.replace("[frontend]\n", f'[frontend]\naddress = "127.0.0.1"\nport = {first}\n')
        self.file = write_service(folder, text)
        (folder / "actor.py").write_text((SERVICES / "actor.py").read_text())
        self._folder = folder
        self._stack = stack

    def start(self, command: str, *flags: str) -> Running:
        running = Running([command, str(self.file), *flags], folder=self._folder)
        self._stack.callback(running.kill)
        return running

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {
            "broker": ("broker",),
            "frontend": ("frontend",),
            "first": ("worker", "--stage", "first", "--slot", "1"),
            "second": ("worker", "--stage", "second", "--num", "2"),
        }

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture
def by_hand(folder: Path) -> Iterator[ByHand]:
    with ExitStack() as stack:
        yield ByHand(folder, stack)


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["broker", "frontend", "first", "second"]))[::7], ids="-".join
)
def test_started_in_any_order(by_hand: ByHand, order: tuple[str, ...]) -> None:
    running = {name: by_hand.start(*by_hand.parts()[name]) for name in order}
    wait_for("readiness", by_hand.ready, within_s=60)
    sent = {"id": 1}
    assert right(sent, httpx.post(f"{by_hand.url}/both", json=sent, trust_env=False))
    for name in ("frontend", "first", "second", "broker"):
        assert running[name].terminate() == 0, f"{name}\n{running[name].tail()}"
        running[name].gone(within_s=2)


def test_workers_join_and_leave_while_requests_flow(by_hand: ByHand) -> None:
    running = {name: by_hand.start(*flags) for name, flags in by_hand.parts().items()}
    wait_for("readiness", by_hand.ready, within_s=60)
    with Load(f"{by_hand.url}/both") as load:
        load.flow(50)
        joined = by_hand.start("worker", "--stage", "first", "--slot", "2")

        def ready_workers() -> int:
            stages = httpx.get(f"{by_hand.url}/readyz", trust_env=False).text
            return stages.count('"ready":2') + stages.count('"ready": 2')

        wait_for("the second worker of each stage", lambda: ready_workers() == 2, within_s=60)
        assert running["first"].terminate() == 0  # drains
        load.flow(50)
    assert load.wrong == []
    assert joined.terminate() == 0
    wait_for("the truth about readiness", lambda: not by_hand.ready())
    for name in ("frontend", "second", "broker"):
        assert running[name].terminate() == 0, running[name].tail()


def test_a_broker_killed_and_started_again_costs_no_request(by_hand: ByHand) -> None:
    running = {name: by_hand.start(*flags) for name, flags in by_hand.parts().items()}
    wait_for("readiness", by_hand.ready, within_s=60)
    with Load(f"{by_hand.url}/both", threads=4) as load:
        load.flow(50)
        running["broker"].signal(signal.SIGKILL)
        running["broker"].exited()
        again = by_hand.start("broker")
        load.flow(50)
    assert load.wrong == []
    for name in ("frontend", "first", "second"):
        assert running[name].terminate() == 0, running[name].tail()
    assert again.terminate() == 0, again.tail()
    for broker in (running["broker"], again):  # whoever reaches its ports is let in: that is said at every start
        assert broker.log.count("insecure: whoever reaches the broker's ports") == 1, broker.tail()


def test_a_file_and_a_supervisor_on_each_host_are_a_fleet(by_hand: ByHand) -> None:
    """Their parts serve together, each is its own supervisor's to replace, and workers come and go with theirs."""
    hosts = ("broker,frontend", "first,second=1", "first", "second=2")
    fleet = {only: by_hand.start("up", "--only", only) for only in hosts}
    for only in hosts[1:]:
        said = only.replace(",", ", ")
        wait_for(f"the workers of {only}", lambda said=said, only=only: f"{said} ready" in fleet[only].out, within_s=60)
    wait_for("readiness", by_hand.ready, within_s=60)
    with Load(f"{by_hand.url}/both") as load:
        load.flow(50)
        reload = by_hand.start("reload", "--only", "second")
        assert reload.exited() == 0, reload.log
        assert "1 worker of second, which other commands run" in reload.out, reload.out
        leaving = fleet.pop("first,second=1")
        assert leaving.terminate() == 0, leaving.tail()
        load.flow(50)
    assert load.wrong == []
    down = by_hand.start("down", "--only", "first")
    assert down.exited() == 0, down.log
    assert fleet.pop("first").exited() == 0
    again = by_hand.start("down", "--only", "first")
    assert again.exited() == 6
    assert "does not run here" in again.log
    for running in (fleet.pop("broker,frontend"), *fleet.values()):
        assert running.terminate() == 0, running.tail()
        running.gone(within_s=2)


@contextmanager
def translated(here: int, there: int, count: int) -> Iterator[None]:
    """Ports from ``here`` on that lead to those from ``there`` on, as a container's or a gateway's do."""
    loop = asyncio.new_event_loop()
    listening = threading.Event()
    ended = asyncio.Event()

    async def carry(port: int, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            broker, to_broker = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # nobody listens there
            to_client.close()
            return
        with contextlib.suppress(asyncio.CancelledError):  # the end
            await asyncio.gather(pass_on(client, to_broker), pass_on(broker, to_client))

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def serve() -> None:
        servers = [
            await asyncio.start_server(partial(carry, there + port), "127.0.0.1", here + port) for port in range(count)
        ]
        listening.set()
        await ended.wait()
        for server in servers:
            server.close()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="translation")
    thread.start()
    try:
        listening.wait()
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


def test_others_reach_a_broker_that_listens_everywhere_by_translated_ports(folder: Path) -> None:
    with ExitStack() as stack:
        by_hand = ByHand(folder, stack, "0.0.0.0")
        broker = by_hand.start("broker")
        with translated(by_hand.free, by_hand.port, PORTS):
            there = ("--broker", f"localhost:{by_hand.free}")
            others = [by_hand.start(*flags, *there) for name, flags in by_hand.parts().items() if name != "broker"]
            wait_for("readiness", by_hand.ready, within_s=60)
            sent = {"id": 1}
            assert right(sent, httpx.post(f"{by_hand.url}/both", json=sent, trust_env=False))
            told = by_hand.start("status", *there)
            assert told.exited() == 0, told.tail()
            for other in others:
                assert other.terminate() == 0, other.tail()
        assert broker.terminate() == 0, broker.tail()


def test_by_the_addresses_of_the_other_family(folder: Path) -> None:
    with ExitStack() as stack:
        by_hand = ByHand(folder, stack, "[::]")
        running = {name: by_hand.start(*flags) for name, flags in by_hand.parts().items()}
        wait_for("readiness", by_hand.ready, within_s=60)
        sent = {"id": 1}
        assert right(sent, httpx.post(f"{by_hand.url}/both", json=sent, trust_env=False))
        for name in ("frontend", "first", "second", "broker"):
            assert running[name].terminate() == 0, running[name].tail()

"""Two brokers by tcp, as on two hosts: frontends choose between them, and nothing is lost with one of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from harness import SERVICES, Running, free_ports, wait_for, write_service
from load import Load

LANES = 6
PORTS = 7 + LANES  # of a broker: front, admin, egress, two for each of two stages, and lanes
FILE = """
[engine]
name = "cells"
bind = "tcp://127.0.0.1:{bind}"
broker = ["127.0.0.1:{one}", "localhost:{other}"]
lanes = {lanes}
insecure = true
[frontend]
address = "127.0.0.1"
port = {port}
timeout = 10.0
[[stage]]
name = "first"
worker = "actor:Actor"
args = {{ name = "first" }}
max_batch_size = 4
num = 3
[[stage]]
name = "second"
worker = "actor:Actor"
args = {{ name = "second" }}
num = 3
"""


class Fleet:
    """Two brokers, three workers of each stage of which the second is the second broker's, and a frontend."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        first = free_ports(1 + 2 * PORTS)
        self.url = f"http://127.0.0.1:{first}"
        self._folder = folder
        self._stack = stack
        binds = [first + 1, first + 1 + PORTS]
        about = {"one": binds[0], "other": binds[1], "lanes": LANES, "port": first}
        hosts = [folder / "one", folder / "other"]
        self.files = [
            write_service(host, FILE.format(bind=bind, **about)) for host, bind in zip(hosts, binds, strict=True)
        ]
        for host in hosts:
            (host / "actor.py").write_text((SERVICES / "actor.py").read_text())
        self.brokers = [self.broker(0), self.broker(1)]
        self.workers = self._start("up", str(self.files[0]), "--only", "first,second")
        self.frontend = self._start("frontend", str(self.files[1]))
        self.all_there()

    def _start(self, *words: str) -> Running:
        running = Running(list(words), folder=self._folder)
        self._stack.callback(running.kill)
        return running

    def broker(self, number: int) -> Running:
        return self._start("broker", str(self.files[number]), "--cell", str(number + 1))

    def all_there(self) -> None:
        wait_for("all workers", lambda: self.ready() == 6, within_s=60)

    def ready(self) -> int:
        try:
            told = httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).json()
            return sum(stage["ready"] for stage in told.get("stages", ()))
        except (httpx.HTTPError, ValueError):
            return 0


@pytest.fixture
def fleet(folder: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(folder, stack)


def test_nothing_is_lost_with_one_of_two_brokers(fleet: Fleet) -> None:
    with Load(f"{fleet.url}/inference", threads=6) as load:
        load.flow(100)
        fleet.brokers[0].signal(signal.SIGKILL)
        fleet.brokers[0].exited()
        load.flow(50)
        fleet.brokers[0] = fleet.broker(0)
        fleet.all_there()
        load.flow(50)
        fleet.brokers[1].signal(signal.SIGSTOP)
        load.flow(100)
        fleet.brokers[1].signal(signal.SIGCONT)
        fleet.all_there()
        load.flow(50)
        assert fleet.brokers[0].terminate() == 0, fleet.brokers[0].tail()
        load.flow(50)
    assert load.wrong == []
    assert set(load.answers) == {200}
    for running in (fleet.frontend, fleet.workers, fleet.brokers[1]):
        assert running.terminate() == 0, running.tail()

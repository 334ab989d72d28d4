"""Two brokers by tcp, as on two hosts: frontends choose between them, and nothing is lost with one of them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from harness import SERVICES, Running, free_ports, wait_for, write_service
from load import Balanced, Load

from engine import admin
from engine.config import load
from engine.errors import Unavailable

pytestmark = pytest.mark.unmeasured

STOPPED_S = 10.0
WORST_S = 6.0  # two seconds on a machine with nothing else to do; requests have ten
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


# What a version of ours does that speaks one protocol more: it begins with this.
NEWER = """
from engine.core import introduction

introduction.NEWEST += 1
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
        time.sleep(STOPPED_S)  # nobody replaces one that was started by hand
        fleet.brokers[1].signal(signal.SIGCONT)
        fleet.all_there()
        load.flow(50)
        assert fleet.brokers[0].terminate() == 0, fleet.brokers[0].tail()
        load.flow(50)
    assert load.wrong == []
    assert set(load.answers) == {200}
    assert load.slowest_s < WORST_S
    for running in (fleet.frontend, fleet.workers, fleet.brokers[1]):
        assert running.terminate() == 0, running.tail()


class Rolling:
    """Two cells, each with a broker and a supervisor of its workers, and two frontends; a folder for each."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        first = free_ports(2 + 2 * PORTS)
        self._binds = [first + 2, first + 2 + PORTS]
        self._about = {"one": self._binds[0], "other": self._binds[1], "lanes": LANES}
        self._ports = [first, first + 1]
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        (folder / "newer").mkdir()
        (folder / "newer" / "sitecustomize.py").write_text(NEWER)
        self.brokers = [self.broker(cell) for cell in (0, 1)]
        self.workers = [self.crew(cell) for cell in (0, 1)]
        self.frontends = [self.frontend(number) for number in (0, 1)]
        self.all_there()

    def write(self, name: str, bind: int, port: int, *, newer: bool) -> Path:
        """The newer file has the same in another order, and the newer code says of which version it is."""
        text = FILE.format(bind=bind, port=port, **self._about)
        code = (SERVICES / "actor.py").read_text()
        if newer:
            head, *stages = text.split("[[stage]]")
            route = '[[route]]\npath = "/inference"\nstages = ["first", "second"]\n'
            text = "[[stage]]".join([head, *(f"{one}\nmax_queue_bytes = 1000000\n" for one in stages[::-1])]) + route
            code = code.replace('"trace": trace}', '"trace": trace, "newer": True}')
        file = write_service(self._folder / f"{name}{'-newer' * newer}", text)
        (file.parent / "actor.py").write_text(code)
        return file

    def start(self, command: str, name: str, cell: int, *flags: str, port: int = 1, newer: bool = False) -> Running:
        file = self.write(name, self._binds[cell], port, newer=newer)
        where = ["--run-dir", str(self._folder / f"run-{name}")]
        env = {"PYTHONPATH": str(self._folder / "newer")} if newer else {}
        running = Running([command, str(file), *where, *flags], folder=self._folder, env=env)
        self._stack.callback(running.kill)
        return running

    def broker(self, cell: int, *, newer: bool = False) -> Running:
        return self.start("broker", f"broker-{cell}", cell, "--cell", str(cell + 1), newer=newer)

    def crew(self, cell: int, *, newer: bool = False) -> Running:
        flags = ["--only", "first=1,second=1", "--broker", f"127.0.0.1:{self._binds[cell]}"]
        return self.start("up", f"workers-{cell}", cell, *flags, newer=newer)

    def frontend(self, number: int, *, newer: bool = False) -> Running:
        return self.start("frontend", f"front-{number}", 0, port=self._ports[number], newer=newer)

    def ready(self, url: str) -> int:
        try:
            told = httpx.get(f"{url}/readyz", trust_env=False, timeout=5).json()
            return sum(stage["ready"] for stage in told.get("stages", ()))
        except (httpx.HTTPError, ValueError):
            return 0

    def whole(self, cell: int) -> bool:
        """As the broker itself has it: a frontend may not know yet that the one before has gone."""
        found = load(self.write(f"broker-{cell}", self._binds[cell], 1, newer=False), environ={})
        engine = dataclasses.replace(found.engine, broker=(f"127.0.0.1:{self._binds[cell]}",))
        try:
            told = json.loads(admin.ask(dataclasses.replace(found, engine=engine), "status", 1.0))
        except Unavailable:
            return False
        return [stage["ready"] for stage in told["stages"]] == [1, 1] and len(told["frontends"]) >= 2

    def all_there(self) -> None:
        for cell in (0, 1):
            wait_for("a whole cell", lambda cell=cell: self.whole(cell), within_s=60)
        for url in self.urls:
            wait_for("all workers", lambda url=url: self.ready(url) == 4, within_s=60)


def test_a_fleet_is_replaced_part_by_part_and_version_by_version_without_a_failed_request(folder: Path) -> None:
    with ExitStack() as stack:
        fleet = Rolling(folder, stack)
        asked = [sys.executable, "-c", "from engine.core.link import NEWEST, OLDEST; print(NEWEST - OLDEST)"]
        newer = {**os.environ, "PYTHONPATH": str(folder / "newer")}
        told = [subprocess.check_output(asked, env=env, text=True) for env in (None, newer)]
        assert int(told[1]) == int(told[0]) + 1, "the newer version speaks a protocol more"
        with Balanced([f"{url}/inference" for url in fleet.urls], threads=4) as balanced:
            balanced.flow(50)
            for cell in (0, 1):
                assert fleet.brokers[cell].terminate() == 0, fleet.brokers[cell].tail()
                fleet.brokers[cell] = fleet.broker(cell)
                fleet.all_there()
            for number in (0, 1):
                assert fleet.frontends[number].terminate() == 0, fleet.frontends[number].tail()
                fleet.frontends[number] = fleet.frontend(number)
                fleet.all_there()
            balanced.flow(50)
            for cell in (0, 1):
                for part in (fleet.brokers[cell], fleet.workers[cell]):
                    assert part.terminate() == 0, part.tail()
                fleet.brokers[cell] = fleet.broker(cell, newer=True)
                fleet.workers[cell] = fleet.crew(cell, newer=True)
                fleet.all_there()
                balanced.flow(50)
            fleet.frontends[0].terminate()
            fleet.frontends[0] = fleet.frontend(0, newer=True)
            fleet.all_there()
            balanced.flow(50)
        assert balanced.wrong == []
        assert set(balanced.answers) == {200}
        assert balanced.slowest_s < WORST_S
        for url in fleet.urls:  # one frontend of each version
            answer = httpx.post(f"{url}/inference", json={"id": 1}, trust_env=False)
            assert answer.json()["newer"]
        for running in (*fleet.frontends, *fleet.workers, *fleet.brokers):
            assert running.terminate() == 0, running.tail()

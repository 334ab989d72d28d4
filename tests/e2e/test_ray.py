"""A deployment on a Ray cluster of several nodes on this machine: what is placed where, and that a node can be lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from harness import SERVICES, free_ports, wait_for, write_service
from load import Load

pytest.importorskip("ray")

FILE = """
[engine]
name = "onray"
insecure = true
[frontend]
address = "127.0.0.1"
port = {port}
timeout = 60.0
[[stage]]
name = "first"
worker = "actor:Actor"
args = {{ name = "first" }}
max_batch_size = 4
num = 2
[[stage]]
name = "second"
worker = "actor:Actor"
args = {{ name = "second" }}
num = 2
"""
GPUS = """
[engine]
name = "gpus"
insecure = true
[frontend]
address = "127.0.0.1"
port = {port}
[[stage]]
name = "encode"
worker = "actor:Actor"
args = {{ name = "encode" }}
device = "cuda"
num = 2
"""
MARK = "ENGINE_TEST_RAY"


class Nodes:
    """A cluster: a head that holds nothing, and nodes that do, by their ids."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("ray_nodes.py")
        environment = {**os.environ, MARK: "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.address = f"ray={self._said()}"

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = next(line for line in self._process.stdout if line.startswith("said"))  # Ray says things as well
        return line.removeprefix("said").strip()

    def _tell(self, *words: object) -> str:
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)
        return self._said()

    def add(self, *, cpus: int = 4, gpus: int = 0) -> str:
        return self._tell("add", cpus, gpus)

    def lose(self, node: str) -> None:
        """At once, as when its power is cut."""
        self._tell("lose", node)

    def remove(self, node: str) -> None:
        self._tell("remove", node)

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def engine(self, *words: str, within_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "engine", *words, "--on", self.address]
        return subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    try:
        yield made
    finally:
        made.close()


def status(nodes: Nodes, file: Path) -> dict[str, Any]:
    """As the broker tells it; nothing while there is no broker."""
    done = nodes.engine("status", str(file), "--json")
    if done.returncode == 6:
        return {}
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def ours() -> list[psutil.Process]:
    """Processes of parts, which carry the mark of this cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) and "bootstrap.py" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_nothing_is_lost_with_a_worker_a_broker_or_a_node(nodes: Nodes, folder: Path) -> None:
    port = free_ports(1)
    file = write_service(folder, FILE.format(port=1))
    (folder / "actor.py").write_text((SERVICES / "actor.py").read_text())
    both = [nodes.add(), nodes.add()]
    done = nodes.engine("up", str(file), "--port", str(port))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"onray is ready: http://127.0.0.1:{port}" in done.stderr
    again = nodes.engine("up", str(file))
    assert again.returncode == 4
    assert "is on this cluster already" in again.stderr
    with Load(f"http://127.0.0.1:{port}/inference", threads=4) as load:
        load.flow(100)
        told = status(nodes, file)
        psutil.Process(told["stages"][0]["workers"][0]["pid"]).kill()
        load.flow(50)
        (broker,) = [one for one in ours() if one.cmdline()[2:3] == ["broker"]]
        broker.kill()
        load.flow(50)
        spare = nodes.add()

        def is_whole() -> bool:
            return [stage["ready"] for stage in status(nodes, file).get("stages", ())] == [2, 2]

        wait_for("both workers of each stage", is_whole, within_s=30)
        front = next(part["node"] for part in told["parts"] if part["part"] == "frontend")
        victim = next(node for node in both if node != front)  # clients are lost with their frontend
        nodes.lose(victim)
        load.flow(50, within_s=60)
        wait_for("the same without that node", is_whole, within_s=60)
        load.flow(50)
    assert load.wrong == []
    assert set(load.answers) == {200}
    ended = nodes.engine("down", str(file))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    wait_for("an end of all its processes", lambda: not ours())
    assert nodes.engine("status", str(file)).returncode == 6
    for node in (*both, spare):
        if node != victim:
            nodes.remove(node)


def test_gpus_are_dealt_and_who_waits_for_one_is_told(nodes: Nodes, folder: Path) -> None:
    file = write_service(folder, GPUS.format(port=free_ports(1)))
    (folder / "actor.py").write_text((SERVICES / "actor.py").read_text())
    node = nodes.add(cpus=8, gpus=1)
    command = [sys.executable, "-m", "engine", "up", str(file), "--on", nodes.address]
    up = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert up.stderr is not None
        said = next(line for line in up.stderr if line.count("encode=1") == 1)
        assert "waits for a place: encode=1 (1 CPU and 1 GPU)" in said
    finally:
        up.kill()
        up.communicate()
    assert nodes.engine("down", str(file)).returncode == 0
    wait_for("an end of all its processes", lambda: not ours())
    nodes.remove(node)


def test_workers_follow_the_demand_whatever_becomes_of_who_sees_to_it(nodes: Nodes, folder: Path) -> None:
    """None while nobody asks, and one for who does. The windows are seconds here."""
    port = free_ports(1)
    scaled = FILE.format(port=port).replace("num = 2", "num = 1\nmin = 0\nmax = 2")
    file = write_service(folder, scaled)
    (folder / "actor.py").write_text((SERVICES / "actor.py").read_text())
    node = nodes.add(cpus=6)
    command = [sys.executable, str(SERVICES / "scaled.py"), str(file), "--on", nodes.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    def workers() -> list[int]:
        return [stage["wanted"] for stage in status(nodes, file).get("stages", ())]

    wait_for("an end of both", lambda: workers() == [0, 0], within_s=60)
    (holder,) = [one for one in psutil.process_iter() if "Scaler" in one.name()]
    holder.kill()
    answer = httpx.post(f"http://127.0.0.1:{port}/inference", json={"id": 1}, timeout=90, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert workers() == [1, 1]
    assert nodes.engine("down", str(file)).returncode == 0
    wait_for("an end of all its processes", lambda: not ours())
    nodes.remove(node)


def test_a_cluster_that_is_not_there_is_told_of(folder: Path) -> None:
    file = write_service(folder, FILE.format(port=free_ports(1)))
    command = [sys.executable, "-m", "engine", "status", str(file), "--on", "ray=127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "no Ray cluster answers (127.0.0.1:1)" in done.stderr

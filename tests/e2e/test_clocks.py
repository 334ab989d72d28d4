"""Hosts whose clocks are an hour apart, either way: nobody notices, for what travels is time that is left."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from harness import Running, free_ports, wait_for, write_service

pytestmark = pytest.mark.unmeasured

HOUR_S = 3600.0
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
FILE = """
[engine]
name = "clocks"
bind = "tcp://127.0.0.1:{port}"
insecure = true
lanes = 4
[frontend]
address = "127.0.0.1"
port = {http}
timeout = 30.0
[[stage]]
name = "late"
worker = "service:Clock"
[[stage]]
name = "early"
worker = "service:Clock"
max_batch_size = 4
"""
CODE = """
import select
import time
from engine import Worker

class Clock(Worker):
    def forward(self, data):
        return [self.one(sent) for sent in data] if isinstance(data, list) else self.one(data)

    def one(self, sent):
        select.select([], [], [], sent.get("sleep", 0))  # the library takes time.sleep for an instant of its clock
        return {**sent, "clocks": [*sent.get("clocks", ()), time.time()]}
"""


def shifted(hours: str) -> dict[str, str]:
    """The clock on the wall alone: time that passes does so for everybody."""
    preload = ":".join(filter(None, [str(LIBRARIES[0]), os.environ.get("LD_PRELOAD", "")]))
    return {
        "LD_PRELOAD": preload, "FAKETIME": hours, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip


def forget(pid: int) -> None:
    """What the library leaves of a process."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)


@pytest.mark.skipif(not LIBRARIES, reason="Debian's faketime is not installed")
def test_clocks_an_hour_apart_change_nothing(folder: Path) -> None:
    first = free_ports(12)
    url = f"http://127.0.0.1:{first + 11}"
    file = write_service(folder, FILE.format(port=first, http=first + 11), CODE)
    with ExitStack() as stack:

        def start(*words: str, env: dict[str, str] | None = None) -> Running:
            running = Running([words[0], str(file), *words[1:]], folder=folder, env=env)
            stack.callback(forget, running.pid)
            stack.callback(running.kill)
            return running

        running = [
            start("frontend"),
            start("worker", "--stage", "late", "--slot", "1", env=shifted("-1h")),
            start("worker", "--stage", "early", "--slot", "1", env=shifted("+1h")),
            start("broker"),
        ]

        def ready() -> bool:
            try:
                return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
            except httpx.HTTPError:
                return False

        wait_for("readiness", ready, within_s=60)
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            for number in range(20):
                answer = client.post("/inference", json={"id": number})
                assert answer.status_code == 200, answer.text + "".join(one.tail() for one in running)
                late, early = answer.json()["clocks"]
                assert late - time.time() == pytest.approx(-HOUR_S, abs=60), "its clock is not as it was set"
                assert early - time.time() == pytest.approx(HOUR_S, abs=60)
            began = time.monotonic()
            hurried = {"x-request-timeout": "3"}  # others have time also where the machine has none for them
            answer = client.post("/inference", json={"id": 1, "sleep": 2.0}, headers=hurried)  # 4 s in all
            assert answer.status_code == 408, answer.text
            assert 2.5 < time.monotonic() - began < 6.0, "at its deadline, neither before nor an hour later"
            wait_for("an answer after it", lambda: client.post("/inference", json={"id": 2}).status_code == 200)
            counts = [line for line in client.get("/metrics").text.splitlines() if "worker_deaths_total{" in line]
            assert counts
            assert all(float(line.rpartition(" ")[2]) == 0 for line in counts), "somebody was taken for dead"
        for one in running:
            assert one.terminate() == 0, one.tail()

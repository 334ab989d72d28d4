"""Tensors on a GPU between stages of whole deployments, where what is taken for a GPU is a file's memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import SERVICES, Deployed, deployed, wait_for, write_service

pytestmark = pytest.mark.unmeasured

FILE = """
[engine]
name = "near"
[frontend]
timeout = 60.0  # a worker that died has torch to load
[[stage]]
name = "make"
worker = "far:Make"
max_batch_size = 4
num = 2
[[stage]]
name = "look"
worker = "far:Look"
num = 2
"""
BYTES = 400_000  # of a tensor


@pytest.fixture
def file(folder: Path) -> Path:
    (folder / "far.py").write_text((SERVICES / "far.py").read_text())
    return write_service(folder, FILE)


def ask(running: Deployed, count: int, **also: Any) -> list[tuple[int, Any]]:
    with running.client() as client, ThreadPoolExecutor(8) as pool:

        def one(n: int) -> tuple[int, Any]:
            answer = client.post("/inference", json={"n": n, "size": BYTES // 4, **also})
            return answer.status_code, answer.json() if answer.status_code == 200 else answer.text

        return list(pool.map(one, range(count)))


def right(count: int) -> list[tuple[int, Any]]:
    return [(200, {"n": n, "right": True}) for n in range(count)]


def between(running: Deployed) -> float:
    """Bytes that have reached the second stage, however."""
    return sum(
        value
        for name, value in running.metrics().items()
        if "_transport_bytes_total" in name and 'stage="look"' in name and 'direction="in"' in name
    )


def test_they_do_not_pass_through_the_host_and_nobodys_death_costs_one(file: Path, folder: Path) -> None:
    with deployed(file, env={"CUDA_VISIBLE_DEVICES": "0"}) as running:
        assert ask(running, 40) == right(40)
        assert between(running) < 40 * 1000
        # Whoever reads dies, and then both sides of it: what was made is read, or made, again.
        for what in ("die", "end_the_maker"):
            assert ask(running, 20, **{what: str(folder / what)}) == right(20)
        (broker,) = running.processes("broker")
        broker.kill()
        wait_for("another broker", lambda: running.processes("broker") not in ([], [broker]))
        assert ask(running, 40) == right(40)
        assert between(running) < 40 * 1000


def test_a_stage_on_the_cpu_is_sent_them_by_way_of_the_cpu(file: Path) -> None:
    file.write_text(file.read_text() + 'device = "cpu"\n')
    with deployed(file, env={"CUDA_VISIBLE_DEVICES": "0"}) as running:
        assert ask(running, 8) == right(8)
        assert between(running) > 8 * BYTES

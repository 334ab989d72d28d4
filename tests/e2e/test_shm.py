"""Shared memory in whole deployments: no copies, no growth, nothing lost with a process, nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import SERVICES, Deployed, deployed, up, wait_for, write_service

pytestmark = pytest.mark.unmeasured

ARRAYS = SERVICES / "arrays.toml"


@pytest.fixture
def arrays() -> Iterator[Deployed]:
    with deployed(ARRAYS) as running:
        yield running


def changed(folder: Path, *changes: tuple[str, str]) -> Path:
    """The same deployment with other settings."""
    text = ARRAYS.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "arrays.py").write_text((SERVICES / "arrays.py").read_text())
    return write_service(folder, text)


def ask_all(running: Deployed, requests: Sequence[dict[str, Any]], threads: int = 8) -> list[dict[str, Any]]:
    """The answers, in order; every one must be a right one."""
    with running.client() as client, ThreadPoolExecutor(threads) as pool:

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            answer = client.post("/inference", json=request)
            assert answer.status_code == 200, f"{request}: {answer.status_code} {answer.text}"
            got: dict[str, Any] = answer.json()
            assert got["n"] == request["n"]
            assert got["right"], request
            return got

        return list(pool.map(ask, requests))


def moved(running: Deployed, stage: str, direction: str = "in") -> dict[str, float]:
    """Bytes so far, by what carried them."""
    found = {}
    for name, value in running.metrics().items():
        if "_transport_bytes_total" in name and f'stage="{stage}"' in name and f'direction="{direction}"' in name:
            found["shm" if 'transport="shm"' in name else "socket"] = value
    return found


def arenas_of(running: Deployed) -> dict[str, int]:
    """The broker's arenas: their labels, and the bytes of memory that each takes."""
    (broker,) = running.processes("broker")
    found = {}
    for number in os.listdir(f"/proc/{broker.pid}/fd"):
        path = f"/proc/{broker.pid}/fd/{number}"
        try:
            label = os.readlink(path)
            if "memfd:stageline" in label:
                found[label] = os.stat(path).st_blocks * 512
        except OSError:
            continue  # closed since the listing
    return found


def held_by(pid: int) -> str:
    """What a process has mapped or open, as text."""
    try:
        held = Path(f"/proc/{pid}/maps").read_text()
        return held + "".join(f"{os.readlink(entry)}\n" for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return ""  # it has ended, or a descriptor was closed


def holders(labels: Sequence[str]) -> list[str]:
    """Processes that have one of these arenas mapped or open."""
    held = {pid: held_by(int(pid)) for pid in os.listdir("/proc") if pid.isdigit()}
    return [f"{pid}: {label}" for label in labels for pid in held if label in held[pid]]


def named(running: Deployed) -> list[str]:
    """Shared memory that has a name in the file system, which would outlive whoever made it."""
    held = "\n".join(held_by(process.pid) for process in running.processes()).splitlines()
    return [line for line in held if "/dev/shm/" in line]


def empty(running: Deployed) -> bool:
    return running.metrics()["engine_shared_memory_bytes"] == 0


@pytest.mark.parametrize("kind", ["array", "tensor", "bytes"])
def test_four_megabytes_travel_by_reference(arrays: Deployed, kind: str) -> None:
    answers = ask_all(arrays, [{"n": n, "kib": 4096, "kind": kind} for n in range(40)])
    came = moved(arrays, "check")
    assert came["shm"] == 40 * 4096 * 1024
    assert came["socket"] < 40 * 1000
    # More where a batch seemed to hang and was given to another worker as well, whose results nobody waited for.
    assert moved(arrays, "check", "out")["shm"] >= came["shm"]
    mapped = answers[-1]["arenas"]
    assert all(line.startswith(("r--s ", "rw-s ", "rw-p ")) for line in mapped)
    assert any(line.startswith("r--s ") for line in mapped)
    assert sum(line.startswith("rw-s ") for line in mapped) == 1  # its own
    if kind == "array":
        assert all(answer["writable"] and not answer["owns"] for answer in answers)
    assert {answer["type"] for answer in answers} == {{"array": "ndarray", "tensor": "Tensor", "bytes": "bytes"}[kind]}
    wait_for("all blocks to be released", lambda: empty(arrays))


def test_a_large_body_goes_to_the_first_stage_by_reference(arrays: Deployed) -> None:
    ask_all(arrays, [{"n": n, "kib": 1, "pad": "x" * 1_000_000} for n in range(10)])
    assert moved(arrays, "make")["shm"] > 10_000_000
    assert moved(arrays, "make", "out")["shm"] > 10_000_000
    wait_for("all blocks to be released", lambda: empty(arrays))


def test_memory_does_not_grow_with_the_number_of_items(arrays: Deployed) -> None:
    def run(first: int, count: int) -> int:
        ask_all(arrays, [{"n": n, "kib": 512, "pad": "x" * 70_000} for n in range(first, first + count)])
        wait_for("all blocks to be released", lambda: empty(arrays))
        return sum(arenas_of(arrays).values())

    def resident() -> int:
        workers = arrays.processes("worker")
        return sum(worker.memory_info().rss - worker.memory_info().shared for worker in workers)

    touched, before = run(0, 300), resident()
    again, after = run(1000, 2500), resident()
    # Bounded by what is under way at once (eight senders), not by what has passed: 1.2 GB.
    assert again <= max(2 * touched, 32 << 20)
    assert after <= before + (24 << 20)


def test_a_dead_producers_results_are_still_read(arrays: Deployed, folder: Path) -> None:
    """Killed while what it made waits for the next stage."""
    requests = [{"n": n, "kib": 1024, "slow": 0.1} for n in range(40)]
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.extend(ask_all(arrays, requests, threads=40)))
    asking.start()
    try:
        depth = 'engine_queue_depth{stage="check"}'  # a command that asks takes longer than they may wait
        wait_for("arrays to wait for the second stage", lambda: arrays.metrics()[depth] >= 4)
        for worker in arrays.processes("worker", stage="make"):
            worker.kill()
    finally:
        asking.join(60)
    assert len(answers) == len(requests)
    ask_all(arrays, requests[:8])  # into new arenas
    wait_for("all blocks to be released", lambda: empty(arrays))
    wait_for("the dead ones' arenas to end", lambda: len(arenas_of(arrays)) == 4)


@pytest.mark.parametrize("stage", ["make", "check"])
def test_a_worker_that_dies_under_an_array_is_replayed_with_it(folder: Path, stage: str) -> None:
    died = folder / "died"
    died.mkdir()
    with deployed(ARRAYS, env={"ARRAYS_DIED": str(died)}) as running:
        requests = [{"n": n, "kib": 1024, **({"die": stage} if n in (5, 17) else {})} for n in range(30)]
        ask_all(running, requests, threads=4)
        assert len(list(died.iterdir())) == 2
        wait_for("all blocks to be released", lambda: empty(running))


def test_a_killed_broker_costs_no_array(arrays: Deployed) -> None:
    requests = [{"n": n, "kib": 1024, "slow": 0.02, "pad": "x" * 200_000} for n in range(60)]
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.extend(ask_all(arrays, requests, threads=20)))
    asking.start()
    try:
        wait_for("some arrays", lambda: moved(arrays, "check").get("shm", 0) > 5 << 20)
        old = arenas_of(arrays)
        (broker,) = arrays.processes("broker")
        broker.kill()
    finally:
        asking.join(60)
    assert len(answers) == len(requests)
    ask_all(arrays, requests[:8])
    wait_for("all blocks to be released", lambda: empty(arrays))
    assert not set(old) & set(arenas_of(arrays))


def test_what_finds_no_room_goes_through_the_socket(folder: Path) -> None:
    with deployed(changed(folder, ("64 MiB", "1 MiB"))) as running:
        ask_all(running, [{"n": n, "kib": 600, "slow": 0.01} for n in range(60)], threads=16)
        came = moved(running, "check")
        assert came["shm"] >= 600 * 1024
        assert came["socket"] >= 600 * 1024
        wait_for("all blocks to be released", lambda: empty(running))


def test_it_can_be_turned_off(folder: Path) -> None:
    with deployed(changed(folder, ("64 MiB", "0"))) as running:
        answers = ask_all(running, [{"n": n, "kib": 1024, "pad": "x" * 100_000} for n in range(10)])
        assert all(answer["arenas"] == [] for answer in answers)
        assert arenas_of(running) == {}
        assert moved(running, "check")["shm"] == 0
        assert moved(running, "make")["shm"] == 0


@pytest.mark.parametrize("how", ["terminated", "supervisor killed", "all killed"])
def test_nothing_is_left_after_any_kind_of_stop(folder: Path, how: str) -> None:
    running = up(ARRAYS, folder=folder)
    try:
        requests = [{"n": n, "kib": 1024, "slow": 0.05} for n in range(100)]
        asking = threading.Thread(target=_ask_until_it_ends, args=(running, requests))
        asking.start()
        wait_for("arrays under way", lambda: moved(running, "check").get("shm", 0) > 0)
        labels = list(arenas_of(running))
        assert len(labels) == 4  # three workers and a frontend
        assert holders(labels)
        assert named(running) == []
        if how == "terminated":
            assert running.terminate() == 0
        elif how == "supervisor killed":
            running.signal(signal.SIGKILL)
        else:
            running.kill()
        running.gone()
        asking.join(30)
        assert holders(labels) == []
    finally:
        running.kill()


def _ask_until_it_ends(running: Deployed, requests: Sequence[dict[str, Any]]) -> None:
    try:
        ask_all(running, requests)
    except (AssertionError, httpx.HTTPError):
        pass  # it was stopped

"""Processes die, hang and come back; no client that was admitted notices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from harness import SERVICES, Deployed, deployed, wait_for, write_service
from load import Answer, Load, crowd, right

from tests.control_group import control_group

pytestmark = pytest.mark.unmeasured

CHAIN = SERVICES / "chain.toml"


def carried(folder: Path, threads: str, text: str | None = None) -> Path:
    """The chain (or another text of such a file) with its broker on one thread, or on one per stage."""
    (folder / "actor.py").write_text((SERVICES / "actor.py").read_text())
    text = CHAIN.read_text() if text is None else text
    return write_service(folder, text.replace("[engine]\n", f'[engine]\nthreads = "{threads}"\n', 1))


@pytest.fixture(params=["one", "stage"])
def threads(request: pytest.FixtureRequest) -> str:
    """What carries the broker: the same faults cost the same."""
    return str(request.param)


@pytest.fixture
def chain(folder: Path, threads: str) -> Iterator[Deployed]:
    with deployed(carried(folder, threads)) as running:
        assert running.status()["threads"] in (("one", "stage") if threads == "auto" else (threads,))
        yield running


def workers(running: Deployed, stage: str) -> list[psutil.Process]:
    return running.processes("worker", stage=stage)


def all_ready(running: Deployed) -> bool:
    return all(stage["ready"] == stage["wanted"] for stage in running.status()["stages"])


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_killed_worker_costs_no_request_and_comes_back(chain: Deployed, stage: str) -> None:
    with Load(f"{chain.url}/both") as load:
        for _ in range(2):
            wait_for("two workers", lambda: len(workers(chain, stage)) == 2 and all_ready(chain))
            load.flow(50)
            victim = workers(chain, stage)[0]
            victim.kill()
            victim.wait(10)
        wait_for("its replacement", lambda: len(workers(chain, stage)) == 2 and all_ready(chain))
        load.flow(50)
    assert load.wrong == []


def test_a_stopped_worker_costs_nobody_an_answer(folder: Path, threads: str) -> None:
    """To the broker it looks like one that is stuck in C code: what it has is computed elsewhere in time."""
    text = (SERVICES / "chain.toml").read_text().replace("timeout = 10.0", "timeout = 2.0\nkill_after = 2.0")
    with deployed(carried(folder, threads, text)) as chain:
        with Load(f"{chain.url}/both", threads=24) as load:
            load.flow(50)
            victim = workers(chain, "first")[0]
            victim.suspend()
            try:
                load.flow(200)
                wait_for("its replacement", lambda: not victim.is_running() and all_ready(chain))
                load.flow(100)
            finally:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.resume()
        assert load.wrong == []


def test_a_worker_that_was_stopped_and_wakes_up_answers_nobody_twice(chain: Deployed) -> None:
    with Load(f"{chain.url}/both", threads=24) as load:  # more than one worker can hold
        load.flow(50)
        victim = workers(chain, "first")[0]
        for _ in range(3):
            victim.suspend()
            try:
                load.flow(100)
            finally:
                victim.resume()
            load.flow(100)
    assert load.wrong == []
    assert victim.is_running()


def test_workers_that_are_killed_with_several_batches_in_one_cost_no_request(folder: Path, threads: str) -> None:
    """Values go to ``forward`` one by one, however many a worker is handed at once."""
    text = CHAIN.read_text().replace("max_batch_size = 8\n", "max_batch_size = 1\n")
    with deployed(carried(folder, threads, text)) as chain:

        def in_one() -> int:
            told = json.loads(chain.engine("why", "--stage", "first", "--last", "1000", "--json").stdout)
            return max([decision["batches"] for decision in told["decisions"]], default=0)

        with Load(f"{chain.url}/both", threads=48) as load:
            for _ in range(2):
                wait_for("two workers", lambda: len(workers(chain, "first")) == 2 and all_ready(chain))
                load.flow(200)  # by which it is known how short they are
                stopped = workers(chain, "first")
                for worker in stopped:
                    worker.suspend()
                wait_for("many to wait", lambda: chain.status()["stages"][0]["queued"] > 8)
                for worker in stopped:
                    worker.resume()
                load.flow(1)
                stopped[0].kill()
                stopped[0].wait(10)
            load.flow(200)
            assert in_one() > 1
        assert chain.status()["stages"][0]["mean_batch"] == 1.0
    assert load.wrong == []


def test_poison_fails_alone_naming_its_stage(folder: Path, threads: str) -> None:
    with deployed(carried(folder, threads), env={"STAGELINE_JOURNAL": str(folder / "journal")}) as chain:
        with Load(f"{chain.url}/both", threads=4) as load, chain.client() as client:
            load.flow(20)
            poison = {"id": "poison", "acts": {"first": {"do": "die"}}}
            answer = client.post("/both", json=poison)
            assert answer.status_code == 422
            assert answer.headers["x-should-retry"] == "false"
            assert "first" in answer.text
            load.flow(50)
            for _ in range(20):  # clients that do not listen
                again = client.post("/both", json=poison)
                assert (again.status_code, again.headers["x-should-retry"]) == (422, "false")
            load.flow(50)
            other = {"id": "cured", "acts": {"first": {"do": "pass"}}}
            assert client.post("/both", json=other).status_code == 200
        assert load.wrong == []
        begun = (folder / "journal").read_text().splitlines()
        assert sum(" poison die " in line for line in begun) == 3  # max_attempts, and none for those that came again


@pytest.mark.parametrize("threads", ["auto"])  # it has no part in this
def test_a_worker_that_is_of_no_more_use_is_replaced_and_its_batch_is_answered(chain: Deployed, folder: Path) -> None:
    with Load(f"{chain.url}/both") as load, chain.client() as client:
        load.flow(50)
        before = {process.pid for process in workers(chain, "second")}
        for n in range(2):
            act = {"do": "break", "once": str(folder / f"broken-{n}")}
            answer = client.post("/both", json={"id": n, "acts": {"second": act}})
            assert answer.status_code == 200
            quits = client.post("/both", json={"id": n, "acts": {"first": {"do": "quit"}}})
            assert (quits.status_code, quits.text) == (500, "inference internal error")
        load.flow(50)
        wait_for("its replacement", lambda: len(workers(chain, "second")) == 2 and all_ready(chain))
        load.flow(50)
    assert load.wrong == []
    assert {process.pid for process in workers(chain, "second")} != before
    assert chain.log.count("this worker can compute no more and is replaced: its device is gone") == 2
    assert [line for line in chain.log.splitlines() if "first-" in line and "died" in line] == []


def test_a_worker_that_hangs_in_c_is_replaced(folder: Path, threads: str) -> None:
    text = (SERVICES / "table.toml").read_text().replace("kill_after = 30.0", "kill_after = 1.0")
    with deployed(carried(folder, threads, text)) as running, running.client() as client:
        (victim,) = workers(running, "second")
        answer = client.post("/second", json={"id": 1, "acts": {"second": {"do": "hold_gil"}}})
        assert (answer.status_code, answer.text) == (408, "inference timeout")
        assert answer.elapsed.total_seconds() < 2.5
        wait_for("its end", lambda: not victim.is_running())
        wait_for("its replacement", lambda: all_ready(running))
        assert client.post("/second", json={"id": 2}).status_code == 200


@pytest.mark.parametrize("threads", ["auto"])  # it has no part in this
def test_a_broker_that_is_stopped_for_good_is_replaced_and_no_request_is_refused(chain: Deployed) -> None:
    """Nobody is told by the kernel: who is found stopped is killed by whoever started it. Meanwhile requests come as
    before, and all of them have the time to wait."""
    (broker,) = chain.processes("broker")
    bodies = [{"id": n} for n in range(150)]
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.extend(crowd(f"{chain.url}/both", bodies, every_s=0.03)))
    asking.start()
    try:
        wait_for("the first answers", lambda: chain.status()["stages"][1]["workers"][0]["items"] > 0)
        broker.suspend()
        began = time.monotonic()
        wait_for("its end", lambda: not broker.is_running() or broker.status() == "zombie")
        assert time.monotonic() - began < 5.0
    finally:
        asking.join(30)
    assert [answer.text for sent, answer in zip(bodies, answers, strict=True) if not right(sent, answer)] == []
    wait_for("everybody", lambda: all_ready(chain))


@pytest.mark.parametrize("threads", ["auto"])  # it has no part in this
def test_a_frontend_process_that_is_stopped_for_good_is_replaced(chain: Deployed) -> None:
    stopped = [
        process for process in chain.processes("frontend") if process.ppid() != chain.pid
    ]  # by gunicorn's master
    for process in stopped:
        process.suspend()
    began = time.monotonic()
    for process in stopped:
        wait_for("its end", lambda process=process: not process.is_running() or process.status() == "zombie")
    assert time.monotonic() - began < 5.0
    with Load(f"{chain.url}/both", threads=2) as load:
        load.flow(20)
    assert load.wrong == []
    wait_for("everybody", lambda: all_ready(chain))


@pytest.mark.parametrize("threads", ["auto"])  # it has no part in this
def test_idle_workers_that_are_stopped_are_noticed_soon_and_replaced(chain: Deployed) -> None:
    took_s = []
    while not took_s or (took_s[-1] > 3.5 and len(took_s) < 3):  # on a machine that did not let the watcher look
        stopped = workers(chain, "first")
        began = time.monotonic()
        for process in stopped:
            process.suspend()
        for process in stopped:
            wait_for("its end", lambda process=process: not process.is_running() or process.status() == "zombie")
        took_s.append(time.monotonic() - began)
        wait_for("everybody", lambda: len(workers(chain, "first")) == 2 and all_ready(chain))
    assert took_s[-1] <= 3.5, took_s
    with Load(f"{chain.url}/both", threads=2) as load:
        load.flow(20)
    assert load.wrong == []


def stop_and_go(running: Deployed, within_s: float) -> None:
    """Let all of its processes run a tenth of the time."""
    processes = running.processes()
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        for process in processes:
            process.suspend()
        time.sleep(0.45)
        for process in processes:
            process.resume()
        time.sleep(0.05)


def a_tenth_of_a_processor(running: Deployed, within_s: float) -> None:
    """Let the kernel see to it that all of its processes together get no more."""
    tight = {"cpu.max": "10000 100000"}, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "10000"}
    with control_group("cpu", *tight) as group:
        for process in running.processes():
            (group / "cgroup.procs").write_text(str(process.pid))
        time.sleep(within_s)
        for process in running.processes():
            (group.parent / "cgroup.procs").write_text(str(process.pid))


@pytest.mark.parametrize("threads", ["auto"])
@pytest.mark.parametrize("starve", [stop_and_go, a_tenth_of_a_processor])
def test_a_starved_machine_is_taken_for_no_hang(chain: Deployed, starve: Callable[[Deployed, float], None]) -> None:
    """For longer than anybody is given who hangs: nobody is replaced, and requests are answered late."""
    before = {process.pid for process in chain.processes()}
    bodies = [{"id": n} for n in range(250)]
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.extend(crowd(f"{chain.url}/both", bodies, every_s=0.02)))
    asking.start()
    try:
        starve(chain, 5.0)
    finally:
        asking.join(60)
    assert [answer.text for sent, answer in zip(bodies, answers, strict=True) if not right(sent, answer)] == []
    assert {process.pid for process in chain.processes()} == before


@pytest.mark.parametrize("threads", ["auto"])
@pytest.mark.parametrize(("kind", "stage"), [("broker", ""), ("worker", "first")])
def test_who_is_killed_again_and_again_costs_no_request(chain: Deployed, kind: str, stage: str) -> None:
    with Load(f"{chain.url}/both", threads=4) as load:
        for _ in range(6):
            (victim, *_) = wait_for("a victim", lambda: chain.processes(kind, stage=stage))
            load.flow(20)
            victim.kill()
            victim.wait(10)
        load.flow(20)
    assert load.wrong == []


@pytest.mark.parametrize("threads", ["auto"])
def test_a_spare_worker_stands_in_at_once_where_loading_takes_long(folder: Path, threads: str) -> None:
    hold = folder / "hold"
    text = f"""
[engine]
name = "spared"
[[stage]]
name = "first"
worker = "actor:Actor"
spare = 1
args = {{ name = "first", held_by = "{hold}" }}
"""
    with deployed(carried(folder, threads, text)) as running, running.client() as client:

        def states() -> dict[int, str]:
            return {one["slot"]: one["state"] for one in running.status()["stages"][0]["workers"]}

        assert states() == {1: "ready", 2: "spare"}
        hold.touch()  # who is started from now on never becomes ready
        os.kill(
            next(one["pid"] for one in running.status()["stages"][0]["workers"] if one["slot"] == 1), signal.SIGKILL
        )
        assert client.post("/inference", json={"id": 1}).status_code == 200
        assert client.get("/readyz").status_code == 200
        wait_for("the other in its place", lambda: states().get(2) == "ready")
        hold.unlink()
        wait_for("a new one", lambda: states() == {1: "ready", 2: "spare"})


def test_the_brokers_death_costs_no_request(chain: Deployed) -> None:
    with Load(f"{chain.url}/both", threads=4) as load:
        load.flow(50)
        (broker,) = chain.processes("broker")
        broker.kill()
        wait_for("another broker", lambda: chain.processes("broker") not in ([], [broker]))
        load.flow(50)
    assert load.wrong == []


@pytest.mark.parametrize("threads", ["auto"])  # it has no part in this
def test_a_killed_frontend_is_started_again(chain: Deployed) -> None:
    for process in chain.processes("frontend"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()

    def served() -> bool:
        try:
            return httpx.post(f"{chain.url}/both", json={"id": 1}, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for("an answer", served, within_s=30)


def test_a_client_that_leaves_takes_its_request_with_it(folder: Path, threads: str) -> None:
    journal = folder / "journal"
    with deployed(carried(folder, threads), env={"STAGELINE_JOURNAL": str(journal)}) as chain:
        busy = [{"id": f"busy-{n}", "acts": {"second": {"do": "sleep", "s": 2.0}}} for n in range(2)]
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.extend(crowd(f"{chain.url}/both", busy)))
        asking.start()
        try:
            wait_for("both workers to be busy", lambda: _begun(journal, "second busy-") == 2)
            where = urlsplit(chain.url)
            body = b'{"id": "gone"}'
            head = b"POST /both HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
            leavers = [socket.create_connection((where.hostname or "", where.port or 0), timeout=10) for _ in range(6)]
            for leaver in leavers:
                leaver.sendall(head + body)
            wait_for("them to reach the second stage", lambda: _begun(journal, "first gone") == 6)
            for leaver in leavers:
                leaver.close()
            wait_for("their cancellation", lambda: chain.metrics()["engine_remaining_task"] <= 2, within_s=1.5)
        finally:
            asking.join(30)
        assert all(right(sent, got) for sent, got in zip(busy, answers, strict=True))
        with chain.client() as client:
            assert client.post("/both", json={"id": "after"}).status_code == 200
        assert _begun(journal, "second gone") == 0


def _begun(journal: Path, start: str) -> int:
    if not journal.exists():
        return 0
    return sum(line.startswith(start) for line in journal.read_text().splitlines())


def test_a_worker_that_leaves_orphans_is_swept(folder: Path) -> None:
    """What a worker of the user started does not outlive it."""
    code = """
import subprocess, sys
from engine import Worker

class Parent(Worker):
    def __init__(self):
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    def forward(self, data):
        return self.child.pid
"""
    toml = '[engine]\nname = "orphans"\n[[stage]]\nname = "parent"\nworker = "service:Parent"\n'
    with deployed(write_service(folder, toml, code)) as running, running.client() as client:
        orphan = client.post("/inference", json=0).json()
        assert psutil.pid_exists(orphan)
        os.kill(running.status()["stages"][0]["workers"][0]["pid"], signal.SIGKILL)
        wait_for("the orphan's end", lambda: not psutil.pid_exists(orphan))

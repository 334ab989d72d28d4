"""What a status tells of the last seconds: of stages, workers, routes and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import msgspec
import pytest

from engine import usage
from engine.broker import lately
from engine.core.batching import Policy
from engine.core.front import TOLD_MOST
from engine.core.messages import FrontendBeat, Status, WorkerBeat
from engine.core.stage import StageSpec
from engine.core.stats import Histogram
from engine.metrics import counter, histogram, pack
from tests.core.twin import Twin, topology
from tests.engine.test_reports import told

SPEC = StageSpec("s0", 2, Policy(4), timeout_s=20.0, kill_after_s=5.0, max_queue_bytes=1 << 20)


def second(twin: Twin) -> None:
    """What the parts do once in one."""
    twin.pass_time(1.0)
    twin.front.measure(twin.now)
    for stage in twin.stages:
        stage.measure(twin.now)
        for key in stage.workers:
            stage.beat(WorkerBeat(key, stage.workers[key].families), twin.now)


def status(twin: Twin) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(twin, "status"))
    return found


def test_rates_latencies_and_busy_shares_are_of_the_last_seconds() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    second(twin)
    for turn in range(20):
        twin.submit(2, first=1 + 2 * turn)
        twin.pass_time(0.25)
        twin.finish(worker, compute_us=200_000)
        second(twin)
    (stage,) = status(twin)["stages"]
    recent = stage["lately"]
    assert recent["arrived_s"] == recent["items_s"] == pytest.approx(1.6, abs=0.2)
    assert recent["batches_s"] == pytest.approx(0.8, abs=0.1)
    assert recent["mean_batch"] == 2.0
    assert recent["compute"] == {"p50_ms": 200.0, "p99_ms": 200.0}
    assert recent["queue"] == {"p50_ms": 0.0, "p99_ms": 0.0}
    assert sum(recent["reasons"].values()) == recent["batches"] == 20  # as few as are in the window are not enough
    (one,) = stage["workers"]
    assert recent["busy"] == one["lately"]["busy"] == pytest.approx(0.2, abs=0.03)
    assert status(twin)["rates"]["answered_s"] == pytest.approx(1.6, abs=0.2)
    for _ in range(20):
        second(twin)
    assert status(twin)["stages"][0]["lately"]["arrived_s"] == 0.0


def test_a_worker_in_a_long_batch_is_busy_before_that_is_done() -> None:
    twin = Twin(topology(), [SPEC])
    twin.worker()
    second(twin)
    twin.submit(1)
    for _ in range(12):
        second(twin)
    (one,) = status(twin)["stages"][0]["workers"]
    assert one["lately"]["busy"] == pytest.approx(1.0, abs=0.01)


def test_workers_tell_of_their_processes_and_slots_keep_count_of_deaths() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    machine = twin.stages[0]
    for second_ in range(3):
        machine.beat(WorkerBeat(worker.key, resident_bytes=5 << 20, cpu_us=second_ * 500_000), twin.now)
    machine.exited(worker.key, twin.now)
    heir = twin.worker()
    machine.beat(WorkerBeat(heir.key, resident_bytes=6 << 20), twin.now)
    (one,) = status(twin)["stages"][0]["workers"]
    assert (one["deaths"], one["resident_bytes"], one["up_s"]) == (1, 6 << 20, 0.0)


def beat(answers: int, slow: int) -> bytes:
    """What a frontend has counted: so many answers, of which some took 100 ms, and the others 1 ms."""
    durations = Histogram((0.001, 0.01, 0.1, 1.0))
    durations.counts = [answers - slow, 0, slow, 0, 0]
    return pack(
        [
            counter("engine_throughput", "d", [({"code": "200", "endpoint": "/r0"}, answers)]),
            histogram("engine_request_duration_second", "d", [({"endpoint": "/r0"}, durations)]),
        ]
    )


def test_of_routes_the_frontends_know() -> None:
    twin = Twin(topology(), [SPEC])
    twin.introduce(b"f")
    for second_ in range(30):
        said = beat(1000, 1000) if second_ < 15 else beat(1000 + 100 * (second_ - 15), 1000)
        twin.front.beat(
            b"f", FrontendBeat(said, 7 << 20, second_ * 250_000, "host-1", "http://127.0.0.1:1", "1.0"), twin.now
        )
        second(twin)
    whole = status(twin)
    (route,) = whole["routes"]
    assert (route["path"], route["stages"], route["answers"]) == ("/r0", ["s0"], {"200": 2400})
    assert route["answers_s"] == pytest.approx(100.0, abs=1)
    assert route["p50_ms"] < 1.0  # what took long took it long ago
    assert route["p99_ms"] <= 1.0
    (one,) = whole["frontends"]
    assert (one["url"], one["node"], one["version"], one["resident_bytes"]) == (
        "http://127.0.0.1:1", "host-1", "1.0", 7 << 20,
    )  # fmt: skip
    assert one["cpu"] == pytest.approx(0.25, abs=0.03)


def test_what_a_frontend_says_is_read_once_however_many_ask_and_never_if_nobody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[bytes] = []
    unpacked = lately._unpacked

    def watched(packed: bytes, namespace: str) -> Any:
        read.append(packed)
        return unpacked(packed, namespace)

    monkeypatch.setattr(lately, "_unpacked", watched)
    twin = Twin(topology(), [SPEC])
    twin.introduce(b"f")
    for number in range(30):
        twin.front.beat(b"f", FrontendBeat(beat(100 * number, number)), twin.now)
        second(twin)
    assert read == []
    first = status(twin)["routes"]
    assert len(read) == 2  # the newest, and the one from which on it counts
    assert all(status(twin)["routes"] == first for _ in range(10))
    assert len(read) == 2
    for number in range(30, 60):
        twin.front.beat(b"f", FrontendBeat(beat(100 * number, number)), twin.now)
        for _ in range(3):
            (route,) = status(twin)["routes"]
        assert route["answers"] == {"200": 100 * number}
        second(twin)
    assert len(read) == len(set(read))


@pytest.mark.parametrize(
    "said",
    [
        [["engine_throughput", "counter", "d", [["engine_throughput_total", {"endpoint": "/r0"}, float("inf")]]]],
        [["engine_throughput", "counter", "d", [["engine_throughput_total", {"endpoint": "/r0"}, float("nan")]]]],
        [["engine_throughput", "counter", "d", [["engine_throughput_total", {"endpoint": 7}, 1.0]]]],
        [["engine_throughput", "counter", "d", 7]],
        [["engine_throughput", "counter", "d", [[]]]],
        [["engine_throughput"]],
        {"engine_throughput": 1},
    ],
    ids=str,
)
def test_what_cannot_be_read_costs_its_own_process_alone(said: Any) -> None:
    twin = Twin(topology(), [SPEC])
    for peer, one in ((b"bad", msgspec.msgpack.encode(said)), (b"good", beat(5, 0))):
        twin.introduce(peer)
        twin.front.beat(peer, FrontendBeat(one), twin.now)
    assert status(twin)["routes"][0]["answers"] == {"200": 5}


def test_what_an_older_frontend_or_a_broken_one_says_is_no_trouble() -> None:
    twin = Twin(topology(), [SPEC])
    for peer, said in ((b"old", b""), (b"broken", b"\xc1"), (b"other", pack([counter("x", "d", [({}, 1)])]))):
        twin.introduce(peer)
        twin.front.beat(peer, FrontendBeat(said), twin.now)
    (route,) = status(twin)["routes"]
    assert (route["answers"], route["answers_s"], route["p99_ms"]) == ({}, 0.0, 0.0)


def test_of_what_a_frontend_counts_no_more_is_kept_than_it_may_well_be() -> None:
    twin = Twin(topology(), [SPEC])
    twin.introduce(b"f")
    huge = pack([counter("x", "d", [({"label": "x" * TOLD_MOST}, 1)])])
    for _ in range(5):
        twin.front.beat(b"f", FrontendBeat(huge), twin.now)
        second(twin)
    (frontend,) = twin.front.frontends.values()
    assert frontend.families == huge  # for /metrics
    assert frontend.told.oldest(twin.now) is None


def test_failures_are_told_as_their_clients_were_told() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    twin.submit(1)
    twin.finish(worker, statuses={"r1": Status.FAILED})
    twin.pass_time(2.0)
    whole = status(twin)
    assert whole["failed"] == {"s0": {"500": 1}}
    assert whole["errors"] == [
        {
            "age_s": 2.0, "stage": "s0", "route": "/r0", "status": 500, "message": "body1+0", "count": 1,
            "requests": ["r1"],
        }
    ]  # fmt: skip


def test_a_process_knows_what_it_uses_and_where_its_log_goes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = usage.own()
    assert before.resident_bytes > 1 << 20
    assert usage.own().cpu_us >= before.cpu_us
    assert usage.version()
    with open(tmp_path / "log", "w") as file:
        assert usage.log_place(file.fileno()) == str(tmp_path / "log")
        about = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
        assert usage.log_place(file.fileno()) == "journal"
        number = file.fileno()
    assert usage.log_place(number) == "nowhere"
    reading, writing = os.pipe()
    assert usage.log_place(writing) == "a pipe"
    os.close(reading)
    os.close(writing)
    with open(os.devnull) as file:
        assert usage.log_place(file.fileno()) == "nowhere"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it there")
def test_a_process_is_told_alike_from_inside_and_outside() -> None:
    before = usage.whole()
    with open(os.devnull) as _:
        inside, outside = usage.whole(), usage.of(os.getpid())
        assert inside.descriptors == outside.descriptors == before.descriptors + 1
    assert inside.descriptors_most == outside.descriptors_most
    assert inside.began_s == outside.began_s
    assert 0 <= time.time() - inside.began_s < 86_400
    assert outside.resident_bytes == pytest.approx(inside.resident_bytes, rel=0.2)
    assert outside.cpu_us == pytest.approx(inside.cpu_us, abs=1e5)


def test_of_a_process_that_is_not_there_nothing_is_told() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert usage.of(ended.pid) == usage.Process()

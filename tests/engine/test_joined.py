"""What several brokers answer, as one answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.core.about import pack_all, unpack_all
from engine.errors import ProtocolError
from engine.joined import join
from engine.metrics import Sources, counter, pack, pack_sources, unpack, unpack_sources
from engine.status import table


def stage(name: str, **told: Any) -> dict[str, Any]:
    known = {
        "name": name, "wanted": 1, "ready": 1, "starting": 0, "queued": 2, "in_flight": 3, "queued_bytes": 10,
        "oldest_ms": 5.0, "replayed": 1, "deaths": 1, "mean_batch": 2.0, "batches_by_reason": {"full": 2},
        "workers": [{"slot": 1, "pid": 10, "state": "ready", "batches": 2, "items": 4}],
        "deaths_by_cause": {"oom": 1}, "not_fed": "", "arrived": 4, "learned": {"ms": {"1": 5.0}},
    }  # fmt: skip
    return {**known, **told}


def status(**told: Any) -> bytes:
    known = {
        "name": "n", "epoch": 1, "uptime_s": 9.0, "threads": "one", "draining": False, "admitted": 1, "capacity": 5,
        "admitted_bytes": 7, "stages": [stage("a")], "frontends": [{"name": "f", "pid": 3, "pending": 1}],
    }  # fmt: skip
    return json.dumps({**known, **told}).encode()


def test_status_adds_up() -> None:
    other = stage("a", oldest_ms=8.0, mean_batch=5.0, batches_by_reason={"full": 1, "idle": 1}, not_fed="it kills")
    told = json.loads(join("status", [status(), None, status(uptime_s=4.0, draining=True, stages=[other])]))
    assert (told["admitted"], told["capacity"], told["admitted_bytes"]) == (2, 10, 14)
    assert (told["uptime_s"], told["draining"], told["cells"], told["cells_answering"]) == (4.0, False, 3, 2)
    (one,) = told["stages"]
    assert (one["wanted"], one["queued"], one["deaths"], one["oldest_ms"]) == (2, 4, 2, 8.0)
    assert one["batches_by_reason"] == {"full": 3, "idle": 1}
    assert (one["mean_batch"], one["deaths_by_cause"], one["not_fed"]) == (3.5, {"oom": 2}, "it kills")
    assert len(one["workers"]) == 2
    assert (one["arrived"], one["learned"]) == (8, {"ms": {"1": 5.0}})
    assert told["frontends"] == [{"name": "f", "pid": 3, "pending": 2}]
    assert "2 of 3 cells answer" in table(json.dumps(told).encode())
    busy = status(demand={"a": 1.5}, stages=[stage("a", demand_workers=1.5)])
    told = json.loads(join("status", [busy, busy]))
    assert (told["demand"], told["stages"][0]["demand_workers"]) == ({"a": 3.0}, 3.0)
    refused = [status(refused={"capacity": 2}, stages=[stage("a", refused={"hopeless": 3})])] * 2
    told = json.loads(join("status", [*refused, status()]))  # an older one does not tell
    assert (told["refused"], told["stages"][0]["refused"]) == ({"capacity": 4}, {"hopeless": 6})


def test_a_stage_that_could_not_be_told_of_says_so() -> None:
    broken = {"name": "a", "error": "not told"}
    told = json.loads(join("status", [status(), status(stages=[broken])]))
    assert told["stages"] == [broken]
    assert "2 cells" in table(json.dumps(told).encode())
    told = json.loads(join("status", [status(), status(error="not told", stages=[])]))
    assert told["error"] == "not told"


def test_idle_stages_have_no_mean() -> None:
    idle = stage("a", batches_by_reason={}, mean_batch=0.0)
    told = json.loads(join("status", [status(stages=[idle])] * 2))
    assert told["stages"][0]["mean_batch"] == 0.0


def test_metrics_bear_their_cell_and_a_frontend_counts_once() -> None:
    def sources(admitted: int, frontend: bytes, slot: int) -> bytes:
        return pack_sources(
            Sources(
                broker=pack([counter("admitted", "d", [({}, admitted)])]),
                frontends=[("f", frontend)],
                workers=[("a", slot, b"w")],
                retired=pack([counter("gone", "d", [({}, 1)]), counter("admitted", "d", [({}, 1)])]),
            )
        )

    told = unpack_sources(join("metrics", [sources(2, b"mine", 1), sources(3, pack([]), 2)]))
    (family,) = unpack(told.broker)
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"cell": "1"}, 2.0), ({"cell": "2"}, 3.0)]
    assert told.frontends == [("f", b"mine")]
    assert told.workers == [("a", 1, b"w"), ("a", 2, b"w")]
    kept = {
        family.name: [(sample.labels, sample.value) for sample in family.samples] for family in unpack(told.retired)
    }
    assert kept == {
        "gone": [({}, 2.0)],  # of a frontend or a user's, and so of no cell
        "admitted": [({"cell": "1"}, 1.0), ({"cell": "2"}, 1.0)],
    }


def test_a_process_of_no_cell_is_told_of_once() -> None:
    def sources(frontends: int) -> bytes:
        told = [({"process": "frontend", "connection": f"{number}"}, 1.0) for number in range(frontends)]
        return pack_sources(Sources(broker=pack([counter("cpu", "d", [({"process": "broker"}, 5.0), *told])])))

    (family,) = unpack(unpack_sources(join("metrics", [None, sources(2), sources(3)])).broker)
    told = [(one.labels["process"], one.labels["cell"]) for one in family.samples]
    assert told == [("broker", "2"), ("frontend", "2"), ("frontend", "2"), ("broker", "3")]


def test_the_first_description_of_a_stage_counts() -> None:
    told = unpack_all(join("about", [pack_all({"a": b"1"}), pack_all({"a": b"2", "b": b"3"})]))
    assert told == {"a": b"1", "b": b"3"}


@pytest.mark.parametrize(
    ("what", "error"), [("metrics", ProtocolError), ("about", ProtocolError), ("status", ValueError)]
)
def test_what_cannot_be_read_is_an_error(what: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        join(what, [b"\xff", None])


def test_what_is_told_of_the_last_seconds_adds_up_or_is_the_worst() -> None:
    def lately(rate: float, p50: float, p99: float) -> dict[str, Any]:
        span = {"p50_ms": p50, "p99_ms": p99}
        return {
            "arrived_s": rate, "items_s": 2 * rate, "batches_s": rate, "failed_s": 0.0, "mean_batch": 2.0, "busy": 0.5,
            "batches": 10, "reasons": {"full": 10}, "queue": span, "compute": span,
        }  # fmt: skip

    def told(rate: float, age_s: float, **latency: float) -> bytes:
        return status(
            stages=[stage("a", lately=lately(rate, **latency))],
            rates={"admitted_s": rate},
            routes=[{"path": "/a", "stages": ["a"], "answers": {"200": 3}, "answers_s": rate, "p50_ms": 1.0}],
            failed={"a": {"500": 1}},
            errors=[
                {"age_s": age_s, "stage": "a", "message": "m", "count": 2, "requests": [f"r{age_s}"]},
                {"age_s": age_s + 10, "stage": "a", "message": f"only {age_s}", "count": 1, "requests": []},
            ],
            brokers=[{"pid": 1}],
        )

    both = [told(10.0, 5.0, p50=1.0, p99=2.0), told(30.0, 3.0, p50=5.0, p99=9.0), status()]  # an older one beside
    whole = json.loads(join("status", both))
    (one,) = whole["stages"]
    recent = one["lately"]
    assert (recent["arrived_s"], recent["items_s"], recent["batches"], recent["reasons"]) == (40, 80, 20, {"full": 20})
    assert recent["queue"] == {"p50_ms": 4.0, "p99_ms": 9.0}
    assert (recent["busy"], recent["mean_batch"]) == (0.5, 2.0)
    assert [worker["cell"] for worker in one["workers"]] == [1, 2, 3]
    assert whole["rates"] == {"admitted_s": 40.0}
    assert whole["routes"] == [
        {"path": "/a", "stages": ["a"], "answers": {"200": 6}, "answers_s": 40.0, "p50_ms": 1.0, "p99_ms": 0.0}
    ]
    assert whole["failed"] == {"a": {"500": 2}}
    assert [(error["age_s"], error["message"], error["count"], error["requests"]) for error in whole["errors"]] == [
        (3.0, "m", 4, ["r3.0", "r5.0"]), (13.0, "only 3.0", 1, []), (15.0, "only 5.0", 1, []),
    ]  # fmt: skip
    assert [broker["cell"] for broker in whole["brokers"]] == [1, 2]


def test_cells_of_an_older_version_are_no_trouble() -> None:
    whole = json.loads(join("status", [status(), status()]))
    assert (whole["rates"], whole["routes"], whole["errors"], whole["failed"]) == ({}, [], [], {})
    assert "lately" not in whole["stages"][0]

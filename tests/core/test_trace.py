"""What is kept of the last decisions: what was waiting, what was predicted, what happened."""

from __future__ import annotations

import json

import pytest

from engine.broker.report import BrokerStatus, Deployed, answer, stage_part
from engine.core import meta, trace
from engine.core.batching import Policy
from engine.core.deaths import Death
from engine.core.front import FrontSpec
from engine.core.messages import Ask, Ready
from engine.core.released import Released
from engine.core.stage import StageSpec
from engine.core.trace import (
    DIED,
    GIVEN,
    IDS_S,
    KEPT,
    LOOK_EVERY,
    METAS_MOST,
    METAS_OF_ONE,
    Refusals,
    Releases,
    has,
    ids_of,
    is_near,
)
from tests.core.twin import Twin, topology

SPEC = StageSpec("s0", 1, Policy(2), timeout_s=3.0, kill_after_s=1.0, max_queue_bytes=1 << 20)


def batch(at: float) -> Released:
    return Released(1, {}, at, "full", 1, 1, 0.0, 1, 0, 0.01)


def leave(releases: Releases, number: int, at: float, metas: list[bytes]) -> Released:
    """As a stage does."""
    told = releases.rows[number % KEPT] = batch(at)
    if releases.has_ids:
        releases.hold(number, metas)
    elif not number % LOOK_EVERY:
        releases.look(number)
    return told


# --- the rings -------------------------------------------------------------------------------------------------------


def test_the_last_thousand_are_kept_in_their_order() -> None:
    releases, refusals = Releases(), Refusals()
    for number in range(1, 2 * KEPT + 8):
        leave(releases, number, float(number), [])
        refusals.add(float(number), "capacity")
    for kept in (releases.entries(), refusals.entries()):
        assert [entry.at for entry in kept] == [float(number) for number in range(KEPT + 8, 2 * KEPT + 8)]


def test_requests_are_found_by_their_ids_and_by_nothing_like_them() -> None:
    releases = Releases()
    told = leave(releases, 1, 1.0, [meta.pack("abc", b"head"), meta.pack("d")])
    assert ids_of(told) == ["abc", "d"]
    assert [has(told, meta.pack(one)) for one in ("abc", "d", "ab", "abcd", "")] == [True, True, False, False, False]


def test_of_a_large_batch_some_can_be_asked_for() -> None:
    told = leave(Releases(), 1, 1.0, [meta.pack(f"r{n}") for n in range(100)])
    assert ids_of(told) == [f"r{n}" for n in range(METAS_OF_ONE)]


def test_ids_are_held_only_while_somebody_could_ask_in_time() -> None:
    releases, at, number = Releases(), 0.0, 0

    def go_on(batches: int, pause_s: float) -> Released:
        nonlocal at, number
        for _ in range(batches):
            at, number = at + pause_s, number + 1
            told = leave(releases, number, at, [meta.pack(f"r{number}")])
        return told

    assert ids_of(go_on(KEPT - 1, 0.0001)) == [f"r{KEPT - 1}"]  # nothing is known of how many there will be
    assert ids_of(go_on(KEPT, 0.0001)) == []
    slow = 2 * IDS_S / KEPT
    assert ids_of(go_on(KEPT + LOOK_EVERY, slow)) == [f"r{number}"]
    assert ids_of(go_on(1, slow)) == [f"r{number}"]


def test_ids_do_not_take_more_memory_than_they_may() -> None:
    large = METAS_MOST // 50
    releases, refusals = Releases(), Refusals()
    for number in range(1, 200):
        leave(releases, number, float(number), [meta.pack(f"r{number}", bytes(large))])
        refusals.add(float(number), "capacity", meta=meta.pack(f"r{number}", bytes(large)))
        for entries in (releases.entries(), refusals.entries()):
            assert sum(len(one) for entry in entries for one in entry.metas) <= METAS_MOST
    for entries in (releases.entries(), refusals.entries()):
        assert (len(entries), ids_of(entries[-1]), ids_of(entries[0])) == (199, ["r199"], [])


def test_refusals_of_one_instant_and_reason_are_one_decision() -> None:
    refusals = Refusals()
    for number in range(40):
        refusals.add(1.0, "predicted", route=0, waiting=7, needs_s=0.5, had_s=0.2, meta=meta.pack(f"r{number}"))
    refusals.add(1.0, "capacity", route=0)
    refusals.add(2.0, "capacity", route=0)
    first, second, third = refusals.entries()
    assert (first.count, first.waiting, first.needs_s, first.had_s, len(first.metas)) == (40, 7, 0.5, 0.2, METAS_OF_ONE)
    assert (second.at, second.reason, third.at, third.metas) == (1.0, "capacity", 2.0, ())


@pytest.mark.parametrize(
    ("predicted", "took", "good"), [(1.2, 1.0, True), (0.8, 1.0, True), (1.3, 1.0, False), (0.7, 1.0, False)]
)
def test_a_good_prediction_is_off_by_a_fifth_at_most(predicted: float, took: float, good: bool) -> None:
    assert is_near(predicted, took) is good


# --- what a stage fills in -------------------------------------------------------------------------------------------


def test_a_batch_is_told_from_its_release_to_its_end() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    twin.submit(1)
    twin.now += 0.1
    twin.submit(5, first=2)  # two go in advance, three wait
    first, second = twin.stages[0].trace.entries()
    assert (first.reason, first.count, first.waiting, first.ahead, first.slot) == ("idle", 1, 1, 0, 1)
    assert (second.reason, second.count, second.ahead, ids_of(second)) == ("full", 2, 1, ["r2", "r3"])
    assert (first.took_s, first.is_known) == (-1.0, False)
    twin.now += 0.1
    twin.finish(worker)
    assert first.took_s == pytest.approx(0.2)
    third = twin.stages[0].trace.entries()[2]
    assert (third.count, third.waiting, third.waited_s) == (2, 3, pytest.approx(0.1))
    assert third.expected_s == pytest.approx(0.2)  # as the first took
    twin.now += 0.05
    twin.finish(worker, statuses={"r2": 500, "r3": 500})
    assert (second.took_s, second.failed, second.is_good) == (pytest.approx(0.05), 2, False)
    twin.now += 0.2
    twin.finish(worker, statuses={"r4": 400})
    assert (third.failed, third.is_good, third.is_known) == (0, True, True)


def test_a_batch_whose_worker_died_says_so_and_so_does_the_next_try() -> None:
    twin = Twin(topology(), [SPEC])
    one = twin.worker()
    twin.submit(1)
    twin.stages[0].exited(one.key, twin.now, Death.OWN)
    twin.worker()
    first, second = twin.stages[0].trace.entries()
    assert (first.fate, first.took_s, ids_of(first)) == (DIED, -1.0, ["r1"])
    assert not first.items  # what is told of a batch holds no payload of it
    assert (second.fate, ids_of(second)) == ("", ["r1"])


def test_a_batch_that_takes_too_long_says_that_others_have_it() -> None:
    twin = Twin(topology(), [SPEC])
    twin.worker()
    twin.submit(1)
    twin.pass_time(3.0)
    assert twin.stages[0].trace.entries()[0].fate == GIVEN


# --- what the door keeps ---------------------------------------------------------------------------------------------


def test_who_is_refused_at_the_door_or_expires_is_told_by_reason() -> None:
    twin = Twin(topology(), [SPEC], FrontSpec(2, 1 << 20))
    twin.worker()
    twin.submit(4, budget_s=2.0)
    twin.now += 2.0
    twin.run()
    full, expired = twin.front.trace.entries()
    assert (full.reason, full.stage, full.count, full.waiting, ids_of(full)) == ("capacity", -1, 2, 2, ["r3", "r4"])
    assert (expired.reason, expired.stage, expired.count, ids_of(expired)) == ("expired", 0, 2, ["r1", "r2"])


def pressed() -> Twin:
    """One worker, of which is known that a batch takes a second, with two."""
    twin = Twin(topology(), [SPEC])
    worker = twin.worker(ready=False)
    ready = Ready(worker.key, "application/json", times_us={1: 1_000_000, 2: 1_000_000}, maps=True)
    twin.stages[0].ready(ready, twin.now)
    twin.run()
    twin.submit(2)
    twin.now += 0.01
    twin.run()
    return twin


def test_who_would_be_late_is_told_with_what_was_predicted() -> None:
    twin = pressed()
    twin.submit(1, first=10, budget_s=0.5)
    (refused,) = twin.front.trace.entries()
    assert (refused.reason, refused.route, refused.waiting, ids_of(refused)) == ("predicted", 0, 2, ["r10"])
    assert refused.had_s == pytest.approx(0.5, abs=0.01)
    assert 1.5 < refused.needs_s < 2.5
    assert refused.retry_s > 0


def test_who_is_let_in_with_a_prediction_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("foretold", "front"):
        monkeypatch.setattr(f"engine.core.{module}.EVERY", 1)
    twin = pressed()
    (worker,) = twin.workers.values()
    twin.submit(2, first=10)
    assert len(twin.front.foretold.waiting) == 3  # the second of all found somebody before it
    twin.now += 0.99
    twin.finish(worker)
    twin.now += 1.0
    twin.finish(worker)
    foretold = twin.front.foretold
    assert (foretold.compared, foretold.near, len(foretold.waiting)) == (3, 3, 0)
    twin.submit(2, first=20)
    twin.now += 0.01
    twin.run()
    twin.submit(1, first=30)
    twin.submit(1, first=31, budget_s=5.0)
    assert len(foretold.waiting) == 4
    twin.now += 5.0
    twin.run()  # one has not been done in its time
    twin.front.cancel(b"f", [30])
    assert (foretold.compared, foretold.near, len(foretold.waiting)) == (4, 3, 2)
    assert foretold.recent[-1][1] == 0.0


def test_nothing_is_looked_at_while_nobody_has_to_wait() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    for number in range(1, 40):
        twin.submit(1, first=number)
        twin.finish(worker)
    assert (twin.front.foretold.compared, len(twin.front.foretold.waiting)) == (0, 0)


# --- what is told of it ----------------------------------------------------------------------------------------------


def told(twin: Twin, ask: Ask) -> dict[str, object]:
    parts = [stage_part(machine, ask, [], twin.now, "engine") for machine in twin.stages]
    found: dict[str, object] = json.loads(
        answer(twin.front, ask, parts, Deployed("t", "engine", BrokerStatus(), (0, 0), []), twin.now)
    )
    return found


def test_the_account_and_the_last_decisions_are_told_of_all_or_of_one() -> None:
    twin = pressed()
    (worker,) = twin.workers.values()
    twin.now += 1.0
    twin.finish(worker)
    twin.submit(2, first=10)
    twin.submit(1, first=20, budget_s=0.3)
    whole = told(twin, Ask("why", 20))
    (stage,) = whole["stages"]  # type: ignore[misc]
    assert (stage["name"], stage["batches"], stage["items"], stage["compared"]) == ("s0", {"full": 2}, 4, 1)
    assert whole["door"]["refused"] == {"predicted": 1}  # type: ignore[index]
    decisions: list[dict[str, object]] = whole["decisions"]  # type: ignore[assignment]
    assert [(one["what"], one["reason"]) for one in decisions] == [
        ("batch", "full"), ("batch", "full"), ("refusal", "predicted"),
    ]  # fmt: skip
    assert decisions[0]["requests"] == ["r1", "r2"]
    assert (decisions[2]["route"], decisions[2]["stage"]) == ("/r0", "")

    def reasons(ask: Ask) -> list[object]:
        return [one["requests"] for one in told(twin, ask)["decisions"]]  # type: ignore[attr-defined]

    assert reasons(Ask("why", 1)) == [["r20"]]
    assert reasons(Ask("why", 20, request="r2")) == [["r1", "r2"]]
    assert reasons(Ask("why", 20, stage="s0")) == [["r1", "r2"], ["r10", "r11"]]
    assert reasons(Ask("why")) == []
    assert trace.KEPT == 1000

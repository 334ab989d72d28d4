"""Batches into items, outcomes into Results; and what the two threads share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core import meta, wire
from engine.core.messages import OWN_HEADERS_MOST, Batch, Results, Status
from engine.core.routing import FINAL, Route, Topology
from engine.core.wording import TOO_MANY_PIECES
from engine.errors import ProtocolError
from stages.compute import SKIPPED, Outcome
from stages.runtime import shared
from stages.runtime.parcels import Origin, Plan, encoded
from stages.runtime.shared import Numbers

# Stage 1 is last on /a, in the middle of /b, first on /c, alone on /d, absent from /e.
TOPOLOGY = Topology(
    ("s0", "s1", "s2"),
    (
        Route("/a", (0, 1)),
        Route("/b", (0, 1, 2)),
        Route("/c", (1, 2)),
        Route("/d", (1,)),
        Route("/e", (0, 2)),
    ),
)
PLAN = Plan(TOPOLOGY, 1)
ORIGIN = Origin(1, 5)


def test_what_is_in_too_many_pieces_fails_and_leaves_its_neighbours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAMES_MAX", 4)
    piece = memoryview(bytes(wire.INLINE_MAX + 1))
    outcomes = [Outcome(200, b"A"), Outcome(200, (piece,) * 4)]
    parcels = PLAN.results(ORIGIN, batch([0, 1]), outcomes, mime="m", batch_us=50, compute_us=60)
    frames = encoded(parcels)
    assert [target for target, _, _ in parcels] == [FINAL, FINAL]
    told = {}
    for one in frames:
        results, payloads = wire.decode(one)
        assert isinstance(results, Results)
        told.update(zip(results.uids, zip(results.statuses, payloads, strict=True), strict=True))
    assert told == {0: (200, b"A"), 1: (500, TOO_MANY_PIECES.encode())}


def batch(routes: list[int]) -> Batch:
    n = len(routes)
    return Batch(
        batch=9,
        sent_ns=0,
        reason="full",
        uids=list(range(n)),
        routes=routes,
        budgets_us=[10 + uid for uid in range(n)],
        attempts=[1] * n,
        metas=[meta.pack(f"r{uid}", b"m") for uid in range(n)],
        queues_us=[40 + uid for uid in range(n)],
        trails=[wire.pack_step(1, 2, 3)] * n,
    )


def test_items_know_where_they_come_from_and_go_to() -> None:
    items = PLAN.items(batch([0, 1, 2, 3]), [b"a", b"b", b"c", b"d"], since_ns=1000)
    assert [(item.first, item.last) for item in items] == [(False, True), (False, False), (True, False), (True, True)]
    assert [item.deadline_ns for item in items] == [11_000, 12_000, 13_000, 14_000]
    assert (items[2].uid, items[2].payload, items[2].request_id) == (2, b"c", "r2")
    assert PLAN.targets == {2, FINAL}


@pytest.mark.parametrize("route", [4, 5, -1])
def test_a_route_that_does_not_pass_here_is_a_protocol_error(route: int) -> None:
    with pytest.raises(ProtocolError, match="does not pass"):
        PLAN.items(batch([0, route]), [b"", b""], since_ns=0)


def test_results_are_grouped_by_next_stage_and_failures_leave_by_the_egress() -> None:
    outcomes = [Outcome(200, b"A"), Outcome(200, b"B"), Outcome(422, b"no", {"x": "y"}), SKIPPED]
    parcels = PLAN.results(ORIGIN, batch([0, 1, 2, 3]), outcomes, mime="m", batch_us=50, compute_us=60)
    by_target = {target: (results, payloads) for target, results, payloads in parcels}
    final, final_payloads = by_target[FINAL]
    assert (final.stage, final.worker, final.batch, final.mime) == (1, 5, 9, "m")
    assert (final.uids, final.statuses, final_payloads) == ([0, 2, 3], [200, 422, 0], [b"A", b"no", b""])
    assert final.headers == {1: {"x": "y"}}
    onward, onward_payloads = by_target[2]
    assert (onward.uids, onward.statuses, onward_payloads, onward.mime) == ([1], [200], [b"B"], "")
    assert wire.unpack_trail(onward.trails[0]) == [(1, 2, 3), (41, 50, 60)]
    assert sorted(results.compute_us for results, _ in by_target.values()) == [0, 60]


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, 3]), st.sampled_from([0, 200, 408, 500])), min_size=1, max_size=40))
def test_every_item_appears_exactly_once_and_crosses_the_wire(items: list[tuple[int, int]]) -> None:
    work = batch([route for route, _ in items])
    outcomes = [Outcome(status, str(uid).encode()) for uid, (_, status) in enumerate(items)]
    seen: dict[int, tuple[int, int, bytes]] = {}
    for target, results, payloads in PLAN.results(ORIGIN, work, outcomes, mime="m", compute_us=3):
        message, received = wire.decode(wire.encode(results, payloads))
        assert message == results
        for uid, status, payload in zip(results.uids, results.statuses, received, strict=True):
            assert uid not in seen
            seen[uid] = (target, status, bytes(payload))  # type: ignore[arg-type]
    for uid, (route, status) in enumerate(items):
        target = {0: FINAL, 1: 2, 2: 2, 3: FINAL}[route] if status == Status.OK else FINAL
        assert seen.pop(uid) == (target, status, str(uid).encode())
    assert not seen


@pytest.mark.parametrize("headers", [None, {"x": "\u20ac" * (OWN_HEADERS_MOST - 1)}], ids=["many", "with headers"])
def test_many_results_leave_in_parcels_that_can_be_read(headers: dict[str, str] | None) -> None:
    count = wire.HEAD_ITEMS + 1
    outcomes = [Outcome(422, b"no", headers)] * count
    parcels = PLAN.results(ORIGIN, batch([0] * count), outcomes, mime="m", compute_us=3)
    uids = []
    for _, results, payloads in parcels:
        message, _ = wire.decode(wire.encode(results, payloads))
        assert message == results
        uids += results.uids
    assert uids == list(range(count))
    assert [results.compute_us for _, results, _ in parcels] == [3] + [0] * (len(parcels) - 1)


def test_the_first_stages_step_begins_the_trail() -> None:
    work = batch([3])
    work.trails[0] = b""
    ((_, results, _),) = PLAN.results(ORIGIN, work, [Outcome(200, b"")], mime="m", batch_us=2, compute_us=3)
    assert wire.unpack_trail(results.trails[0]) == [(40, 2, 3)]


# --- shared ----------------------------------------------------------------------------------------------------------


def test_of_a_batch_without_items_nothing_is_told() -> None:
    assert PLAN.results(ORIGIN, batch([]), [], mime="m") == []


def test_numbers_forget_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "REMEMBERED", 3)
    numbers = Numbers()
    numbers.add([1, 2])
    numbers.add([3, 4])
    assert [number for number in range(6) if number in numbers] == [2, 3, 4]
    numbers.discard([3, 9])
    assert len(numbers) == 2


def test_what_items_cost_goes_with_them() -> None:
    outcomes = [Outcome(200), Outcome(200), Outcome(500), Outcome(200)]
    parcels = PLAN.results(ORIGIN, batch([0, 1, 0, 1]), outcomes, mime="", costs={0: 5.0, 1: 6.0, 3: 8.0})
    assert {target: results.costs for target, results, _ in parcels} == {FINAL: {0: 5.0}, 2: {0: 6.0, 1: 8.0}}
    ((_, results, _),) = PLAN.results(ORIGIN, batch([0, 0]), outcomes[:2], mime="", costs={1: 2.0})
    assert results.costs == {1: 2.0}
    ((_, results, _),) = PLAN.results(ORIGIN, batch([0, 0]), outcomes[:2], mime="")
    assert not results.costs

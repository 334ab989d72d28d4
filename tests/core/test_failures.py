"""The last failures as their clients were told: what is kept of them, and which are noted."""

from __future__ import annotations

from engine.core import meta, wording
from engine.core.batching import Policy
from engine.core.failures import IDS, KEPT, TEXT_MOST, Failures
from engine.core.front import FrontSpec
from engine.core.ledger import MESSAGE_MOST, OWN_BODY, said
from engine.core.messages import Status, StreamEvents
from engine.core.stage import StageSpec
from tests.core.twin import Twin, topology

SPEC = StageSpec("s0", 1, Policy(4), timeout_s=2.0, kill_after_s=5.0, max_queue_bytes=1 << 20)


def noted(twin: Twin) -> list[tuple[int, int, str, int, tuple[str, ...]]]:
    return [(one.stage, one.status, one.text, one.count, one.ids) for one in twin.front.failures.entries()]


def test_equal_failures_are_one_and_the_newest_comes_first() -> None:
    failures = Failures()
    for number in range(10):
        failures.add(float(number), 0, 0, 422, "no x", meta.pack(f"r{number}"))
    failures.add(10.0, 1, 0, 500, "x" * 1000, b"")
    other, first = failures.entries()
    assert (first.count, first.at, first.ids) == (10, 9.0, tuple(f"r{number}" for number in range(9, 9 - IDS, -1)))
    assert (other.status, len(other.text), other.ids) == (500, TEXT_MOST + 3, ("",))
    assert failures.counts == {(0, 422): 10, (1, 500): 1}


def test_a_flood_of_different_ones_is_bounded() -> None:
    failures = Failures()
    failures.add(0.0, 0, 0, 500, "seldom", b"")
    for number in range(KEPT - 1):
        failures.add(1.0, 0, 0, 422, f"{number} is too much", b"")
    failures.add(2.0, 0, 0, 500, "seldom", b"")
    for number in range(KEPT - 1):
        failures.add(3.0, 0, 0, 422, f"{number} is too little", b"")
    texts = [one.text for one in failures.entries()]
    assert len(texts) == KEPT
    assert texts[-1] == "seldom"  # it was seen again, so the older ones went


def test_what_a_worker_says_of_failures_is_noted_and_of_results_nothing() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    twin.submit(3)
    twin.finish(worker, statuses={"r2": Status.UNPROCESSABLE, "r3": Status.FAILED}, twice=True)
    assert noted(twin) == [(0, 500, "body3+0", 1, ("r3",)), (0, 422, "body2+0", 1, ("r2",))]


def test_a_failure_that_nobody_was_told_is_not_noted() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    twin.submit(1, budget_s=1.0)
    twin.pass_time(1.0)  # its deadline
    assert [(status, text) for _, status, text, _, _ in noted(twin)] == [(408, wording.TIMEOUT)]
    twin.finish(worker, statuses={"r1": Status.FAILED})
    assert len(noted(twin)) == 1


def test_what_a_service_answers_with_a_status_of_its_own_is_no_failure_below_400() -> None:
    twin = Twin(topology(), [SPEC])
    worker = twin.worker()
    twin.submit(2)
    twin.finish(worker, statuses={"r1": 303, "r2": 404})
    assert [status for _, status, _, _, _ in noted(twin)] == [404]


def test_refusals_are_no_failures() -> None:
    twin = Twin(topology(), [SPEC], FrontSpec(1, 1 << 30))
    twin.worker()
    twin.submit(3)
    assert not noted(twin)
    assert twin.front.stats.rejected


def test_a_torn_stream_is_noted() -> None:
    twin = Twin(topology(), [SPEC])
    one, other = twin.worker(slot=1), twin.worker(slot=2)
    twin.submit(1)
    batch = one.lane[0][0]
    twin.front.events(StreamEvents(0, one.key, batch.uids, batch=batch.batch), [b"piece"], twin.now)
    request = next(iter(twin.front.ledger.requests.values()))
    request.streamer = other.key
    twin.finish(one)
    assert [(status, text) for _, status, text, _, _ in noted(twin)] == [(500, wording.TORN)]


def test_a_body_of_the_services_own_is_not_shown_however_its_type_is_spelled() -> None:
    assert said(b"no such text", ["x-other"]) == "no such text"
    for headers in (["content-type"], ["x-other", "Content-Type"]):
        assert said(b"<h1>no</h1>", headers) == OWN_BODY
    assert said((b"in ", b"pieces"), ()) == OWN_BODY
    assert len(said(b"x" * 2 * MESSAGE_MOST, ())) == MESSAGE_MOST

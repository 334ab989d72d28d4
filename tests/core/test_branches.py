"""Requests that leave their route early, are sent past stages, or take one of several branches: the whole broker, under
faults. Whatever happens there is one answer, of stages in an order that the route has, and nothing is left behind."""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import meta
from engine.core.actions import Foresee, News
from engine.core.admission import Admission
from engine.core.messages import Flow, Results, Status
from engine.core.onward import LOOK_EVERY, Onward, is_inner
from engine.core.predict import Outlook
from engine.core.routing import FINAL, Fork, Route, Topology
from tests.core.test_twin import SPEC, bury, history
from tests.core.twin import Twin, ids_of

PRE, EN, DE, POST = range(4)
FORK = Fork("lang", (("en", EN), ("de", DE)))
TABLE = Topology(
    ("s0", "s1", "s2", "s3"),
    (
        Route("/branches", (PRE, EN, DE, POST), (FORK, POST, POST, FINAL)),
        Route("/chain", (PRE, EN, POST)),
        Route("/short", (PRE, POST)),
        Route("/ends", (PRE, EN, DE), (FORK, FINAL, FINAL)),
    ),
)


def twin(*, shared: bool = False) -> Twin:
    made = Twin(TABLE, [replace(SPEC, name=f"s{index}") for index in range(4)], shared=shared)
    for stage in range(4):
        made.worker(stage)
    return made


def drain(one: Twin) -> None:
    """The faults end, and all that is under way is finished."""
    for _ in range(200):
        bury(one)
        one.arrive()
        if not one.go_on() and one.is_empty():
            break


def chosen(request_id: str, route: int, stage: int, salt: int = 0) -> int | None:
    """The same for each computation, unless salted; None: by the file."""
    number = zlib.crc32(f"{request_id}/{stage}/{salt}".encode())
    reachable = (*TABLE.later(route, stage), FINAL)
    return reachable[number // 3 % len(reachable)] if number % 3 else None


def path_of(request_id: str, route: int) -> list[int]:
    """The stages that it passes."""
    path = [TABLE.routes[route].stages[0]]
    while True:
        target = chosen(request_id, route, path[-1])
        target = TABLE.following(route, path[-1])[0] if target is None else target
        if target == FINAL:
            return path
        path.append(target)


@pytest.mark.unmeasured
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_answer_by_a_way_that_there_is_whatever_happens(data: st.DataObject) -> None:
    """``fickle``: a stage that computes a request once more may send it elsewhere than the first time."""
    one = twin(shared=data.draw(st.booleans()))
    fickle = data.draw(st.booleans())
    counted = [0]

    def goes(request_id: str, route: int, stage: int) -> int | None:
        counted[0] += 1
        return chosen(request_id, route, stage, counted[0] if fickle else 0)

    one.goes = goes
    submitted, cancelled = history(one, data, routes=4, stages=4)
    drain(one)
    assert one.is_empty()
    for seq, route in submitted.items():
        if seq in cancelled:
            assert (b"f", seq) not in one.answers
            continue
        status, body = one.answer(seq)  # exactly one
        assert status in (200, 408, 422, 429, 500, 503)
        if status != 200:
            continue
        path = [int(part) for part in body.removeprefix(b"body%d" % seq).split(b"+")[1:]]
        if fickle:
            assert path[0] == PRE
            assert all(after in TABLE.later(route, before) for before, after in pairwise(path))
        else:
            assert path == path_of(f"r{seq}", route)
            passed = {stage for stage in range(4) if (stage, f"r{seq}") in one.given}
            assert passed == set(path)  # what is skipped has not been computed


def test_an_early_answer_frees_what_the_stage_held_and_later_copies_are_dropped() -> None:
    one = twin(shared=True)
    one.goes = lambda request_id, route, stage: FINAL if request_id == "r1" else None
    one.submit(3, route=1)
    (pre,) = [worker for worker in one.workers.values() if worker.stage == PRE]
    one.finish(pre, twice=True)
    assert one.answer(1) == (200, b"body1+0")
    assert (EN, "r1") not in one.given
    assert not one.stages[PRE].crew.in_flight
    drain(one)
    assert [one.answer(seq) for seq in (2, 3)] == [(200, b"body%d+0+1+3" % seq) for seq in (2, 3)]
    assert one.is_empty()


def test_a_copy_that_goes_another_way_is_dropped_there() -> None:
    """Its worker died after it had sent; the next one has another opinion."""
    one = twin(shared=True)
    one.goes = lambda request_id, route, stage: EN if stage == PRE else None
    one.submit(1)
    (pre,) = [worker for worker in one.workers.values() if worker.stage == PRE]
    one.finish(pre, late=True)
    one.kill(pre)
    one.worker(PRE)
    (again,) = [worker for worker in one.workers.values() if worker.stage == PRE]
    one.goes = lambda request_id, route, stage: DE if stage == PRE else None
    one.finish(again)
    one.arrive()  # of the dead one; its arena has gone with it
    drain(one)
    assert one.answer(1) == (200, b"body1+0+2+3")
    assert (EN, "r1") not in one.given
    assert one.is_empty()


def test_of_two_stages_that_look_at_the_same_time_one_takes_it() -> None:
    """On threads of their own both have found it where it was; the other one has claimed it, and not yet moved it."""
    one = twin(shared=True)
    one.submit(1)
    (request,) = one.front.ledger.requests.values()
    assert request.claims == {}
    request.claims[0] = TABLE.hop(0, DE)
    pre = next(worker for worker in one.workers.values() if worker.stage == PRE)
    one.goes = lambda request_id, route, stage: EN
    one.finish(pre)
    assert request.hop == 0
    assert one.stages[EN].stats.dropped == 1
    assert not one.stages[PRE].crew.in_flight  # whoever has it sees to it
    one.front.cancel(b"f", [1])
    one.run()
    assert one.is_empty()  # and what was dropped holds no memory


def test_where_only_one_can_take_it_nobody_has_to_claim_it() -> None:
    one = twin()
    one.submit(1, route=2)
    (request,) = one.front.ledger.requests.values()
    assert request.claims is None


@pytest.mark.parametrize(
    ("stage", "target"), [(EN, DE), (DE, EN), (POST, EN), (EN, PRE)], ids=["beside", "beside too", "back", "first"]
)
def test_a_result_that_no_way_leads_to_is_not_taken(stage: int, target: int) -> None:
    """A worker may say so, by mistake of ours or of another version."""
    one = twin()
    one.goes = lambda request_id, route, now: stage if now == PRE else None
    one.submit(1)
    one.finish(next(worker for worker in one.workers.values() if worker.stage == PRE))
    worker = next(worker for worker in one.workers.values() if worker.stage == stage)
    batch, _ = worker.lane[0]
    stray = Results(stage, worker.key, batch.batch + 1, batch.uids, [200], [b""])
    one.deliver(stray, [b"stray"], target)
    stray = Results(stage, worker.key, batch.batch, batch.uids, [200], [b""])
    before = one.stages[target].stats.dropped
    one.stages[target].accept(stray, [b"stray"], one.now)
    assert one.stages[target].stats.dropped == before + 1
    assert not len(one.stages[target].queue)


def test_a_request_that_is_cancelled_while_it_may_be_anywhere_is_dropped_everywhere() -> None:
    one = twin()
    one.submit(1)
    one.front.cancel(b"f", [1])
    assert [action.stage for action in one.front.actions] == [PRE, EN, DE, POST]


def test_the_deadline_reaches_it_on_every_branch() -> None:
    one = twin()
    one.goes = lambda request_id, route, stage: DE if stage == PRE else None
    one.submit(1, budget_s=1.0)
    one.finish(next(worker for worker in one.workers.values() if worker.stage == PRE))
    one.pass_time(1.1)
    assert one.answer(1)[0] == Status.TIMEOUT
    drain(one)
    assert one.is_empty()


# --- what is expected of what comes after ---------------------------------------------------------------------------


def test_on_a_chain_what_comes_after_is_what_the_next_stage_says() -> None:
    onward = Onward(PRE, TABLE)
    chain = Topology(("a", "b"), (Route("/r", (0, 1)),))
    onward = Onward(0, chain)
    assert onward.note(1, 10, 0.5)
    assert not onward.note(1, 10, 0.51)  # within what nobody needs to hear
    assert onward.later_s == [0.5]
    assert not onward.goes


def test_what_leaves_early_needs_nothing_more_and_counts_by_how_often() -> None:
    chain = Topology(("a", "b", "c"), (Route("/r", (0, 1, 2)),))
    onward = Onward(0, chain)
    assert is_inner(chain, 0)
    assert not is_inner(chain, 2)
    onward.note(1, LOOK_EVERY, 1.0)
    for _ in range(20):
        onward.note(FINAL, 3 * LOOK_EVERY, 0.0)
        onward.note(1, LOOK_EVERY, 1.0)
    assert onward.later_s[0] == pytest.approx(0.25, abs=0.03)
    assert onward.goes[1] == pytest.approx(0.25, abs=0.03)
    for _ in range(200):  # and it forgets
        onward.note(1, LOOK_EVERY, 1.0)
    assert onward.goes[1] > 0.9


def test_of_branches_each_counts_by_how_often_it_is_taken() -> None:
    onward = Onward(PRE, TABLE)
    for _ in range(10):
        onward.note(EN, LOOK_EVERY, 1.0)
        onward.note(DE, LOOK_EVERY, 3.0)
    assert onward.later_s[0] == pytest.approx(2.0, abs=0.2)


def outlook(queued: int, each_s: float) -> Outlook:
    """One worker that computes one at a time."""
    return Outlook(queued, 1, 0, [2000.0], 1, 10.0, [0.0, each_s], 0.0, 1.0, 1.0, [], 1.0)


def test_the_door_expects_of_who_waits_only_the_part_that_goes_on() -> None:
    """One in ten goes to a slow stage: a hundred that wait at the quick one are no hundred before the slow one."""
    chain = Topology(("a", "b"), (Route("/r", (0, 1)),))
    door = Admission(chain, 0.0)
    door.foresee(Foresee(0, outlook(100, 0.001)))
    door.foresee(Foresee(1, outlook(1, 0.1)))
    everybody = door.done_at(0, 0.0, 2000.0)
    door.foresee(Foresee(0, outlook(100, 0.001), 0.0, {1: 0.6, FINAL: 0.4}))
    some = door.done_at(0, 0.0, 2000.0)
    door.foresee(Foresee(0, outlook(100, 0.001), 0.0, {1: 0.1, FINAL: 0.9}))
    few = door.done_at(0, 0.0, 2000.0)
    assert few < 2000.5 < some < everybody  # most are done after the first


def test_a_full_branch_keeps_nobody_out_who_may_go_another_way() -> None:
    door = Admission(TABLE, 0.0)
    one = twin()
    for stage in range(4):
        door.heard_of(News(stage, one.stages[stage].state(), float("inf"), stage == DE))
    assert door.blocked(0, 1.0) is None
    for stage in (PRE, POST):
        door.heard_of(News(stage, one.stages[stage].state(), float("inf"), True))
        refused = door.blocked(0, 1.0)
        assert refused is not None
        assert refused[0] == "stage_full"


def test_progress_has_a_place_while_any_end_may_be_a_stream() -> None:
    """A route with two ends of which one streams."""
    one = Twin(TABLE, [replace(SPEC, name=f"s{index}") for index in range(4)])
    for stage in range(4):
        one.worker(stage, flow=Flow.EVENTS if stage == EN else Flow.WHOLE)
    one.submit(1, route=3)
    request = next(iter(one.front.ledger.requests.values()))
    assert one.front.tries.is_stream(request)
    assert meta.request_id_of(request.meta) == "r1"
    assert ids_of(next(worker for worker in one.workers.values() if worker.lane).lane[0][0]) == ["r1"]

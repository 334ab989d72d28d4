"""Requests that go on in parts: the whole broker, under faults. Whatever happens there is one answer, which is made of
every part in its place, and nothing is left behind; who leaves takes all parts along."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import gathered, wording
from engine.core.actions import Fail, Foresee
from engine.core.admission import Admission
from engine.core.arena import Ref
from engine.core.ends import FULL
from engine.core.fairness import Priority
from engine.core.front import FrontSpec
from engine.core.messages import KEY_SIZE, Flow, Parts, Qos, Role, Speaker, Status, StreamEvents
from engine.core.parts import PARTS
from engine.core.routing import FINAL, JOIN, Route, Split, Topology
from engine.core.wire import INLINE_MAX, Payload, pack_step, unpack_trail
from tests.core.test_branches import drain, outlook
from tests.core.test_twin import SPEC, history
from tests.core.twin import FakeWorker, Twin, ids_of

pytestmark = pytest.mark.unmeasured

PRE, CROP, OTHER, MID, POST = range(5)
EACH, HOLES, ALL, LONG, NESTED, CHAIN = range(6)
PLAIN = Split((CROP,), POST, field="crops", most=5)
TABLE = Topology(
    ("s0", "s1", "s2", "s3", "s4"),
    (
        Route("/each", (PRE, CROP, POST), (POST, JOIN, FINAL), {PRE: PLAIN}),
        Route("/holes", (PRE, CROP, POST), (POST, JOIN, FINAL), {PRE: Split((CROP,), POST, holes=True)}),
        Route(
            "/all",
            (PRE, CROP, OTHER, POST),
            (POST, JOIN, JOIN, FINAL),
            {PRE: Split((CROP, OTHER), POST, names=("x", "y"))},
        ),
        Route("/long", (PRE, CROP, OTHER, POST), (POST, OTHER, JOIN, FINAL), {PRE: Split((CROP,), POST)}),
        Route(
            "/nested",
            (PRE, CROP, OTHER, MID, POST),
            (POST, MID, JOIN, JOIN, FINAL),
            {PRE: Split((CROP,), POST), CROP: Split((OTHER,), MID)},
        ),
        Route("/chain", (PRE, POST)),
    ),
)


def elements(request_id: str) -> int:
    return int(request_id[1:]) % 4


def twin(*, shared: bool = False, most: int = 1 << 20, front: FrontSpec | None = None) -> Twin:
    made = Twin(
        TABLE, [replace(SPEC, name=f"s{index}", max_queue_bytes=most) for index in range(5)], front, shared=shared
    )
    made.elements = elements
    for stage in range(5):
        made.worker(stage)
    return made


def at(one: Twin, stage: int) -> FakeWorker:
    (found,) = [worker for worker in one.workers.values() if worker.stage == stage]
    return found


def expected(seq: int, route: int) -> bytes:
    """The whole answer."""
    whole, count = b"body%d+0" % seq, elements(f"r{seq}")
    parts = [whole + b"%c" % (97 + number) for number in range(2 if route == ALL else count)]
    if route == CHAIN:
        return whole + b"+4"
    if route == ALL:
        parts = [parts[0] + b"+1", parts[1] + b"+2"]
    elif route == NESTED:
        parts = [part + b"+1" for part in parts]
        inner = [[part + b"%c" % (97 + number) + b"+2" for number in range(count)] for part in parts]
        parts = [b"%b(%b)+3" % (part, b",".join(found)) for part, found in zip(parts, inner, strict=True)]
    else:
        parts = [part + (b"+1+2" if route == LONG else b"+1") for part in parts]
    return b"%b(%b)+4" % (whole, b",".join(parts))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_one_answer_of_all_parts_in_their_places_whatever_happens(data: st.DataObject) -> None:
    one = twin(shared=data.draw(st.booleans()))
    submitted, cancelled = history(one, data, routes=6, stages=5)
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
        if route != HOLES:
            assert body == expected(seq, route)
            continue
        whole = b"body%d+0" % seq
        parts = [rb"(-|%b)" % re.escape(whole + b"%c+1" % (97 + number)) for number in range(elements(f"r{seq}"))]
        assert re.fullmatch(rb"%b\(%b\)\+4" % (re.escape(whole), b",".join(parts)), body)


@pytest.mark.parametrize("route", [EACH, HOLES, ALL, LONG, NESTED])
def test_parts_are_batched_with_everybodys_and_come_together_in_order(route: int) -> None:
    one = twin(shared=True)
    one.submit(3, route=route)
    one.finish(at(one, PRE))
    batch, _ = at(one, CROP).lane[0]
    assert len(batch.uids) == 3  # a whole batch, though no request has so many
    assert len(set(ids_of(batch))) > 1
    drain(one)
    assert [one.answer(seq) for seq in (1, 2, 3)] == [(200, expected(seq, route)) for seq in (1, 2, 3)]
    assert one.is_empty()
    assert one.front.stats.split >= 3
    assert one.front.ledger.inside == 0


def test_a_list_of_nothing_goes_on_at_once() -> None:
    one = twin(shared=True)
    one.submit(1, first=4, route=EACH)
    one.finish(at(one, PRE))
    assert (CROP, "r4") not in one.given
    one.finish(at(one, POST))
    assert one.answer(4) == (200, b"body4+0()+4")
    assert one.is_empty()


def test_a_part_that_fails_fails_its_request_and_calls_the_others_off() -> None:
    one = twin(shared=True)
    one.submit(1, first=3, route=EACH)
    one.submit(1, first=1, route=EACH)
    one.finish(at(one, PRE))
    drain_stage(one, PRE)
    crop = at(one, CROP)
    batch, _ = crop.lane[0]
    assert ids_of(batch) == ["r3", "r3", "r3"]
    one.deliver_failure(crop, 1, 422)
    assert one.answer(3)[0] == 422
    assert one.front.failures.counts.total() == 1  # one request has
    assert len(one.front.ledger.gatherings.wholes) == 1  # the neighbour's
    drain(one)
    assert one.answer(1) == (200, expected(1, EACH))
    assert one.is_empty()


def drain_stage(one: Twin, stage: int) -> None:
    while at(one, stage).lane:
        one.finish(at(one, stage))


def test_a_part_that_fails_leaves_a_hole_where_the_route_says_so() -> None:
    one = twin(shared=True)
    one.submit(1, first=3, route=HOLES)
    one.finish(at(one, PRE))
    one.deliver_failure(at(one, CROP), 1, 500)
    drain(one)
    assert one.answer(3) == (200, b"body3+0(body3+0a+1,-,body3+0c+1)+4")
    assert one.front.stats.holes == 1
    assert not one.front.failures.counts.total()
    assert one.is_empty()


def test_a_part_that_kills_every_worker_leaves_a_hole_and_its_neighbours_are_computed() -> None:
    one = twin(shared=True)
    one.submit(1, first=3, route=HOLES)
    one.finish(at(one, PRE))
    deadly = at(one, CROP).lane[0][0].uids[1]
    for _ in range(40):
        worker = next((one_ for one_ in one.workers.values() if one_.stage == CROP), None) or one.worker(CROP)
        if not worker.lane:
            break
        if deadly in worker.lane[0][0].uids:
            one.kill(worker)
            one.worker(CROP)
        else:
            one.finish(worker)
    drain(one)
    assert one.answer(3) == (200, b"body3+0(body3+0a+1,-,body3+0c+1)+4")
    assert one.is_empty()


def test_want_of_time_and_room_is_no_hole() -> None:
    """Who is refused may come again: half an answer would tell it that this is all there is."""
    one = twin(shared=True)
    one.submit(1, first=3, route=HOLES, budget_s=5.0)
    one.finish(at(one, PRE))
    one.pass_time(5.1)
    assert one.answer(3)[0] == Status.TIMEOUT
    drain(one)
    small = twin(most=20)
    small.submit(1, first=3, route=HOLES)
    small.finish(at(small, PRE))
    drain(small)
    assert small.answer(3)[0] == Status.OVERLOADED
    assert small.speakers[3] == Speaker.STAGE
    for checked in (one, small):
        assert checked.is_empty()


def test_who_leaves_takes_all_parts_along() -> None:
    one = twin(shared=True)
    one.submit(1, first=3, route=NESTED)
    one.finish(at(one, PRE))
    crop = at(one, CROP)
    one.finish(crop)  # two of them are in parts of their own now
    one.front.cancel(b"f", [3])
    one.run()
    assert not one.front.ledger
    assert not one.front.ledger.gatherings.wholes
    assert all(not len(machine.queue) for machine in one.stages)
    drain(one)
    assert one.is_empty()
    assert (b"f", 3) not in one.answers
    assert one.front.stats.cancelled == 1


def test_parts_take_nobodys_place_at_the_door() -> None:
    one = twin(front=FrontSpec(4, 1 << 20))
    one.submit(3, first=3, route=EACH)  # three, none, one
    drain_stage(one, PRE)
    assert len(one.front.ledger) > 4
    assert (one.front.ledger.inside, one.front.headroom) == (3, 1)
    one.submit(1, first=7, route=CHAIN)
    one.submit(1, first=8, route=CHAIN)
    assert one.answer(8)[0] == Status.OVERLOADED
    drain(one)
    assert one.answer(7)[0] == 200
    assert one.is_empty()


def test_while_what_is_to_be_gathered_fills_its_room_nobody_goes_on_in_parts_there() -> None:
    one = twin(shared=True, front=FrontSpec(100, 1 << 20, gathering={POST: 40}))
    one.submit(3, first=1, route=EACH)
    one.submit(1, first=5, route=CHAIN)
    drain_stage(one, PRE)
    drain(one)
    answers = [one.answer(seq)[0] for seq in (1, 2, 3)]
    assert answers.count(200) >= 1
    assert answers.count(429) >= 1
    assert one.answer(5)[0] == 200
    assert one.is_empty()


def test_what_is_done_beside_others_fits_or_its_request_is_refused() -> None:
    """When they begin nobody knows how large their parts become."""
    one = twin(shared=True, front=FrontSpec(100, 1 << 20, gathering={POST: 60}))
    one.submit(1, first=3, route=EACH)
    one.submit(1, first=7, route=EACH)
    drain_stage(one, PRE)
    assert len(one.front.ledger.gatherings.wholes) == 2
    crop = at(one, CROP)
    while crop.lane:
        assert one.front.ledger.gatherings.nbytes.get(POST, 0) <= 60
        one.finish(crop)
    drain(one)
    answers = sorted(one.answer(seq)[0] for seq in (3, 7))
    assert answers in ([200, 200], [200, 429])
    assert one.is_empty()


def test_an_answer_to_a_part_is_no_answer() -> None:
    """A worker that takes the end of a part for that of its route."""
    one = twin(shared=True)
    one.submit(1, first=1, route=EACH)
    one.finish(at(one, PRE))
    one.deliver_failure(at(one, CROP), 0, 200)
    at(one, CROP).lane.clear()
    assert one.answer(1)[0] == 500
    assert one.is_empty()


def test_a_copy_of_a_request_that_went_on_in_parts_is_dropped() -> None:
    one = twin(shared=True)
    one.submit(1, first=2, route=EACH)
    one.finish(at(one, PRE), twice=True)
    assert one.front.stats.split == 1
    assert one.front.stats.duplicates == 1
    drain(one)
    assert one.answer(2) == (200, expected(2, EACH))
    assert one.is_empty()


@pytest.mark.parametrize("first", ["apart", "past"])
def test_of_a_copy_that_is_taken_apart_and_one_that_is_sent_past_one_counts(first: str) -> None:
    one = twin(shared=True)
    one.submit(1, first=2, route=EACH)
    orders = {"apart": lambda *_: None, "past": lambda _id, _route, stage: POST if stage == PRE else None}
    pre = at(one, PRE)
    lane = list(pre.lane)
    one.goes = orders.pop(first)
    one.finish(pre, late=True)
    pre.lane.extend(lane)
    (one.goes,) = orders.values()
    one.finish(pre, late=True)
    one.arrive()
    drain(one)
    assert one.answer(2) == (200, expected(2, EACH) if first == "apart" else b"body2+0+4")
    assert one.is_empty()


def test_tries_with_one_key_are_computed_in_parts_once() -> None:
    one = twin(shared=True)
    key = b"k" * KEY_SIZE
    one.submit(1, first=2, route=EACH, key=key)
    one.submit(1, first=3, route=EACH, key=key)
    drain(one)
    assert one.answer(2) == one.answer(3) == (200, expected(2, EACH))
    assert one.is_empty()


def test_events_of_parts_are_dropped_and_their_sender_may_go_on() -> None:
    one = Twin(TABLE, [replace(SPEC, name=f"s{index}") for index in range(5)])
    for stage in range(5):
        one.worker(stage, flow=Flow.EVENTS if stage == POST else Flow.WHOLE)
    one.submit(1, route=EACH)
    one.finish(at(one, PRE))
    crop = at(one, CROP)
    batch, _ = crop.lane[0]
    one.stages[CROP].crew.workers[crop.key].flow = int(Flow.EVENTS)
    told = StreamEvents(CROP, crop.key, batch.uids, batch=batch.batch)
    assert one.front.events(told, [b"one"] * len(batch.uids), one.now) == {}
    assert [type(action).__name__ for action in one.front.actions] == ["Grant"] * len(batch.uids)


@pytest.mark.parametrize(
    "roles",
    [[Role.PART], [Role.PART, Role.FRAME], [Role.DONE], [Role.DONE, Role.PART], [Role.FRAME, *[Role.PART] * 6]],
    ids=lambda roles: "-".join(role.name for role in roles),
)
def test_what_makes_no_sense_fails_its_request_at_once(roles: list[Role]) -> None:
    """As a worker may say it by mistake of ours."""
    one = twin(shared=True)
    one.submit(1, route=EACH)
    pre = at(one, PRE)
    batch, _ = pre.lane[0]
    n = len(roles)
    stray = Parts(PRE, pre.key, batch.batch, batch.uids * n, [*map(int, roles)], [b""] * n)
    assert one.memory is not None
    one.deliver(stray, [one.memory.put(pre.arena, b"xyz") for _ in roles], JOIN)
    pre.lane.clear()  # it has answered
    one.run()
    assert one.answer(1) == (500, wording.ASTRAY.encode())
    drain(one)
    assert not one.front.stats.parts
    assert one.front.failures.counts.total() == 1
    assert one.is_empty()


@pytest.mark.parametrize("route", [EACH, HOLES])
def test_a_part_of_which_nonsense_is_said_fails_as_any_that_fails(route: int) -> None:
    one = twin()
    one.submit(1, first=2, route=route)
    one.finish(at(one, PRE))
    crop = at(one, CROP)
    batch, _ = crop.lane[0]
    stray = Parts(CROP, crop.key, batch.batch, batch.uids[:1], [int(Role.FRAME)], [b""])
    one.deliver(stray, [b"x"], JOIN)
    one.run()
    drain(one)
    assert one.answer(2) == ((500, wording.ASTRAY.encode()) if route == EACH else (200, b"body2+0(-,body2+0b+1)+4"))
    assert one.is_empty()


def test_a_goal_of_the_requests_own_counts_however_it_ends_too() -> None:
    one = twin()
    for seq, status in ((3, 200), (7, 408)):
        one.submit(1, first=seq, route=EACH, budget_s=10.0, qos=Qos(slo_us=5_000_000))
        one.finish(at(one, PRE))
        if status != 200:
            one.pass_time(10.1)
        drain(one)
        assert one.answer(seq)[0] == status
    assert one.front.stats.goals == {(EACH, True): 1, (EACH, False): 1}


GOALS = FrontSpec(100, 1 << 20, slos_s=(5.0,) * 6)


def test_a_whole_counts_among_the_answers_that_had_a_goal_however_it_ends() -> None:
    one = twin(front=GOALS)
    for way in ("done", "fails", "refused", "late"):
        goals = dict(one.front.stats.goals)
        seq = 3 + 4 * len(goals) + 20 * len(way)
        one.submit(1, first=seq, route=EACH, budget_s=10.0)
        one.finish(at(one, PRE))
        if way == "fails":
            one.deliver_failure(at(one, CROP), 1, 422)
        elif way == "refused":
            one.front.fail(Fail(CROP, [at(one, CROP).lane[0][0].uids[1]], 429, "full", why=FULL), one.now)
            one.run()
        elif way == "late":
            one.pass_time(10.1)
        drain(one)
        found = one.front.stats.goals - Counter(goals)
        assert found == {(EACH, way in ("done", "fails")): 1}, way
        assert one.answer(seq)[0] == {"done": 200, "fails": 422, "refused": 429, "late": 408}[way]
    assert one.is_empty()


def test_parts_come_in_the_order_of_their_wholes_and_not_in_that_in_which_they_were_made() -> None:
    classes = tuple(Priority.HIGH if route == HOLES else Priority.NORMAL for route in range(6))
    one = twin(front=FrontSpec(1000, 1 << 20, priorities=classes))
    one.elements = lambda request_id: 12 if request_id == "r1" else 3
    one.submit(1, first=1, route=LONG, budget_s=60.0)
    one.submit(1, first=2, route=LONG, budget_s=60.0, qos=Qos(priority=Priority.LOW))
    one.submit(1, first=3, route=HOLES, budget_s=60.0)
    one.submit(1, first=4, route=EACH, budget_s=10.0)
    drain_stage(one, PRE)
    crop, order = at(one, CROP), []
    while crop.lane:
        batch, _ = crop.lane[0]
        order += ids_of(batch)
        given = {who: us / 1e6 for us, who in zip(batch.budgets_us, ids_of(batch), strict=True)}
        assert all(left_s <= (10.0 if who == "r4" else 60.0) for who, left_s in given.items())
        one.finish(crop)
        one.pass_time(0.01)  # a queue is not sorted again and again
    begun = [who for who in order[:6] if who == "r1"]  # as many as were given before the others came
    assert order[len(begun) : len(begun) + 6] == ["r4"] * 3 + ["r3"] * 3
    drain(one)
    assert [one.answer(seq)[0] for seq in (1, 2, 3, 4)] == [200] * 4


def test_a_trail_has_the_steps_of_the_part_that_came_last_and_of_every_branch() -> None:
    one = twin()
    one.submit(1, first=2, route=ALL)
    trail = pack_step(1, 1, 1)
    pre = at(one, PRE)
    pre.lane[0][0].trails[0] = trail
    one.finish(pre)
    for stage, step in ((OTHER, (2, 2, 2)), (CROP, (3, 3, 3))):
        worker = at(one, stage)
        worker.lane[0][0].trails[0] += pack_step(*step)
        one.finish(worker)
    batch, _ = at(one, POST).lane[0]
    assert unpack_trail(batch.trails[0]) == [(1, 1, 1), (3, 3, 3), (2, 2, 2)]


def test_a_request_at_the_door_expects_its_parts_to_be_computed_too() -> None:
    door = Admission(TABLE, 0.0)
    for stage in (PRE, CROP, POST):
        door.foresee(Foresee(stage, outlook(1, 0.001 if stage != CROP else 0.1), 0.1 if stage == CROP else 0.001))
    few = door.done_at(EACH, 0.0, 2000.0)
    for _ in range(100):
        door.spread(EACH, PRE, 10)
    assert door.done_at(EACH, 0.0, 2000.0) > few + 0.5
    assert door.surely_done_at(EACH, 1, 2000.0) == float("inf")
    assert door.goals.least_s[ALL] == pytest.approx(0.102)


# --- payloads ------------------------------------------------------------------------------------------------------


PAYLOADS: st.SearchStrategy[Payload] = st.recursive(
    st.one_of(st.binary(max_size=50), st.builds(Ref, st.just(1), st.integers(0, 9), st.integers(1, 9))),
    lambda inner: st.lists(inner, min_size=2, max_size=3).map(tuple),
    max_leaves=1,
)
SEVERAL = st.one_of(PAYLOADS, st.lists(PAYLOADS, min_size=2, max_size=3).map(tuple))


@given(SEVERAL, st.lists(st.none() | SEVERAL, max_size=5))
def test_what_is_put_together_comes_apart_the_same(frame: Payload, slots: list[Payload | None]) -> None:
    packed = gathered.pack(frame, slots)
    assert gathered.is_packed(packed)
    assert gathered.unpack(packed) == (frame, slots)


def test_large_parts_are_not_copied() -> None:
    large = memoryview(b"x" * (INLINE_MAX + 1))
    packed = gathered.pack(b"f", [large, b"small"])
    assert isinstance(packed, tuple)
    assert packed[1] is large


@given(st.binary(max_size=40))
def test_anything_else_is_refused(data: bytes) -> None:
    for bad in (data, gathered.MARK + data):
        with pytest.raises(ValueError):  # whatever msgspec says
            gathered.unpack(bad)


def test_parts_belong_to_nobody_who_could_be_a_frontend() -> None:
    assert PARTS.startswith(b"\0")

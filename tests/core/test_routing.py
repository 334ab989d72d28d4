"""Routes as graphs: what comes next, what can be reached, and which tables are none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.routing import FINAL, NOWHERE, After, Fork, Route, Topology, check, targets_of

PRE, EN, DE, POST = 0, 1, 2, 3
NAMES = ("pre", "english", "german", "post")
FORK = Fork("lang", (("en", EN), ("de", DE)), DE)
BRANCHED = Route("/r", (PRE, EN, DE, POST), (FORK, POST, POST, FINAL))
TABLE = Topology(
    NAMES, (BRANCHED, Route("/chain", (PRE, EN, POST)), Route("/ends", (PRE, EN, DE), (FORK, FINAL, FINAL)))
)


def test_a_chain_and_a_branched_route_say_what_comes_next() -> None:
    assert TABLE.after(0, PRE) == FORK
    assert [TABLE.following(0, stage) for stage in range(4)] == [(EN, DE), (POST,), (POST,), (FINAL,)]
    assert [TABLE.later(0, stage) for stage in range(4)] == [(EN, DE, POST), (POST,), (POST,), ()]
    assert [TABLE.following(1, stage) for stage in (PRE, EN, POST)] == [(EN,), (POST,), (FINAL,)]
    assert TABLE.later(1, PRE) == (EN, POST)
    assert (TABLE.ends(0), TABLE.ends(1), TABLE.ends(2)) == ((POST,), (POST,), (EN, DE))
    with pytest.raises(KeyError):
        TABLE.after(1, DE)


def test_a_hop_is_a_position_whichever_way_was_taken() -> None:
    assert [TABLE.hop(0, stage) for stage in range(4)] == [0, 1, 2, 3]
    assert TABLE.hops(DE) == {0: 2, 2: 2}
    assert TABLE.hops(EN, DE) == {}  # no way leads from one branch to the other
    assert TABLE.hops(PRE, POST) == {0: 0, 1: 0}


def test_only_where_several_can_take_a_result_is_a_route_open() -> None:
    chains = Topology(("a", "b", "c"), (Route("/1", (0,)), Route("/2", (0, 1)), Route("/3", (0, 1, 2))))
    assert [chains.is_open(route) for route in range(3)] == [False, False, True]
    assert TABLE.is_open(0)


def test_what_a_way_takes_and_how_often_each_is_taken() -> None:
    assert TABLE.least(0, [1.0, 10.0, 5.0, 2.0]) == 8.0
    assert TABLE.least(1, [1.0, 10.0, 5.0, 2.0]) == 13.0
    assert TABLE.visits(0) == {PRE: 1.0, EN: 0.5, DE: 0.5, POST: 1.0}
    assert TABLE.visits(1) == {PRE: 1.0, EN: 1.0, POST: 1.0}


def test_a_route_in_one_line() -> None:
    assert TABLE.way(1) == "pre -> english -> post"
    assert TABLE.way(2) == (
        "pre -> lang? en english, de german, else german; english -> the answer; german -> the answer"
    )
    assert TABLE.shapes().keys() == {"/r", "/ends"}


def test_a_table_that_travels_comes_out_the_same() -> None:
    routes = [(route.path, list(route.stages)) for route in TABLE.routes]
    packed = msgspec.msgpack.encode(TABLE.told_after())
    told = msgspec.msgpack.decode(packed, type=dict[int, list[int | Fork]])
    assert Topology.of(NAMES, routes, told) == TABLE
    assert 1 not in told  # a chain says nothing


@pytest.mark.parametrize(
    "route",
    [
        Route("/r", (0, 0)),
        Route("/r", (0, 1), (1,)),
        Route("/r", (0, 1), (0, FINAL)),  # back to itself
        Route("/r", (0, 1), (FINAL, 0)),  # back
        Route("/r", (0, 1), (FINAL, FINAL)),  # nothing leads to the second
        Route("/r", (0, 1), (2, FINAL)),  # out of it
        Route("/r", (0, 1), (NOWHERE, FINAL)),
        Route("/r", (0, 1), (Fork("x", ()), FINAL)),
    ],
)
def test_what_is_no_route_is_refused(route: Route) -> None:
    with pytest.raises(ValueError, match="/r"):
        check(route)
    with pytest.raises(ValueError, match="/r"):
        Topology.of(("a", "b"), [("/r", route.stages)], {0: list(route.after)} if route.after else None)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    count = draw(st.integers(1, 7))
    after: list[After] = []
    for stage in range(count):
        behind = [*range(stage + 1, count), FINAL]
        must = stage + 1 if stage + 1 < count else FINAL  # so every stage is reached
        others = draw(st.lists(st.sampled_from(behind), max_size=3))
        texts = tuple((f"t{n}", target) for n, target in enumerate([must, *others]))
        after.append(Fork("by", texts, draw(st.sampled_from([NOWHERE, *behind]))) if others else must)
    return Route("/r", tuple(range(count)), tuple(after))


@given(routes())
def test_every_way_goes_forward_and_ends(route: Route) -> None:
    check(route)
    table = Topology(tuple(f"s{one}" for one in route.stages), (route,))
    for stage in route.stages:
        later = set(table.later(0, stage))
        assert all(one > stage for one in later)
        following = {one for one in table.following(0, stage) if one != FINAL}
        assert following <= later
        assert later == following.union(*(table.later(0, one) for one in following))
    assert set(table.later(0, 0)) == set(route.stages[1:])
    ones = [1.0] * len(route.stages)
    assert 1 <= table.least(0, ones) <= len(route.stages)
    visits = table.visits(0)
    left = sum(
        part / len(table.following(0, stage)) * table.following(0, stage).count(FINAL) for stage, part in visits.items()
    )
    assert left == pytest.approx(1.0)  # whoever comes in comes out
    assert all(targets_of(one) for one in route.ways)

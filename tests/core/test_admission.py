"""The door's short look at a parcel against its look at each request: it may be too cautious, never too hopeful."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.actions import Foresee
from engine.core.admission import Admission
from engine.core.predict import Outlook
from engine.core.routing import Route, Topology

NOW = 100.0
TOPOLOGY = Topology(("a", "b", "c"), (Route("/r", (0, 1, 2)), Route("/s", (0, 2)), Route("/t", (1,))))

instants = st.floats(NOW - 1.0, NOW + 3.0)
counts = st.integers(0, 100)


@st.composite
def outlooks(draw: st.DrawFn) -> Outlook:
    most = draw(st.integers(1, 32))
    steps = draw(st.lists(st.floats(0.0, 0.1), min_size=most, max_size=most))
    shape = [0.0]
    for step in steps:
        shape.append(shape[-1] + step)
    return Outlook(
        queued=draw(counts),
        in_flight=draw(counts),
        taken=draw(st.integers(0, 20)),
        frees=sorted(draw(st.lists(instants, min_size=1, max_size=4))),
        most=most,
        rate=draw(st.floats(0.0, 1000.0)),
        shape=shape,
        overhead_s=draw(st.floats(0.0, 0.01)),
        margin=draw(st.floats(1.0, 1.5)),
        slowness=draw(st.floats(0.5, 3.0)),
        ranks=sorted(draw(st.lists(instants, max_size=5))),
        each=draw(st.sampled_from([1.0, 0.5, 2.5][: 3 if most > 2 else 2])),
    )


@given(
    st.lists(st.none() | outlooks(), min_size=3, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), instants), min_size=1, max_size=40),
    st.lists(st.integers(20, 60), min_size=3, max_size=3),
)
def test_nobody_is_done_later_than_all_of_a_parcel_are_for_sure(
    seen: list[Outlook | None], coming: list[tuple[int, float]], handed: list[int]
) -> None:
    door = Admission(TOPOLOGY, 0.0)
    for stage, outlook in enumerate(seen):
        door.foresee(Foresee(stage, outlook, 0.0))
        door.stages[stage].handed = handed[stage]
    surely = [door.surely_done_at(route, len(coming), NOW) for route in range(len(TOPOLOGY.routes))]
    for route, rank in coming:
        assert door.done_at(route, rank, NOW) <= surely[route] + 1e-9
        door.stages[TOPOLOGY.routes[route].stages[0]].handed += 1

"""The detectors detect: with a planted fault of each kind a row, or a soak, fails and says which. And without, it does
not: the same deployment is soaked first, with kills among the load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from faults import drill, harm, soak
from faults.harm import Fault
from faults.place import Service, Stage, Stageline, stageline
from faults.rows import ROWS, Row
from faults.scene import Scene
from tests.chaos.conftest import LATE_S, SEED
from tests.chaos.relay import KINDS, Relay, relay

pytestmark = pytest.mark.unmeasured

# Recycled all the time: what is kept of workers that have gone would show.
SERVICE = Service(
    "detect",
    (Stage("prep", more='recycle_after = "200 batches"\n'), Stage("model", num=2, fixed_s=0.005)),
    (("/work", ("prep", "model")),),
)
MILD = [replace(row, times=1) for row in ROWS if row.id in ("B5", "F5")]


@pytest.fixture(scope="module")
def place() -> Iterator[Stageline]:
    with stageline(SERVICE) as made:
        yield made


@pytest.fixture(scope="module")
def faulty(place: Stageline) -> Iterator[Relay]:
    with relay(place.url) as made:
        yield made


def run(place: Stageline, fault: Fault, *, url: str = "", once: tuple[str, ...] = ()) -> list[str]:
    """The kinds of problems that are found."""
    row = Row("planted", "planted", fault, once=once, before=5, after=0)
    return [problem.partition(":")[0] for problem in drill.run(row, place, seed=SEED, late_s=0.5, url=url).problems]


# --- what holds still -------------------------------------------------------------------------------------------------


def test_a_soak_of_what_is_sound_finds_nothing(place: Stageline) -> None:
    assert soak.run(place, MILD, seed=SEED, late_s=LATE_S, enough=lambda _: True) == []


# --- answers ----------------------------------------------------------------------------------------------------------

FOUND = {"lose": ["lost"], "double": ["double"], "falsify": ["wrong"], "swap": ["wrong"], "delay": ["late"]}


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_an_answer_that_is_meddled_with_is_found(place: Stageline, faulty: Relay, kind: str) -> None:
    def fault(scene: Scene) -> None:
        asked = []
        for _ in "12" if kind == "swap" else "1":
            deadline_s = 0.5 if kind == "delay" else None
            asked.append(scene.ask({"model": {"do": "sleep", "s": 0.05}}, deadline_s=deadline_s))
            if kind != "none":
                faulty.meddle(asked[-1].number, kind)
            scene.injected += 1
        for one in asked:
            one.answer()

    assert run(place, fault, url=faulty.url) == FOUND.get(kind, [])


def ask(**act: str) -> Fault:
    def fault(scene: Scene) -> None:
        scene.ask({"model": act}).answer()
        scene.injected += 1

    return fault


def kill_though_nobody_may_die(scene: Scene) -> None:
    with scene.nobody_dies():
        scene.kill(scene.one())


def hit_nothing(scene: Scene) -> None:
    asked, _ = scene.busy()
    scene.injected += 1
    harm._computed_again(scene, asked)


@pytest.mark.parametrize(
    ("fault", "once", "found"),
    [
        (ask(do="again"), (), []),
        (ask(do="again"), ("model",), ["double"]),
        (ask(do="raise", what="RuntimeError"), (), ["refused"]),
        (lambda scene: scene.flow(1), (), ["empty"]),
        (hit_nothing, (), ["empty"]),
        (kill_though_nobody_may_die, (), ["died"]),
    ],
)
def test_what_else_may_not_be_is_found(
    place: Stageline, fault: Callable[[Scene], None], once: tuple[str, ...], found: list[str]
) -> None:
    assert run(place, fault, once=once) == found


# --- leaks ------------------------------------------------------------------------------------------------------------

LEAKS = {
    "descriptor": "descriptors",
    "thread": "threads",
    "memory": "memory",
    "shared memory": "shared memory",
    "file": "run directory",
}


def test_leaks_are_found(place: Stageline) -> None:
    def leak(scene: Scene) -> None:
        asked = [scene.ask({"model": {"do": "leak", "what": what}}) for what in LEAKS for _ in range(6)]
        scene.injected += len(asked)
        for one in asked:
            one.answer()

    row = Row("leaks", "leaks", leak, before=5, after=0)
    problems = soak.run(place, [row], seed=SEED, late_s=LATE_S, enough=lambda _: True)
    assert {problem.split(" from ")[0] for problem in problems} >= {f"grows: {what}" for what in LEAKS.values()}

"""The simulator has no rules of its own: it drives the machines that a broker drives, made of a file as those are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import build
from engine.core import batching, spacing
from engine.core.admission import Admission
from engine.core.front import FrontMachine, FrontSpec
from engine.core.routing import FINAL, JOIN, Route, Split, Topology
from engine.core.stage import StageMachine, StageSpec
from engine.simulation.arrivals import Renewal
from engine.simulation.figures import Figures
from engine.simulation.profile import Profile, StageProfile
from engine.simulation.study import Service, one, study
from engine.simulation.world import Works, World
from engine.specs import front_spec, stage_spec

pytestmark = pytest.mark.unmeasured

FLAT = StageProfile({1: 0.0201, 32: 0.0232})


def service(
    *stages: StageProfile, slo_s: float = 0.2, most: int = 32, routes: tuple[tuple[int, ...], ...] = ()
) -> Service:
    names = [f"s{place}" for place in range(len(stages))]
    ways = routes or (tuple(range(len(stages))),)
    specs = tuple(StageSpec(name, 1, batching.Policy(most), 30.0, 30.0, 1 << 30) for name in names)
    topology = Topology(tuple(names), tuple(Route(f"/{number}", way) for number, way in enumerate(ways)))
    profile = Profile(dict(zip(names, stages, strict=True)))
    front = FrontSpec(8192, 1 << 30, slos_s=(slo_s,) * len(ways))
    return Service(topology, front, specs, profile, 3.0, (1.0,) * len(ways))


def asked(what: Service, rate: float, *counts: int, requests: int = 1500) -> Figures:
    return study(what, counts, Renewal(rate), requests=requests, seeds=1)


def test_it_drives_the_very_classes_of_the_core() -> None:
    world = World(
        Topology(("s",), (Route("/", (0,)),)),
        [StageSpec("s", 2, batching.Policy(4), 1.0, 1.0, 1 << 20)],
        [Works(lambda n: 0.01)],
        front=FrontSpec(10, 1 << 20),
    )
    assert type(world.front) is FrontMachine
    assert [type(stage) for stage in world.stages] == [StageMachine]
    assert type(world.front.door) is Admission


def test_a_rule_of_the_core_that_is_changed_changes_what_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a batch leaves, how partial ones are spaced, who would be late: each from where the broker has it."""
    flat = service(FLAT)
    usual = asked(flat, 600, 4)
    with monkeypatch.context() as patched:
        patched.setattr(spacing, "SPACING", 0.0)
        assert asked(flat, 600, 4).stages[0].mean_batch < 0.95 * usual.stages[0].mean_batch
    with monkeypatch.context() as patched:
        patched.setattr("engine.core.stage.decide", lambda *_args, **_kwargs: batching.NOTHING)
        assert asked(flat, 600, 4, requests=50).answered == 0.0
    tight = service(FLAT, slo_s=0.06)
    assert 0.2 < asked(tight, 2000, 1).refused < 0.5
    with monkeypatch.context() as patched:
        patched.setattr(Admission, "done_at", lambda _self, _route, _rank, now, **_more: now + 1.0)
        assert asked(tight, 2000, 1).refused > 0.6


def test_the_machines_are_made_of_the_file_as_the_brokers_are() -> None:
    data = {
        "stage": [
            {"name": "a", "worker": "m:A", "max_batch_size": 7, "max_wait_time": 3, "eager": False, "num": 2},
            {"name": "b", "worker": "m:B", "timeout": 5.0, "max_batch_bytes": 1000},
        ],
        "frontend": {"capacity": 77, "slo": 1.0},
    }
    deployment = build(data, file=Path("/x/stages.toml"), label="x")
    specs = tuple(stage_spec(stage, deployment.engine) for stage in deployment.stages)
    assert (specs[0].policy.max_batch_size, specs[0].policy.max_wait_s, specs[0].policy.eager) == (7, 0.003, False)
    assert (specs[1].timeout_s, specs[1].policy.max_batch_bytes) == (5.0, 1000)
    profile = Profile({"a": StageProfile({1: 0.01}), "b": StageProfile({1: 0.01})})
    made = Service(deployment.topology, front_spec(deployment), specs, profile, 3.0)
    run = one(made, (3, 2), Renewal(50.0), 100, seed=1)
    assert run.workers == [3, 2]
    assert front_spec(deployment).capacity == 77


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    noisy = service(replace(FLAT, noise=0.1))
    runs = [one(noisy, (2,), Renewal(400), 500, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].latencies != runs[2].latencies


def test_light_load_takes_what_a_batch_of_one_takes() -> None:
    figures = asked(service(StageProfile({1: 0.020}), most=1), 1.0, 1, requests=200)
    assert figures.p50_s == pytest.approx(0.0206, abs=1e-4)  # with a hop there, and one back
    assert figures.stages[0].busy == pytest.approx(0.02, rel=0.2)
    assert figures.in_time == 1.0


def test_what_is_busy_and_waited_for_is_told_by_stage() -> None:
    two = service(StageProfile({1: 0.001}), StageProfile({1: 0.018}), slo_s=1.0, most=1)
    figures = asked(two, 45.0, 1, 1)
    assert figures.limit == 1
    assert figures.stages[0].busy == pytest.approx(0.045, rel=0.2)
    assert figures.stages[1].busy == pytest.approx(0.81, rel=0.1)
    assert figures.stages[1].wait_p99_s > 10 * figures.stages[0].wait_p99_s


def test_requests_go_by_the_routes_as_often_as_these_are_asked_for() -> None:
    forked = replace(service(FLAT, FLAT, routes=((0,), (0, 1))), shares=(3.0, 1.0))
    assert forked.visits(0) == 1.0
    assert forked.visits(1) == 0.25
    run = one(forked, (2, 2), Renewal(200), 2000, seed=1)
    assert len(run.waits[1]) / len(run.waits[0]) == pytest.approx(0.25, rel=0.1)


def in_parts(split: Split, *parts: float, slo_s: float = 0.5) -> Service:
    made = service(FLAT, FLAT, FLAT, slo_s=slo_s)
    route = Route("/0", (0, 1, 2), (2, JOIN, FINAL), {0: split})
    return replace(made, topology=Topology(made.topology.stages, (route,)), parts={(0, 0): parts} if parts else {})


@pytest.mark.parametrize("parts", [(0.0,), (1.0,), (4.0,), (2.5,), (1.0, 1.0, 10.0)], ids=str)
def test_a_request_in_parts_is_asked_of_their_stage_as_often_as_it_has_some(parts: tuple[float, ...]) -> None:
    made = in_parts(Split((1,), 2), *parts)
    mean = sum(parts) / len(parts)
    assert made.visits(1) == pytest.approx(mean)
    run = one(made, (2, 8, 2), Renewal(100), 1000, seed=1)
    assert run.asked == len(run.latencies) == 1000
    assert len(run.waits[1]) / len(run.waits[0]) == pytest.approx(mean, rel=0.15)
    assert len(run.waits[2]) == len(run.waits[0])


def test_how_many_parts_there_are_says_how_many_workers_it_takes() -> None:
    few, many = (in_parts(Split((1,), 2), count).least(100.0) for count in (1.0, 40.0))
    assert (few[0], few[2]) == (many[0], many[2])
    assert many[1] > few[1] == 1
    pages = in_parts(Split((1,), 2), 40.0)
    assert asked(pages, 100.0, many[0], 2 * many[1], many[2], requests=300).in_time > 0.99
    assert asked(pages, 100.0, *few, requests=300).in_time < 0.9


@pytest.mark.parametrize("over", [1.0, 1.4, 2.8])
def test_with_more_parts_than_can_be_done_those_are_served_that_can_be_and_nobody_late(over: float) -> None:
    """The goal of a whole is that of its parts, and what the door expects of it counts them."""
    pages = in_parts(Split((1,), 2), 5.0, 20.0, slo_s=0.2)
    figures = asked(pages, 108.0 * over, 1, 1, 1, requests=600)
    assert figures.stages[1].load == pytest.approx(over, rel=0.1)
    assert figures.late < 0.01
    assert figures.in_time > 0.93 / over


def test_of_branches_each_gets_one() -> None:
    made = in_parts(Split((1,), 2, names=("x",)), 7.0)
    assert made.visits(1) == 1.0
    run = one(made, (2, 2, 2), Renewal(100), 200, seed=1)
    assert len(run.waits[1]) == len(run.waits[0])


def test_everybody_is_answered_and_counted_once() -> None:
    run = one(service(FLAT, slo_s=0.05), (1,), Renewal(3000), 2000, seed=1)
    assert run.asked == 2000
    assert 0 < run.good < run.asked
    assert run.good <= len(run.latencies)
    assert run.refused + len(run.latencies) <= run.asked

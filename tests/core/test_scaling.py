"""Numbers of workers that follow the demand: what is changed when, of one stage and of several."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from engine.core.demand import DOWN_S, UP_S, Windows
from engine.core.scaling import Bounds, Change, Scaling

STAGES = {"first": Bounds(0, 4), "second": Bounds(0, 4)}
ROUTES = (("first", "second"),)


class Deployed:
    """Some stages and a scaling of them; what it says is done at once, unless ``busy``."""

    def __init__(self, present: Mapping[str, int], bounds: Mapping[str, Bounds] | None = None) -> None:
        self.present = dict(present)
        self.bounds = dict(STAGES if bounds is None else bounds)
        self.scaling = Scaling(Windows())
        self.now = 0.0
        self.busy = False
        self.said: list[tuple[float, str, int]] = []

    def look(self, demand: Mapping[str, float], asked: Collection[str] = ()) -> list[Change]:
        found = self.scaling.look(self.present, self.bounds, demand, self.now, asked=asked, routes=ROUTES)
        if not self.busy:
            self.present.update({one.stage: one.after for one in found})
            self.said += [(self.now, one.stage, one.after) for one in found]
        return found

    def pass_time(self, seconds: float, demand: Mapping[str, float]) -> None:
        for _ in range(round(seconds)):
            self.now += 1.0
            self.look(demand)


def test_a_request_that_waits_wakes_the_stages_on_its_way_at_once_and_no_others() -> None:
    some = {**STAGES, "other": Bounds(0, 4)}
    made = Deployed({"first": 0, "second": 0, "other": 0}, some)
    idle = dict.fromkeys(some, 0.0)
    made.pass_time(5, idle)
    assert made.said == []
    found = made.look(idle, asked=["first"])
    assert [(one.stage, one.before, one.after) for one in found] == [("first", 0, 1), ("second", 0, 1)]


def test_a_figure_that_comes_before_it_is_said_that_somebody_waits_wakes_the_stages_on_the_way_too() -> None:
    made = Deployed({"first": 0, "second": 0})
    found = made.look({"first": 0.8, "second": 0.0})
    assert [(one.stage, one.before, one.after) for one in found] == [("first", 0, 1), ("second", 0, 1)]


def test_who_waits_at_the_last_stage_wakes_that_alone() -> None:
    made = Deployed({"first": 0, "second": 0})
    assert [one.stage for one in made.look({"first": 0.0, "second": 0.0}, asked=["second"])] == ["second"]


def test_whoever_was_woken_stays_for_as_long_as_any_other() -> None:
    made = Deployed({"first": 0, "second": 1})
    idle = {"first": 0.0, "second": 0.0}
    made.look(idle, asked=["first"])
    made.pass_time(DOWN_S + 10, idle)
    assert {(stage, after) for _, stage, after in made.said} == {("first", 1), ("second", 0), ("first", 0)}
    assert all(at >= DOWN_S for at, _, after in made.said if after == 0)


def test_from_one_on_more_come_after_the_window() -> None:
    made = Deployed({"first": 0, "second": 1})
    made.look({"first": 0.0, "second": 0.5}, asked=["first"])
    made.pass_time(UP_S + 5, {"first": 3.0, "second": 0.5})
    assert [(stage, after) for _, stage, after in made.said] == [("first", 1), ("first", 4)]
    assert made.said[-1][0] >= UP_S


def test_what_could_not_be_done_is_asked_for_again() -> None:
    made = Deployed({"first": 1, "second": 1})
    made.busy = True
    made.pass_time(UP_S + 5, {"first": 2.0, "second": 0.5})
    assert made.present["first"] == 1
    made.busy = False
    assert [(one.before, one.after) for one in made.look({"first": 2.0, "second": 0.5})] == [(1, 3)]


def test_it_goes_on_from_a_number_that_somebody_sets() -> None:
    made = Deployed({"first": 1, "second": 1})
    demand = {"first": 0.5, "second": 0.5}
    made.pass_time(DOWN_S + 60, demand)
    made.present["first"] = 3
    made.scaling.take(made.present)
    began = made.now
    made.pass_time(DOWN_S + 60, demand)
    assert [(stage, after) for _, stage, after in made.said] == [("first", 1)]
    assert made.said[0][0] >= began + DOWN_S


def test_a_stage_of_which_no_figure_is_told_keeps_what_it_has() -> None:
    made = Deployed({"first": 3, "second": 1})
    made.pass_time(2 * DOWN_S, {"second": 0.5})
    assert made.said == []


def test_each_broker_has_a_worker_or_none_has() -> None:
    made = Deployed({"first": 0, "second": 2}, {"first": Bounds(0, 4, 2), "second": Bounds(0, 4, 2)})
    made.look({"first": 0.0, "second": 0.2}, asked=["first"])
    made.pass_time(2 * DOWN_S, {"first": 0.0, "second": 0.2})
    assert [(stage, after) for _, stage, after in made.said] == [("first", 2), ("first", 0)]


def test_a_change_says_its_reason() -> None:
    assert str(Change("encode", 1, 3, 2.125)) == "scaling encode from 1 to 3: its demand is 2.12 workers"

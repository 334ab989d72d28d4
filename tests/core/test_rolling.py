"""The order in which workers are replaced: standings in, steps out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.rolling import Do, Mark, Rollout, Slot, Standing, Step


def side(version: str, **nums: int) -> list[tuple[Slot, str]]:
    return [((stage, k), f"{stage}{k}{version}") for stage, num in nums.items() for k in range(1, num + 1)]


class World:
    """Processes that do what they are told, when they are let."""

    def __init__(
        self, old: Sequence[tuple[Slot, str]], new: Sequence[tuple[Slot, str]], ahead: Sequence[str] = ()
    ) -> None:
        self.stands: dict[str, Standing] = {worker: Standing.READY for _, worker in old}
        self.rollout: Rollout[str] = Rollout(old, new, ahead)
        self.told: list[str] = []
        self.done = False

    def standing(self, worker: str) -> Standing:
        return self.stands.get(worker, Standing.ABSENT)

    def look(self) -> None:
        self.obey(self.rollout.next(self.standing))

    def obey(self, steps: Sequence[Step[str] | Mark]) -> None:
        for step in steps:
            self.told.append(step.value if isinstance(step, Mark) else f"{step.do.value} {step.worker}")
            if isinstance(step, Mark):
                self.done = self.done or step is Mark.DONE
            elif step.do is Do.START:
                assert self.standing(step.worker) is Standing.ABSENT
                self.stands[step.worker] = Standing.COMING
            else:
                self.stands[step.worker] = Standing.GOING

    def settle(self) -> None:
        """Everything that is coming is ready, everything that is going is gone."""
        for worker, stands in list(self.stands.items()):
            if stands is Standing.COMING:
                self.stands[worker] = Standing.READY
            elif stands is Standing.GOING:
                del self.stands[worker]

    def run(self) -> list[str]:
        for _ in range(200):
            self.look()
            if self.done:
                return self.told
            self.settle()
        raise AssertionError(self.told)

    def serving(self, stage: str) -> int:
        return sum(stands is Standing.READY and worker.startswith(stage) for worker, stands in self.stands.items())


def test_a_version_proves_itself_at_every_stage_before_anything_old_goes() -> None:
    told = World(side("o", a=2, b=1), side("n", a=2, b=1)).run()
    assert told == [
        "start a1n",
        "start b1n",
        "commit",
        "retire a1o",
        "start a2n",
        "retire a2o",
        "retire b1o",
        "done",
    ]


def test_whom_the_new_ones_need_is_there_before_them() -> None:
    old = side("o", a=2, b=2)
    new = [old[0], (("a", 2), "a2n"), old[2], (("b", 2), "b2n")]
    assert World(old, new, ["x", "y"]).run() == [
        "start x",
        "start y",
        "start a2n",
        "start b2n",
        "commit",
        "retire a2o",
        "retire b2o",
        "done",
    ]


@pytest.mark.parametrize("looks", [1, 2])
def test_and_goes_with_them_where_the_version_does_not_prove_itself(looks: int) -> None:
    old = side("o", a=2)
    world = World(old, [old[0], (("a", 2), "a2n")], ["x"])
    for _ in range(looks):
        world.look()
        world.settle()
    assert not world.rollout.committed
    world.obey(world.rollout.give_up(world.standing))
    world.settle()
    assert world.stands == {worker: Standing.READY for _, worker in old}


def test_one_that_cannot_start_leaves_the_old_ones_alone() -> None:
    world = World(side("o", a=2, b=1), side("n", a=2, b=1))
    world.look()
    world.settle()
    world.look()  # b1n is coming, and fails
    del world.stands["b1n"]
    world.obey(world.rollout.give_up(world.standing))
    world.settle()
    assert world.told == ["start a1n", "start b1n", "retire a1n"]
    assert world.stands == dict.fromkeys(("a1o", "a2o", "b1o"), Standing.READY)
    assert world.rollout.next(world.standing) == []


def test_more_and_fewer_of_a_stage() -> None:
    kept = side("o", a=1)
    grown = World([*kept], [*kept, (("a", 2), "a2n"), (("a", 3), "a3n")])
    assert grown.run() == ["start a2n", "commit", "start a3n", "done"]
    shrunk = World(side("o", a=3), side("o", a=1))
    assert shrunk.run() == ["commit", "retire a2o", "retire a3o", "done"]


def test_what_dies_after_the_commit_is_waited_for() -> None:
    world = World(side("o", a=2), side("n", a=2))
    for _ in range(3):
        world.look()
        world.settle()
    assert world.told[-1] == "start a2n"
    world.stands["a2n"] = Standing.COMING  # it died, and is to be started again
    world.look()
    assert world.told[-1] == "start a2n"
    assert world.standing("a2o") is Standing.READY


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 4), min_size=1),
    st.data(),
)
def test_no_stage_ever_serves_with_fewer_than_it_had_or_shall_have(nums: dict[str, int], data: st.DataObject) -> None:
    wanted = {stage: data.draw(st.integers(1, 4)) for stage in nums}
    world = World(side("o", **nums), side("n", **wanted))
    for _ in range(200):
        world.look()
        if world.done:
            break
        for stage, num in nums.items():
            assert world.serving(stage) >= min(num, wanted[stage])
        coming = [worker for worker, stands in world.stands.items() if stands is Standing.COMING]
        assert len(coming) <= 1
        world.settle()
    assert world.done
    assert set(world.stands) == {worker for _, worker in side("n", **wanted)}


def test_giving_up_is_for_what_is_not_committed() -> None:
    world = World(side("o", a=1), side("n", a=1))
    world.run()
    with pytest.raises(AssertionError):
        world.rollout.give_up(world.standing)

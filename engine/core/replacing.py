"""Which workers of a running deployment are to be replaced, and why: one rollout after the other. Pure.

Two things ask for fresh workers: somebody who wants another configuration (Replace), and a worker that has served for
as long as it shall (Worn). One rollout runs at a time, what was asked for comes before what is worn, and whoever asked
is told how it ended. In which order a rollout starts and retires is :mod:`engine.core.rolling`'s to say; to carry it
out is :class:`engine.core.lifecycle.Machine`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from engine.core.processes import Child, Committed, Replace, Replaced, Say, Slot
from engine.core.rolling import Mark, Rollout, Standing, Step

Task: TypeAlias = "Step[Child] | Committed | Replaced | Say"


class Replacing:
    """See the module. Holds what is asked for and how far it is; of the processes it knows what it is told."""

    def __init__(self) -> None:
        self._rollout: Rollout[Child] | None = None
        self._is_asked = False  # the rollout is a Replace, and no worn worker's
        self._next: Replace | None = None  # waits for a worn worker's rollout to end
        self._worn: dict[Child, str] = {}  # in the order in which they asked, and why
        self._turns = 0

    @property
    def is_proven(self) -> bool:
        """The version that is rolled out has shown that it can serve."""
        return self._rollout is not None and self._rollout.committed

    def is_on_trial(self, child: Child) -> bool:
        """It is one of those by whose start the version proves itself: if it fails, what there was goes on."""
        return self._rollout is not None and not self._rollout.committed and child in self._rollout.fresh

    def takes(self, *, fewer: bool) -> bool:
        """Whether the number of workers can be changed beside what is under way: never beside another configuration;
        and one who is worn must not be taken away while it is being replaced."""
        return self._next is None and not self._is_asked and (self._rollout is None or not fewer)

    def ask(self, asked: Replace) -> list[Replaced]:
        if self._next is not None or (self._rollout is not None and self._is_asked):
            return [Replaced("not now: it is replacing workers already")]
        self._next = asked
        return []

    def wear(self, child: Child, reason: str) -> None:
        self._worn.setdefault(child, reason)

    def next(self, workers: Sequence[Child], standing: Callable[[Child], Standing]) -> list[Task]:
        """What to do now, to be asked again until it is nothing. ``workers``: those that are there, or shall come
        back."""
        tasks: list[Task] = []
        while not tasks:  # that a worn worker's rollout is over is told to nobody, and something may follow
            if self._rollout is not None:
                if not (steps := self._rollout.next(standing)):
                    break
                for step in steps:
                    tasks += self._reached(step) if isinstance(step, Mark) else [step]
            elif self._next is not None:
                tasks += self._begin_asked(self._next, workers)
            elif self._worn:
                tasks += self._begin_worn(workers)
            else:
                break
        return tasks

    def _reached(self, mark: Mark) -> Sequence[Committed | Replaced]:
        if mark is Mark.DONE:
            return self._end()
        return [Committed()] if self._is_asked else []

    def give_up(self, error: str, standing: Callable[[Child], Standing]) -> list[Task]:
        """A new worker could not start before there was a commit: what there was goes on."""
        assert self._rollout is not None
        return [*self._rollout.give_up(standing), *self._end(error)]

    def stop(self) -> list[Replaced]:
        """The deployment stops: there is nothing to replace any more."""
        self._is_asked = self._is_asked or self._next is not None
        self._next = None
        self._worn.clear()
        return self._end("it is stopping")

    def _begin(
        self, workers: Sequence[Child], then: Sequence[Child], *, ahead: Sequence[Child] = (), is_asked: bool
    ) -> None:
        old, new = ([(_slot(child), child) for child in some] for some in (workers, then))
        self._rollout = Rollout(old, new, ahead)
        self._is_asked = is_asked

    def _begin_asked(self, asked: Replace, workers: Sequence[Child]) -> list[Task]:
        self._next = None
        there = {
            _slot(child): child
            for child in workers
            if asked.renew is not None and child.stage not in asked.renew and _slot(child) not in asked.moved
        }
        then = [there.get(_slot(child), child) for child in asked.workers]
        self._begin(workers, then, ahead=asked.brokers, is_asked=True)
        return [Say(asked.what)]

    def _begin_worn(self, workers: Sequence[Child]) -> list[Task]:
        """A fresh worker for the next that asked for one and is still there."""
        while self._worn:
            child, reason = next(iter(self._worn.items()))
            del self._worn[child]
            if child in workers:
                self._turns += 1
                fresh = replace(child, turn=self._turns)
                self._begin(workers, [fresh if one == child else one for one in workers], is_asked=False)
                return [Say(f"{child.name} is replaced: {reason}", child=child)]
        return []

    def _end(self, error: str = "") -> list[Replaced]:
        self._rollout = None
        was_asked, self._is_asked = self._is_asked, False
        return [Replaced(error)] if was_asked else []


def _slot(child: Child) -> Slot:
    return child.stage, child.slot

"""The actor that sees to it that each stage has as many workers as its demand takes, within the bounds of the file.

It outlives the command that made it, and Ray starts it again where it was lost, so it keeps nothing that it could not
find out: how many workers there are is how many of their actors are. When there are to be more or fewer is for
:mod:`engine.core.scaling` to say, by the figures of the broker, for which its holder is asked. A worker that is not
needed any more ends as if a signal had asked for it, when it has finished what it has; then its actor goes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from engine import log
from engine.clock import now
from engine.core.demand import USUAL, Windows
from engine.core.scaling import Scaling
from engine.onray.actors import Actors, Told
from engine.onray.parts import Crew

LOOK_S: Final = 1.0
STOP_S: Final = 10.0  # beyond the grace


class Scaler:
    """See the module. Its methods are called by Ray, in threads of their own."""

    def __init__(
        self,
        deployment: str,
        crews: Sequence[Crew],
        routes: Sequence[Sequence[str]],
        told: Told,
        grace_s: float,
        windows: Windows = USUAL,
        actors: Actors | None = None,
    ) -> None:
        """``crews``: of the stages that are scaled. ``actors``: None: those of the cluster that this is an actor of, at
        which it looks in a thread of its own."""
        self._actors = _own() if actors is None else actors
        self._deployment = deployment
        self._crews = {crew.stage: crew for crew in crews}
        self._routes = routes
        self._told = told
        self._within_s = grace_s + STOP_S
        self._scaling = Scaling(windows)
        self._nums: dict[str, int] = {}
        self._leaving: dict[str, tuple[Any, float]] = {}  # by name: the word that it has ended, and until when it may
        if actors is None:
            threading.Thread(target=self._run, name="scaler", daemon=True).start()

    def nums(self) -> Mapping[str, int]:
        """How many workers there are to be, by stage."""
        return dict(self._nums)

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_S):
            try:
                self.look(now())
            except Exception:  # Ray's: a node is being lost, say. What there is to do is found anew each time
                log.get_logger().exception("not looked at the demand")

    # --- one look ----------------------------------------------------------------------------------------------------

    def look(self, at: float) -> None:
        names = self._actors.names(self._deployment)
        if not self._nums:
            self._take_over(names, at)
        bounds = {stage: crew.bounds for stage, crew in self._crews.items()}
        demand, asked = self._figures()
        for change in self._scaling.look(self._nums, bounds, demand, at, asked=asked, routes=self._routes):
            log.get_logger().info("%s", change)
            self._nums[change.stage] = change.after
        self._see_to(names, at)

    def _take_over(self, names: Collection[str], at: float) -> None:
        """Who is there, but for those whom a predecessor had told to leave."""
        there = {
            stage: [slot for slot in crew.slots if crew.part(slot).name in names] for stage, crew in self._crews.items()
        }
        parts = [self._crews[stage].part(slot) for stage, slots in there.items() for slot in slots]
        actors = [(part, self._actors.named(part.name)) for part in parts]
        states = self._actors.asked([actor.state.remote() for _, actor in actors if actor is not None])
        known = [part for part, actor in actors if actor is not None]
        for part, state in zip(known, states, strict=True):
            if state is not None and state["stopping"]:
                self._leave(part.name, at)
        self._nums = {
            stage: max(
                sum(self._crews[stage].part(slot).name not in self._leaving for slot in slots),
                self._crews[stage].bounds.least,
            )
            for stage, slots in there.items()
        }

    def _figures(self) -> tuple[Mapping[str, float], Collection[str]]:
        """How many workers are needed, and where requests wait, as the broker has it; nothing while it does not say."""
        broker = self._actors.named(self._told.broker)
        answer = None if broker is None else self._actors.asked([broker.ask.remote("status")])[0]
        if not answer:
            return {}, ()
        status = json.loads(answer)
        return status["demand"], [stage["name"] for stage in status["stages"] if stage.get("queued")]

    def _see_to(self, names: Collection[str], at: float) -> None:
        for name, (ended, until) in list(self._leaving.items()):
            if name not in names:
                del self._leaving[name]
            elif (at >= until or self._actors.has_come(ended)) and (actor := self._actors.named(name)) is not None:
                self._actors.kill(actor)
        for stage, crew in self._crews.items():
            for slot in crew.slots:
                part = crew.part(slot)
                if slot <= self._nums[stage]:
                    if part.name not in names and part.name not in self._leaving:
                        self._actors.start(part, self._told)
                elif part.name in names and part.name not in self._leaving:
                    self._leave(part.name, at)

    def _leave(self, name: str, at: float) -> None:
        """One that has no place yet cannot hear it, and goes all the same."""
        actor = self._actors.named(name)
        if actor is not None:
            self._leaving[name] = actor.stop.remote(self._within_s), at + self._within_s


def _own() -> Actors:
    import ray

    log.setup("scaler")
    return Actors(ray)

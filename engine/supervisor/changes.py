"""A running deployment is given another configuration, or another number of workers: what may change, and into what.

What can change without a gap is what workers, the broker's stages and the processes of the frontend are told when they
start: everything of a ``[[stage]]`` but its name, the bounds of ``[frontend]``, goals, classes and clients. Stages and
routes are how all parts count, and addresses are where others look for them: a deployment that changes those is another
one.

A new configuration is an *edition*. Until its workers have shown that they can serve it lies beside the present one,
and they alone read it; then it takes the place of the present one for everybody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from engine.config import NEXT, SNAPSHOT, Deployment, dump
from engine.core.cells import cell_of
from engine.core.processes import Child, Kind, Replace, Resize
from engine.core.scaling import Bounds
from engine.core.wire import egress_frame, front_frame, intake_frame
from engine.errors import ConfigError, StartError
from engine.supervisor import family
from engine.supervisor.rundir import write_snapshot

# Keys of [frontend] that stand for the process which listens, and not for those that serve.
_LISTENING: Final = ("address", "port", "certfile", "keyfile")


class Refused(Exception):
    """It cannot be done; in words for whoever asked."""


class NotWhileRunning(Refused):
    """It takes another start; the words say what."""


class Changes:
    """Holds the deployment as it is and, while it is being changed, as it shall be."""

    def __init__(
        self,
        deployment: Deployment,
        folder: Path,
        reread: Callable[[], Deployment] | None,
        environments: dict[Child, Mapping[str, str]],
        members: Callable[[Deployment], list[Child]] = family.whole,
        scaled: Callable[[Deployment], Mapping[str, Bounds]] = lambda deployment: {},
        recounted: Callable[[Deployment], Deployment] = lambda deployment: deployment,
    ) -> None:
        """``reread`` reads the file once more, as it was read at first. ``environments`` is added to,
        and taken from by :meth:`keep`. ``members``: who runs here of a deployment. ``scaled``: of which stages the
        number follows their demand. ``recounted``: with as many processes of the frontend as go with its cells."""
        self.deployment = deployment
        # What a broker takes that runs since then.
        self._largest = front_frame(deployment.frontend.max_request_size)
        self._largest_answer = egress_frame(deployment.frontend.max_response_size)
        self._largest_passed = [intake_frame(stage.max_queue_bytes) for stage in deployment.stages]
        self._folder = folder
        self._reread = reread
        self._members = members
        self._scaled = scaled
        self._recounted = recounted
        self._environments = environments
        self._edition = 0  # of the deployment
        self._last = 0  # edition that was made
        self._next: Deployment | None = None
        self._for_frontends = True  # it says something that they do not know

    @property
    def can_reload(self) -> bool:
        return self._reread is not None

    @property
    def is_changing(self) -> bool:
        return self._next is not None

    @property
    def bounds(self) -> Mapping[str, Bounds]:
        """Of the stages whose numbers follow their demand."""
        return self._scaled(self.deployment)

    # --- what is asked for

    def reload(self) -> Replace:
        """All workers anew, by what the file says now. Raises Refused."""
        found = self._read_again()
        return self._replace(found, f"reloading {found.file}", renew=None)

    def renew(self, stages: Collection[str], why: str) -> Replace | None:
        """Workers of these stages anew, and of those that the file has otherwise now; None: that is nobody. Raises
        Refused; NotWhileRunning with what it is that takes another start."""
        found = self._where_it_listens(self._read_again())
        if fixed := self._fixed(found):
            raise NotWhileRunning(", ".join(fixed))
        names = frozenset(stages) & {stage.name for stage in found.stages}
        if names or found != self.deployment:
            names |= _changed(self.deployment, found)
            what = f"replacing {', '.join(sorted(names))}" if names else "as many workers as it says now"
            return self._replace(found, f"{why}: {what}", renew=names)
        return None

    def _read_again(self) -> Deployment:
        """What the file says now. Raises Refused."""
        if self._reread is None:
            raise Refused("this deployment was started by a script, which is read once: stop it and start it again")
        try:
            return self._as_grown(self._as_scaled(self._reread()))
        except ConfigError as error:
            raise Refused("\n".join(error.problems)) from error

    def scale(self, nums: Mapping[str, int]) -> Replace:
        """So many workers of these stages; the others, and those that stay, are left alone. Raises Refused."""
        names = [stage.name for stage in self.deployment.stages]
        if strangers := [name for name in nums if name not in names]:
            raise Refused(f"no stage is called {strangers[0]}; there are {', '.join(names)}")
        for name, num in nums.items():
            if told := self._refusal(name, num):
                raise Refused(told)
        return self._replace(self._with(nums), f"scaling {_told(nums)}", renew=frozenset(), for_frontends=False)

    def grow(self, cells: int) -> Replace:
        """So many brokers instead of fewer: first those that there are not yet, then, in their new cells, the workers
        that belong there. Whoever stays in his is left alone. Raises Refused."""
        former = self.deployment.cells
        found = self._recounted(dataclasses.replace(self.deployment, grown=cells))
        places = {(child.stage, child.slot): self._environments[child] for child in self._known_workers()}
        asked = self._replace(found, f"{cells} brokers instead of {former}, which cannot keep up", renew=frozenset())
        # By slots: the new cells have a worker of every stage as soon as can be.
        workers = tuple(sorted(asked.workers, key=lambda child: child.slot))
        moved = [(child.stage, child.slot) for child in workers if _has_moved(child.slot, former, cells)]
        # Each on the CPUs and the device of the one whose place it takes: those who stay have kept theirs.
        for child in workers:
            self._environments[child] = places.get((child.stage, child.slot), self._environments[child])
        return dataclasses.replace(asked, workers=workers, moved=frozenset(moved))

    def _known_workers(self) -> list[Child]:
        """Of each slot the one that was placed last, last."""
        workers = [child for child in self._environments if child.kind is Kind.WORKER]
        return sorted(workers, key=lambda child: child.edition)

    def resize(self, nums: Mapping[str, int], what: str) -> Resize:
        """The same for a number that follows the demand, at once: it is the present deployment's from now on. Raises
        Refused."""
        found, edition = self._with(nums), self._last + 1
        members = self._placed(found, edition, SNAPSHOT)
        self.deployment, self._edition, self._last = found, edition, edition
        return Resize(members, what)

    def _refusal(self, name: str, num: int) -> str:
        """Why a stage cannot have so many workers; empty: it can."""
        cells = self.deployment.cells
        if (bounds := self.bounds.get(name)) is None:
            least = "one worker at least" if cells == 1 else f"{cells} workers at least, one for each cell"
            return f"{name}: a stage has {least}" if num < cells else ""
        if bounds.least <= num <= bounds.most and (not num or num >= cells):
            return ""
        return f"{name}: its demand scales it from min = {bounds.least} to max = {bounds.most} workers, got {num}"

    def _with(self, nums: Mapping[str, int]) -> Deployment:
        """The present deployment with other numbers of workers."""
        stages = tuple(
            dataclasses.replace(stage, num=nums.get(stage.name, stage.num)) for stage in self.deployment.stages
        )
        return dataclasses.replace(self.deployment, stages=stages)

    def _as_grown(self, found: Deployment) -> Deployment:
        """The same of brokers. Raises Refused."""
        cells = self.deployment.cells
        if not (self.deployment.grown and found.engine.may_grow):
            return found
        if short := [stage.name for stage in found.stages if stage.num < cells]:
            raise Refused(
                f"{short[0]}: {cells} brokers run by now, each with a worker of every stage: fewer take a stop"
            )
        return self._recounted(dataclasses.replace(found, grown=cells))

    def _as_scaled(self, found: Deployment) -> Deployment:
        """Of a file that is read once more, with as many workers as there are where their number is not the file's to
        say."""
        present = {stage.name: stage.num for stage in self.deployment.stages}
        bounds = self._scaled(found)
        stages = tuple(
            dataclasses.replace(stage, num=min(max(present[stage.name], stage.min), stage.most))
            if stage.name in bounds and stage.name in self.bounds
            else stage
            for stage in found.stages
        )
        return dataclasses.replace(found, stages=stages)

    def _replace(
        self, found: Deployment, what: str, *, renew: frozenset[str] | None, for_frontends: bool = True
    ) -> Replace:
        if self._next is not None:
            raise Refused("it is being changed already; try again when that is over")
        found = self._where_it_listens(found)
        if fixed := self._fixed(found):
            raise Refused(f"a running deployment cannot change {', '.join(fixed)}: stop it and start it again")
        edition = self._last + 1
        members = self._placed(found, edition, NEXT)
        self._next, self._last, self._for_frontends = found, edition, for_frontends
        workers, brokers = (
            tuple([child for child in members if child.kind is kind]) for kind in (Kind.WORKER, Kind.BROKER)
        )
        return Replace(workers, what, renew, brokers=brokers)

    def _fixed(self, found: Deployment) -> list[str]:
        """What of it a running deployment cannot change."""
        fixed = _fixed(self.deployment, found)
        if found.frontend.max_request_size > self._largest:
            fixed.append(f"frontend.max_request_size to more than {self._largest} bytes")
        if found.frontend.max_response_size > self._largest_answer:
            fixed.append(f"frontend.max_response_size to more than {self._largest_answer} bytes")
        fixed += [
            f"max_queue_bytes of {stage.name} to more than {most} bytes"
            for stage, most in zip(found.stages, self._largest_passed, strict=False)
            if stage.max_queue_bytes > most
        ]
        return fixed

    def _placed(self, found: Deployment, edition: int, snapshot: str) -> tuple[Child, ...]:
        """The workers of an edition, and the brokers that it has more, which can be started once this has been written.
        Raises Refused."""
        cells, members, others = self.deployment.cells, [], []
        for child in self._members(found):
            if child.kind is Kind.WORKER or (child.kind is Kind.BROKER and child.slot >= cells):
                members.append(dataclasses.replace(child, edition=edition))
            else:
                others.append(child)
        try:
            environments = family.environments(found, members, others)
            write_snapshot(self._folder, dump(found), snapshot)
        except (StartError, OSError) as error:
            raise Refused(str(error)) from error
        self._environments.update(environments)
        return tuple(members)

    def _where_it_listens(self, found: Deployment) -> Deployment:
        """A port that the system chose stays the one that was chosen."""
        if found.frontend.port == 0:
            found = dataclasses.replace(
                found, frontend=dataclasses.replace(found.frontend, port=self.deployment.frontend.port)
            )
        return found

    # --- what becomes of it

    def commit(self) -> tuple[Kind, ...]:
        """The next edition is the present one for whoever starts from now on. Who has to be told, beside workers."""
        assert self._next is not None
        write_snapshot(self._folder, dump(self._next))
        self.deployment, self._edition = self._next, self._last
        return (Kind.BROKER, Kind.FRONTEND) if self._for_frontends else (Kind.BROKER,)

    def end(self) -> None:
        """It is done, or was given up."""
        self._next = None
        (self._folder / NEXT).unlink(missing_ok=True)

    def keep(self, children: Collection[Child]) -> None:
        """Only these are there: with each edition come the environments of all its workers, most of whom are never
        started under it."""
        kept = {placed(child) for child in children}
        for child in [child for child in self._environments if child.kind is Kind.WORKER and child not in kept]:
            del self._environments[child]

    def snapshot(self, child: Child) -> Path:
        """What a process that is started now reads."""
        return self._folder / (NEXT if child.edition > self._edition else SNAPSHOT)


def placed(child: Child) -> Child:
    """By whom its environment is found: one that takes another's place has the same."""
    return dataclasses.replace(child, turn=0)


def _has_moved(slot: int, former: int, cells: int) -> bool:
    return cell_of(slot, former) != cell_of(slot, cells)


def _told(nums: Mapping[str, int]) -> str:
    return ", ".join(f"{name} to {num}" for name, num in nums.items())


def _changed(now: Deployment, then: Deployment) -> frozenset[str]:
    """Stages whose workers would be others, and not only more or fewer: all, where more than stages has changed."""
    if dataclasses.replace(now, stages=()) != dataclasses.replace(then, stages=()):
        return frozenset(stage.name for stage in then.stages)
    return frozenset(
        new.name
        for old, new in zip(now.stages, then.stages, strict=True)
        if dataclasses.replace(old, num=new.num, spare=new.spare) != new
    )


def _fixed(now: Deployment, then: Deployment) -> list[str]:
    """What differs and cannot change, by the names of the file."""
    found = [
        f"engine.{field.name}"
        for field in dataclasses.fields(now.engine)
        if getattr(now.engine, field.name) != getattr(then.engine, field.name)
    ]
    found += [f"frontend.{name}" for name in _LISTENING if getattr(now.frontend, name) != getattr(then.frontend, name)]
    if [stage.name for stage in now.stages] != [stage.name for stage in then.stages]:
        found.append("its stages")
    if now.topology.routes != then.topology.routes:
        found.append("its routes")
    if now.topology.cached != then.topology.cached:
        found.append("which stages have a cache, or its key")
    return found

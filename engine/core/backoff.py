"""When to start again what has died. Pure: a child's history and ``now`` in, a decision out.

Waiting is for what cannot start, or dies of itself as soon as it has: a crash loop must not eat the machine that its
neighbours serve from. Whoever had served, or was ended from outside, is not made better by waiting, and its clients are
made worse: it is started again at once. Told apart by the history alone:

* never ready: it cannot start, and trying again would only hide the reason. Give up at once.
* ready, and dead of the same error right after it, several times in a row, and never otherwise: it cannot start either,
  it only says so late. Give up. A sibling that has lasted is proof that it can be done, and then this case is the next.
* ready before, and this start failed, or it died of itself right after it: it is started again, at first almost at
  once, then ever later. There is no last attempt: the model file may be back in an hour. While requests wait that can
  wait until it is ready, it is tried more often (:func:`hastened`), though never for more than half of the time.
* it had lasted, or was ended from outside after it was ready (an operator, the kernel, whoever watches for hangs): at
  once, but for ``spacing_s`` between one time that it is ready and the next start.
* *essential* (nobody is served without it): while it is away there is nothing that a pause could spare, so it is only
  kept from spinning; and when ``budget`` starts in a row have failed: give up, so that whatever supervises the
  deployment learns of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeAlias


@dataclass(frozen=True)
class Backoff:
    """Times in seconds. The delay doubles from ``first_s`` to ``most_s``."""

    first_s: float = 0.1  # below what a client notices as an outage, above what a spinning fork costs
    most_s: float = 10.0
    essential_most_s: float = 0.5
    budget: int = 60  # failed starts in a row of an essential child: about half a minute with these delays
    lasting_s: float = 2.0  # ready for this long: it can be started. Below, what kills it is hardly a request
    spacing_s: float = 0.5  # from being ready to the next start, whatever ended it: two starts a second do not spin
    early_s: float = 1.0  # from a death to the next start at least, while requests wait for it
    alike: int = 5  # deaths in a row, of the same error, before it has lasted once


DEFAULT: Final = Backoff()


@dataclass(frozen=True)
class History:
    """What the policy remembers of one child."""

    ever_ready: bool = False
    ready_since: float | None = None  # None: it is not ready now
    strikes: int = 0  # failed starts and deaths right after one, since it last lasted; sets the delay
    failed_starts: int = 0  # in a row; spends the budget
    lasted: bool = False  # it was ready for ``lasting_s`` once
    cause: str = ""  # of its last death after it was ready
    alike: int = 0  # such deaths in a row, of that cause


@dataclass(frozen=True)
class Restart:
    """Start it again at ``at`` (monotonic seconds). ``failing``: it died before it was ready."""

    at: float
    failing: bool


@dataclass(frozen=True)
class GiveUp:
    """``started``: it had been of use before."""

    reason: str
    started: bool = False


Decision: TypeAlias = Restart | GiveUp


def became_ready(history: History, now: float) -> History:
    return replace(history, ever_ready=True, ready_since=now, failed_starts=0)


def has_lasted(history: History, now: float, policy: Backoff = DEFAULT) -> bool:
    """Whether a child was, or is by now, ready for long enough to know that it can be started."""
    return history.lasted or (history.ready_since is not None and now - history.ready_since >= policy.lasting_s)


def died(
    history: History,
    now: float,
    *,
    cause: str,
    essential: bool,
    proven: bool = False,
    policy: Backoff = DEFAULT,
) -> tuple[History, Decision]:
    """What to do about a death that nobody asked for. ``cause``: its own error, in words; empty: it was ended from
    outside, which says nothing of what it can do. ``proven``: a sibling, started in the same way, has lasted, or
    it may have been a request that ended it: that it cannot start must not be concluded."""
    ready_since = history.ready_since
    if not history.ever_ready:
        return history, GiveUp("could not start")
    alike, failing = history.alike, ready_since is None
    if not failing:
        alike = 0 if not cause else history.alike + 1 if cause == history.cause else 1
    served = ready_since is not None and now - ready_since >= policy.lasting_s
    innocent = served or not cause
    after = History(
        ever_ready=True,
        strikes=0 if served else history.strikes + (not innocent),
        failed_starts=history.failed_starts + failing,
        lasted=has_lasted(history, now, policy),
        cause=history.cause if failing else cause,
        alike=alike,
    )
    if alike >= policy.alike and not (after.lasted or proven):
        return after, GiveUp(f"died right after it was ready, {alike} times in a row")
    if essential and after.failed_starts >= policy.budget:
        return after, GiveUp(f"failed to start {after.failed_starts} times in a row", started=True)
    if innocent:
        # Of one that was ended while it started: in a while, for nobody knows how long it had run.
        return after, Restart(max(now, (now if ready_since is None else ready_since) + policy.spacing_s), failing)
    most_s = min(policy.most_s, policy.essential_most_s) if essential else policy.most_s
    return after, Restart(now + min(most_s, delay_s(after.strikes, policy)), failing)


def hastened(
    at: float, now: float, *, died_at: float, took_s: float, left_s: float, policy: Backoff = DEFAULT
) -> float:
    """When to start, instead of ``at``, what died at ``died_at``, while requests wait that can wait ``left_s`` more.

    ``took_s`` is how long its last start took, or lasted until it failed: a start that comes too late for all who wait
    is not worth hurrying, and one that keeps failing has the machine for no more than half of the time.
    """
    early = max(now, died_at + max(policy.early_s, took_s))
    return early if early < at and early + took_s <= now + left_s else at


def delay_s(strikes: int, policy: Backoff = DEFAULT) -> float:
    """Seconds to wait after the ``strikes``-th strike in a row, from 1."""
    doublings = min(strikes - 1, 32)  # 2**32 is past any cap; larger powers would only cost
    return min(policy.most_s, policy.first_s * 2.0**doublings)

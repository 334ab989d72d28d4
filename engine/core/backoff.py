"""When to start again what has died. Pure: a child's history and ``now`` in, a decision out.

Three cases, told apart by the history alone:

* never ready: it cannot start, and trying again would only hide the reason. Give up at once.
* ready before: it is started again, at first almost at once, then ever later, for a crash loop must not eat the machine
  that its neighbours serve from. There is no last attempt: the model file may be back in an hour.
* ready before, *essential* (nobody is served without it), and ``budget`` starts in a row have failed: give up, so that
  whatever supervises the deployment learns of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeAlias


@dataclass(frozen=True)
class Policy:
    """Times in seconds. The delay doubles from ``first_s`` to ``most_s``."""

    first_s: float = 0.1  # below what a client notices as an outage, above what a spinning fork costs
    most_s: float = 10.0
    healthy_s: float = 10.0  # ready for this long: earlier deaths are forgiven
    budget: int = 8  # failed starts in a row of an essential child: about half a minute with these delays


DEFAULT: Final = Policy()


@dataclass(frozen=True)
class History:
    """What the policy remembers of one child."""

    ever_ready: bool = False
    ready_since: float | None = None  # None: it is not ready now
    strikes: int = 0  # deaths since it last was healthy; sets the delay
    failed_starts: int = 0  # in a row; spends the budget


@dataclass(frozen=True)
class Restart:
    """Start it again at ``at`` (monotonic seconds). ``failing``: it died before it was ready."""

    at: float
    failing: bool


@dataclass(frozen=True)
class GiveUp:
    reason: str


Decision: TypeAlias = Restart | GiveUp


def became_ready(history: History, now: float) -> History:
    return replace(history, ever_ready=True, ready_since=now, failed_starts=0)


def died(history: History, now: float, *, essential: bool, policy: Policy = DEFAULT) -> tuple[History, Decision]:
    """What to do about a death that nobody asked for."""
    failing = history.ready_since is None
    if not history.ever_ready:
        return history, GiveUp("could not start")
    healthy = not failing and now - (history.ready_since or 0.0) >= policy.healthy_s
    strikes = 1 if healthy else history.strikes + 1
    failed_starts = history.failed_starts + failing
    after = History(True, None, strikes, failed_starts)
    if essential and failed_starts >= policy.budget:
        return after, GiveUp(f"failed to start {failed_starts} times in a row")
    return after, Restart(now + delay_s(strikes, policy), failing)


def delay_s(strikes: int, policy: Policy = DEFAULT) -> float:
    """Seconds to wait after the ``strikes``-th death in a row, from 1."""
    doublings = min(strikes - 1, 32)  # 2**32 is past any cap; larger powers would only cost
    return min(policy.most_s, policy.first_s * 2.0**doublings)

"""The processes of a deployment in values: who they are, what is heard of them, and what is to be done about them.

:class:`engine.core.lifecycle.Machine` takes the events and gives the actions; the supervisor brings the former and
carries out the latter. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

Slot: TypeAlias = tuple[str, int]  # of a worker: its stage, and its number there


class Kind(Enum):
    BROKER = "broker"
    FRONTEND = "frontend"
    WORKER = "worker"
    DAEMON = "daemon"


@dataclass(frozen=True)
class Child:
    """One process of the deployment. ``start_s``: time to become ready. ``name`` is what the log calls it."""

    kind: Kind
    name: str
    stage: str = ""
    slot: int = 0
    start_s: float = 60.0
    edition: int = 0  # of the configuration that it was started with
    turn: int = 0  # tells it from the one whose place it takes

    @property
    def role(self) -> tuple[Kind, str]:
        """Equal for processes that are started in the same way."""
        return self.kind, self.stage


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Begin:
    """Start the deployment."""


@dataclass(frozen=True)
class Tick:
    """Nothing but time has passed."""


@dataclass(frozen=True)
class Loading:
    child: Child


@dataclass(frozen=True)
class Warming:
    child: Child
    done: int
    of: int


@dataclass(frozen=True)
class Ready:
    child: Child


@dataclass(frozen=True)
class Failed:
    """The child says why it cannot start; it is about to exit. ``trace``: the traceback, of user code."""

    child: Child
    reason: str
    trace: str = ""


@dataclass(frozen=True)
class Died:
    """The child has been reaped. ``code`` as subprocess has it: negative for a signal; None: it never came to life.
    ``reason``: in words, where more is known than the code says."""

    child: Child
    code: int | None
    reason: str = ""


@dataclass(frozen=True)
class Hung:
    """The child is there and does nothing, as seen from outside (:mod:`engine.core.vitality`). ``how``: in words."""

    child: Child
    how: str


@dataclass(frozen=True)
class Waiting:
    """Requests wait for workers. ``left_s``: by stage, for how long some of them can wait still."""

    left_s: Mapping[str, float]


@dataclass(frozen=True)
class StopAsked:
    """The operator sent this signal. SIGINT while stopping means "at once"."""

    number: int


@dataclass(frozen=True)
class Replace:
    """Serve with these workers instead of those there are (engine.core.rolling). ``renew``: of which stages all are new
    (None: of all stages); of the others whoever is in a slot stays, but for those of ``moved``, and only the number of
    slots changes. ``brokers`` are to be there before any of them. ``what``: for the log."""

    workers: tuple[Child, ...]
    what: str
    renew: frozenset[str] | None = None
    moved: frozenset[Slot] = frozenset()
    brokers: tuple[Child, ...] = ()


@dataclass(frozen=True)
class Resize:
    """Serve with more or fewer of the workers that there are (engine.core.scaling): whoever is in one of these slots
    stays, new ones come, the others go. Nothing new has to prove itself, so it is done as soon as it is said, and may
    be said only while :meth:`engine.core.lifecycle.Machine.takes` so much. ``what``: for the log."""

    workers: tuple[Child, ...]
    what: str


@dataclass(frozen=True)
class Worn:
    """A worker asks for a fresh one in its place: it has served for as long as it shall."""

    child: Child
    reason: str


Event: TypeAlias = (
    Begin | Tick | Loading | Warming | Ready | Failed | Died | Hung | Waiting | StopAsked | Replace | Resize | Worn
)


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spawn:
    child: Child


@dataclass(frozen=True)
class Terminate:
    """SIGTERM, to the process alone: it tells its own children."""

    child: Child


@dataclass(frozen=True)
class Kill:
    """SIGKILL, to its whole process group."""

    child: Child


class Level(Enum):
    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True)
class Say:
    """A line for the log, and the traceback below it, if there is one."""

    text: str
    level: Level = Level.INFO
    child: Child | None = None
    trace: str = ""


@dataclass(frozen=True)
class Serving:
    """Every process was ready for the first time: tell the user."""

    took_s: float


@dataclass(frozen=True)
class Stopping:
    """The deployment stops, and will have stopped within so many seconds."""

    within_s: float


@dataclass(frozen=True)
class Committed:
    """The new workers of a :class:`Replace` have shown that they can serve: its configuration holds from now on."""


@dataclass(frozen=True)
class Replaced:
    """A :class:`Replace` is over. ``error`` says why everything is as it was before; empty: it is done."""

    error: str = ""


Action: TypeAlias = Spawn | Terminate | Kill | Say | Serving | Stopping | Committed | Replaced

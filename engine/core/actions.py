"""What the machines want done: values they append, which the broker's threads carry out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from engine.core.items import Item
from engine.core.messages import Batch, Message, StageState
from engine.core.wire import Payload

# --- of a stage ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send this batch down the worker's lane."""

    worker: int
    batch: Batch
    payloads: list[Payload]


@dataclass(frozen=True, slots=True)
class ToWorker:
    worker: int
    message: Message


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell the front that these requests end at this stage."""

    stage: int
    uids: list[int]
    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell another stage's machine that the next hop has these results."""

    stage: int
    worker: int
    batch: int
    uids: list[int]


@dataclass(frozen=True, slots=True)
class Kill:
    """The worker has not come back from ``forward``; end its process."""

    worker: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The worker is gone: close its lane. ``families`` are its last metrics, to be kept in the sums."""

    worker: int
    slot: int
    families: bytes


@dataclass(frozen=True, slots=True)
class News:
    """Readiness or pressure changed. ``absent_at``: from then on the stage has nobody (inf while it has)."""

    stage: int
    state: StageState
    absent_at: float
    full: bool


# --- of the front ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admit:
    """Items for the first stage of their route."""

    stage: int
    items: list[Item]


@dataclass(frozen=True, slots=True)
class Drop:
    """These requests are closed: take them out of this stage."""

    stage: int
    uids: list[int]


StageAction: TypeAlias = Dispatch | ToWorker | Fail | Settle | Kill | Forget | News
FrontAction: TypeAlias = Admit | Drop | Settle

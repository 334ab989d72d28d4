"""What the parts of the broker write to each other, beside actions (Admit, Drop, Grant, Hasten, Settle, Fail, News,
Foresee)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from engine.broker.report import Part
from engine.core.actions import Admit, Drop, Fail, Foresee, Grant, Hasten, News, Settle
from engine.core.front import FrontSpec
from engine.core.messages import Ask
from engine.core.stage import StageSpec


@dataclass(frozen=True, slots=True)
class Look:
    """Show yourself, for question ``token``."""

    token: int
    ask: Ask


@dataclass(frozen=True, slots=True)
class Seen:
    """One stage's part of the answer to question ``token``."""

    token: int
    stage: int
    part: Part | None  # None: it could not be made


@dataclass(frozen=True, slots=True)
class Drain:
    """Admit nothing more (front); release what there is without waiting for more (stage)."""


@dataclass(frozen=True, slots=True)
class ChangeStage:
    """From now on the stage is served by these numbers."""

    spec: StageSpec


@dataclass(frozen=True, slots=True)
class ChangeFront:
    """From now on these bounds hold at the door."""

    spec: FrontSpec


@dataclass(frozen=True, slots=True)
class Distrust:
    """What this worker sent could not be handled: give it up, so that what it holds is computed elsewhere."""

    worker: int


ToStage: TypeAlias = Admit | Drop | Grant | Hasten | Settle | Look | Drain | Distrust | ChangeStage
ToFront: TypeAlias = Fail | News | Foresee | Seen | Drain | ChangeFront

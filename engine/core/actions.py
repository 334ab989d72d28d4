"""What the machines want done: values they append, which the broker's parts carry out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from engine.core.arena import Ref
from engine.core.items import Item
from engine.core.messages import Batch, Message, StageState
from engine.core.predict import Outlook
from engine.core.wire import Payload

# --- of both ---------------------------------------------------------------------------------------------------------


class Release(msgspec.Struct, frozen=True):
    """Nobody will read these blocks of shared memory again."""

    refs: list[Ref]


# --- of a stage ------------------------------------------------------------------------------------------------------


class Dispatch(msgspec.Struct, frozen=True):
    """Send this batch down the worker's lane."""

    worker: int
    batch: Batch
    payloads: list[Payload]


class ToWorker(msgspec.Struct, frozen=True):
    worker: int
    message: Message


class Fail(msgspec.Struct, frozen=True):
    """Tell the front that these requests end at this stage. ``hopeless``: for want of time, which says nothing of
    others. ``headers``: of their answers. ``why``: the label of a refusal; ``needs_s``: how long they would have taken
    from now on, of ``waiting`` that were there."""

    stage: int
    uids: list[int]
    status: int
    text: str
    hopeless: bool = False
    headers: dict[str, str] = {}
    why: str = ""
    needs_s: float = 0.0
    waiting: int = 0


class Settle(msgspec.Struct, frozen=True):
    """Tell another stage's machine that its results have arrived where they went, ``at`` when. ``compute_us``: what the
    worker says of the batch's time in ``forward``, in one of those that settle it. ``sender`` is the stage where they
    have arrived, if it is one, and ``after_s`` what a request still needs from there on, in seconds. ``good``: some of
    them were computed rightly; ``failed``: of how many the worker says that it could not; ``skipped``: of some it says
    nothing, and they are somebody else's to answer. ``costs``: what they cost, by their place in ``uids``, as far as it
    says so. ``ended``: so many are answers, although the stage is the last of no route."""

    stage: int
    worker: int
    batch: int
    uids: list[int]
    at: float
    compute_us: int = 0
    sender: int = -1
    after_s: float = 0.0
    good: bool = True
    failed: int = 0
    skipped: bool = False
    costs: Mapping[int, float] = {}
    ended: int = 0


class Kill(msgspec.Struct, frozen=True):
    """End the process of this worker: ``why``, for the log."""

    worker: int
    why: str


class Note(msgspec.Struct, frozen=True):
    """Something for the log of the deployment, and how bad it is."""

    text: str
    facts: dict[str, object]
    is_error: bool = True


class Forget(msgspec.Struct, frozen=True):
    """The worker is gone: close its lane. ``families`` are its last metrics, to be kept in the sums."""

    worker: int
    slot: int
    families: bytes


class News(msgspec.Struct, frozen=True):
    """Readiness or pressure changed. ``absent_at``: from then on the stage has nobody (inf while it has);
    ``closed_until``: nothing is to come for it before, because whatever it is given fails. ``gone``: how many of
    its workers have ended."""

    stage: int
    state: StageState
    absent_at: float
    full: bool
    closed_until: float = 0.0
    gone: int = 0


class Foresee(msgspec.Struct, frozen=True):
    """What the stage expects has changed: of its next seconds, or of how long one request takes there that is alone, in
    seconds. ``goes``: what part of its results goes to which stage, or FINAL, where that is not always the same. Of use
    to whoever is judged next; it need wake nobody."""

    stage: int
    outlook: Outlook | None  # None: nobody who comes waits for long
    alone_s: float = 0.0  # 0: nobody knows
    goes: Mapping[int, float] = {}


# --- of the front ----------------------------------------------------------------------------------------------------


class Admit(msgspec.Struct, frozen=True):
    """Items for the first stage of their route."""

    stage: int
    items: list[Item]


class Drop(msgspec.Struct, frozen=True):
    """These requests are closed: take them out of this stage."""

    stage: int
    uids: list[int]


class Grant(msgspec.Struct, frozen=True):
    """The client of a stream has taken ``nbytes`` of what this worker sent for it."""

    stage: int
    worker: int
    uid: int
    nbytes: int


class Hasten(msgspec.Struct, frozen=True):
    """Somebody of an earlier rank waits for these computations as well; ranks by uid."""

    stage: int
    ranks: Mapping[int, float]


StageAction: TypeAlias = Dispatch | ToWorker | Fail | Settle | Kill | Note | Forget | News | Foresee | Release
FrontAction: TypeAlias = Admit | Drop | Grant | Hasten | Settle | Release

"""How peers introduce themselves to a broker, and how they are refused. Pure; the words are *frozen*.

Everything else on the wire (:mod:`engine.core.messages`) may change between versions; what is here may not, so that a
peer of any version can be read, and refused in words it can read, by any other. A parcel of these is one frame of JSON,
an object that begins with the key ``stageline``; members a reader does not know are ignored, members that are missing
take their defaults. No other parcel begins with a brace: read as the length of a header it would be far too long.

    {"stageline": "introduction", ...}   a frontend or a worker says who it is; again whenever it is asked to
    {"stageline": "stranger", ...}       the broker does not know who speaks: introduce yourself
    {"stageline": "refusal", ...}        the broker will have nothing to do with it, and why

Peers join by *name*: of the deployment, of stages, of routes. The numbers by which stages and routes travel afterwards
are the broker's, and it tells them in its welcome; so two files that list the same things in another order mean the
same, and two that differ never take one thing for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import msgspec

from engine.core.routing import Topology
from engine.errors import ProtocolError

# Which forms of engine.core.messages this version reads and writes. The newest is raised when a peer of the previous
# one could misread a message; the oldest when a form is given up.
# 3: results may go to any later stage of their route, and be its answer from any; routes may branch.
# 4: what a worker is handed as one batch may be several, for it to compute one after the other.
# 5: a lane may be a unix socket; then results go to the others beside it (engine.unix).
OLDEST: Final = 2
NEWEST: Final = 5
BUNDLES_SINCE: Final = 4
NEAR_SINCE: Final = 5

FRAME_MAX: Final = 1 << 20  # bytes; a deployment of a thousand routes of ten stages each fits
OPENING: Final = b'{"stageline":'

Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Path: TypeAlias = Annotated[str, msgspec.Meta(max_length=2048)]
Pid: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Slot: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=4096)]  # as many workers as a stage may have: [[stage]] num
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

FRONTEND: Final = "frontend"
WORKER: Final = "worker"


class _Words(msgspec.Struct, frozen=True, tag_field="stageline"):
    """Base of the frozen words."""


class Introduction(_Words, frozen=True, tag="introduction"):
    """Who speaks. ``instance`` is drawn at random once per process: two processes never share it, whatever their hosts,
    pids and slots. ``host`` is equal for two processes only if one can watch the other's ``pid``.

    ``stages`` and ``routes`` (path -> names of its stages, in order) are those of the peer's own file, and ``shapes``
    says of each route that branches how it does, in words that are compared and not understood. A worker names
    its ``stage`` and ``slot`` (1..num, the same over restarts), a frontend the ``name`` that logs and metrics call it.
    """

    kind: Name
    protocols: tuple[Number, Number]  # oldest and newest spoken
    deployment: Name
    instance: Name
    stages: list[Name] = []
    routes: dict[Path, list[Name]] = {}
    host: Name = ""
    pid: Pid = 0
    name: Name = ""
    stage: Name = ""
    slot: Slot = 0
    shapes: dict[Path, str] = {}


class Stranger(_Words, frozen=True, tag="stranger"):
    """The broker does not know who speaks. What it was just told was not taken: of a frontend the requests ``untaken``
    (by the frontend's numbers). ``stage`` other than -1: this is another stage's socket, go to that one's."""

    untaken: list[Number] = []
    stage: int = -1


class Refusal(_Words, frozen=True, tag="refusal"):
    """The peer cannot join, and trying again will help only when something has been changed."""

    reason: str


FrozenWords: TypeAlias = Introduction | Stranger | Refusal

_encoder: Final = msgspec.json.Encoder()
_decoder: Final[msgspec.json.Decoder[FrozenWords]] = msgspec.json.Decoder(FrozenWords)


def is_frozen(head: bytes) -> bool:
    """Whether a parcel's first frame is one of these words."""
    return head.startswith(OPENING)


def encode(words: FrozenWords) -> list[bytes]:
    """The frames of a parcel."""
    return [_encoder.encode(words)]


def decode(frame: bytes) -> FrozenWords:
    """Inverse of :func:`encode`. Raises ProtocolError."""
    if len(frame) > FRAME_MAX:
        raise ProtocolError(f"an introduction of {len(frame)} bytes")
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable introduction: {error}") from error


def introduce(
    kind: str,
    topology: Topology,
    *,
    deployment: str,
    instance: str,
    host: str,
    pid: int,
    name: str = "",
    stage: str = "",
    slot: int = 0,
) -> Introduction:
    """This version's introduction of a process that was started from a file with this topology."""
    return Introduction(
        kind=kind,
        protocols=(OLDEST, NEWEST),
        deployment=deployment,
        instance=instance,
        stages=list(topology.stages),
        routes=topology.by_name(),
        host=host,
        pid=pid,
        name=name,
        stage=stage,
        slot=slot,
        shapes=topology.shapes(),
    )


def agreed(who: Introduction) -> int:
    """The protocol to speak with a peer that may join: the newest of both."""
    return min(NEWEST, who.protocols[1])


# --- judging, at the broker ------------------------------------------------------------------------------------------

UNREADABLE: Final = Refusal(
    f"this broker cannot read what it was sent; it speaks protocol {OLDEST} to {NEWEST}: "
    "install the same version of stageline"
)


def refuse_frontend(who: Introduction, topology: Topology, deployment: str) -> Refusal | None:
    """Why a frontend cannot join; None when it may. Its routes are matched one by one: see :func:`route_numbers`."""
    if who.kind != FRONTEND:
        return Refusal(f"this socket is for frontends, not for a {_quoted(who.kind)}")
    return _refuse(who, deployment)


def refuse_worker(who: Introduction, topology: Topology, deployment: str, stage: str) -> Refusal | Stranger | None:
    """Why a worker cannot join the stage of this name; None when it may. A Stranger sends it to its own stage's socket.

    Its file must lead the same routes through its stage as the broker's: else it would be first or last on a route, and
    decode or answer, where the broker takes it for something else.
    """
    if who.kind != WORKER:
        return Refusal(f"this socket is for workers, not for a {_quoted(who.kind)}")
    if (refusal := _refuse(who, deployment)) is not None:
        return refusal
    if who.stage not in topology.stages:
        return Refusal(
            f"the broker has no stage {_quoted(who.stage)}, only {_listed(topology.stages)}: "
            "start both from the same stages.toml"
        )
    if who.stage != stage:
        return Stranger(stage=topology.stages.index(who.stage))
    theirs = {path: names for path, names in who.routes.items() if stage in names}
    ours = {path: names for path, names in topology.by_name().items() if stage in names}
    if theirs != ours:
        path = min(path for path in {*theirs, *ours} if theirs.get(path) != ours.get(path))
        return Refusal(
            f"route {_quoted(path)} passes stage {stage} by {_listed(ours.get(path))} at the broker and by "
            f"{_listed(theirs.get(path))} in the worker's file: start both from the same stages.toml"
        )
    shapes = topology.shapes()
    for path in ours:
        if (told := who.shapes.get(path)) != shapes.get(path):
            return Refusal(
                f"route {_quoted(path)} branches at the broker as {_shape(shapes.get(path))} and in the worker's file "
                f"as {_shape(told)}: start both from the same stages.toml"
            )
    return None


def _refuse(who: Introduction, deployment: str) -> Refusal | None:
    oldest, newest = who.protocols
    if newest < OLDEST or oldest > NEWEST:
        return Refusal(
            f"the broker speaks protocol {OLDEST} to {NEWEST}, this {who.kind} {oldest} to {newest}: "
            "install the same version of stageline"
        )
    if who.deployment != deployment:
        return Refusal(
            f"this is the broker of deployment {_quoted(deployment)}, this {who.kind} belongs to "
            f"{_quoted(who.deployment)}: check [engine] name and the broker's address"
        )
    return None


def _quoted(text: str) -> str:
    return f'"{text[:100]}"'


def _shape(shape: str | None) -> str:
    return _quoted(shape) if shape else "a chain"


def _listed(names: Sequence[str] | None) -> str:
    return " -> ".join(names)[:200] if names else "nothing"


def route_numbers(own: Topology, broker: Topology) -> list[int | None]:
    """For each route of a frontend's own file the number by which the broker knows it; None where the broker has no
    such path, or leads it through other stages."""
    theirs = {route.path: number for number, route in enumerate(broker.routes)}
    numbers: list[int | None] = []
    for number, route in enumerate(own.routes):
        found = theirs.get(route.path)
        same = found is not None and broker.stage_names(found) == own.stage_names(number)
        numbers.append(found if same else None)
    return numbers

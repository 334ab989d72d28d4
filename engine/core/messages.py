"""Every message that crosses a socket, as frozen values. This file *is* the protocol.

A message is the header of a parcel (:mod:`engine.core.wire`). A message about many items carries them as packed
*columns* - one list per field, position *i* of each is item *i* - because encoding one list of 32 integers costs a
tenth of encoding 32 small maps. ``layout`` says where item *i*'s payload lies, behind the header or in the frames after
it, and ``refs`` (sparse: item position -> parts) which parts lie in shared memory instead (:mod:`engine.core.arena`).

Which socket carries what (the broker's side binds, see :mod:`engine.transport`). Before any of these a peer introduces
itself, in words of their own (:mod:`engine.core.introduction`):

    front    frontend -> broker   Submit, Cancel, Consumed, Poison, FrontendBeat
             broker -> frontend   FrontendWelcome, Answers, Again, Events, FrontendPulse
    control  worker -> broker     Ready, WorkerBeat, Leave, Bye
             broker -> worker     Welcome, Pulse, Dismiss, Revoke, CancelItems, Granted
    lane     broker -> worker     Batch
    intake   worker -> broker     Results (input of that stage: the next one, or a later one to which they were sent)
    egress   worker -> broker     Results (final, which any stage may say, failed or skipped), Parts, StreamEvents
    admin    anyone -> broker     Ask
             broker -> asker      Report

Units: ``*_us`` are microseconds of *remaining* or *elapsed* time, never an instant. ``uid`` is the broker's number
for an admitted request, unique over epochs; ``seq`` the frontend's own. ``worker`` is the key the broker gave in
Welcome. ``meta`` is what only the two ends need of a request (:mod:`engine.core.meta`).

A new field goes at the end of a struct with a default: older peers leave it out, and ignore it. A new column does too:
``Annotated[list[int], column(0)] = []`` is read as a zero for every item where a peer left it out.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeAlias

import msgspec

from engine.core.introduction import Name, Path
from engine.core.meta import ID_MAX
from engine.core.quarantine import FINGERPRINT_BYTES
from engine.core.routing import JOIN, Fork, Split

STREAM_WINDOW: Final = 1 << 20  # bytes of one stream on their way from a worker to its client
KEY_SIZE: Final = 32  # bytes of what a frontend says of an Idempotency-Key (engine.core.idempotency)
MEMO_KEY_SIZE: Final = 16  # bytes of a digest by which a result is kept (engine.core.memo)
CLIENT_SIZE: Final = 8  # bytes of what a frontend says of who asks
EVENT_COST: Final = 64  # bytes that each of its events counts beyond its text: what holding it costs, roughly


def column(default: object = None) -> msgspec.Meta:
    """Marks a list that has an entry per item; ``default`` is each entry's where a peer leaves the column out, which it
    may if the field has a default of its own."""
    return msgspec.Meta(extra={"column": default})


# Bounds. A peer says what it likes: whatever number or length the broker computes with, keeps or passes on is bounded
# here, where its decoder refuses the message as a whole, and nowhere else has to ask. What the broker alone sends is
# bounded by its own books and by the size of a header (engine.core.wire).
OWN_HEADERS_MOST: Final = 16 * 1024  # characters of the headers that one answer brings: clients take about as much
ITEMS_MOST: Final = 65_536  # of one parcel to the broker: no batch has more, and a frontend sends no more at once
_WHOLE_MOST: Final = (1 << 63) - 1

_COLUMN: Final = column()
_ITEMS: Final = msgspec.Meta(max_length=ITEMS_MOST)
_ITEM_COLUMN: Final = msgspec.Meta(max_length=ITEMS_MOST, extra=_COLUMN.extra)

Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_WHOLE_MOST)]
Micros: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]  # what a float holds exactly: 285 years
Nbytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
EpochSeconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Millis: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
StageNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
RouteNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Code: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=999)]  # of Status, or an HTTP status
Mime: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
Target: TypeAlias = Annotated[int, msgspec.Meta(ge=-3, le=65_535)]  # of engine.core.routing
MemoKey: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=MEMO_KEY_SIZE)]
RoleCode: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2)]  # of Role
FlowCode: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=3)]  # of Flow
SpeakerCode: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=3)]  # of Speaker
Key: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=KEY_SIZE, max_length=KEY_SIZE)]
PriorityCode: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2)]  # of engine.core.fairness.Priority
Layout: TypeAlias = list[Annotated[int, msgspec.Meta(ge=-ITEMS_MOST, le=_WHOLE_MOST)]]

# Of parcels to the broker.
SomeIds: TypeAlias = Annotated[list[Id], _ITEMS]
IdsIn: TypeAlias = Annotated[list[Id], _ITEM_COLUMN]
BlobsIn: TypeAlias = Annotated[list[bytes], _ITEM_COLUMN]
ShortText: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
TimesBySize: TypeAlias = Annotated[dict[Id, Micros], msgspec.Meta(max_length=256)]
Cost: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e15)]  # of one item, in whatever its class counts
CostsBySize: TypeAlias = Annotated[dict[Nbytes, Cost], msgspec.Meta(max_length=256)]
CostsIn: TypeAlias = Annotated[dict[Id, Cost], _ITEMS]
Consumption: TypeAlias = Annotated[dict[Id, Nbytes], _ITEMS]  # item -> bytes
HeadersIn: TypeAlias = Annotated[dict[Id, Annotated[dict[str, str], msgspec.Meta(max_length=1024)]], _ITEMS]
# Item -> (part, arena, offset, length), parts ascending.
Refs: TypeAlias = Annotated[dict[Id, Annotated[list[tuple[Id, Id, Nbytes, Nbytes]], _ITEMS]], _ITEMS]

# Of parcels of the broker.
Ids: TypeAlias = Annotated[list[Id], _COLUMN]
Ints: TypeAlias = Annotated[list[int], _COLUMN]
Texts: TypeAlias = Annotated[list[str], _COLUMN]
Blobs: TypeAlias = Annotated[list[bytes], _COLUMN]


class Status(IntEnum):
    """What became of one item. Values from 100 up are the HTTP status of its answer."""

    SKIPPED = 0  # not computed (revoked, expired or cancelled); settles the batch entry, answers nobody
    OK = 200
    BAD_REQUEST = 400
    TIMEOUT = 408
    CONFLICT = 409
    UNPROCESSABLE = 422
    OVERLOADED = 429
    FAILED = 500
    UNAVAILABLE = 503


class Flow(IntEnum):
    """How a stage gives its answers."""

    WHOLE = 0  # at once, when forward has returned
    EVENTS = 1  # server-sent events, while forward runs; its result is dropped
    CHUNKS = 2  # pieces of the body, while forward runs
    UNKNOWN = 3  # none of its workers has been ready yet, or they do so as each request asks for it


class Speaker(IntEnum):
    """Whose word an answer is. What a worker says is between its code and that one client, whatever status it chose;
    only the broker's own words say something of the deployment."""

    WORKER = 0  # user code, or what became of it
    STAGE = 1  # the broker, of one stage: it is full, its workers died, its time limit has passed
    DOOR = 2  # the broker, of the whole deployment: it is full or draining; and of the request: its time is over
    FORECAST = 3  # the broker, of this request alone: it would not be answered in its time


class Role(IntEnum):
    """What an entry of Parts is."""

    DONE = 0  # what became of a part, or of what came to or goes to a stage with a cache
    FRAME = 1  # of a request that goes on in parts: what is left of it, without them
    PART = 2  # one of these; its entry stands behind the frame's


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=False):
    """Base of all messages: encoded as one msgpack array that begins with the type's tag."""


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where an arena can be mapped on the broker's host: descriptor ``fd`` of process ``pid``. ``size`` in bytes."""

    arena: Id
    pid: int
    fd: int
    size: int


class Qos(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a request says of how it wants to be served. ``slo_us``: its own goal; 0: its route's. ``priority``: it
    asks for no higher class. ``client``: a digest of what it authenticates with; empty: nothing."""

    slo_us: Micros = 0
    priority: PriorityCode = 0
    client: Annotated[bytes, msgspec.Meta(max_length=CLIENT_SIZE)] = b""


NO_QOS: Final = Qos()


# --- front ---------------------------------------------------------------------------------------------------------


class Submit(Message, frozen=True, tag=1):
    """Requests for admission. ``routes`` are the broker's numbers, as its welcome told them. ``keys`` is sparse, by
    ``seq``: of requests with an Idempotency-Key, 16 bytes of whose key it is and 16 of what is asked; so is ``qos``, of
    those that say anything of it, and ``memos``: by what the cache of the route's first stage knows them."""

    seqs: IdsIn
    routes: Annotated[list[RouteNumber], _ITEM_COLUMN]
    budgets_us: Annotated[list[Micros], _ITEM_COLUMN]  # time remaining until the deadline
    metas: BlobsIn
    layout: Layout = []
    refs: Refs = {}
    keys: Annotated[dict[Id, Key], _ITEMS] = {}
    qos: Annotated[dict[Id, Qos], _ITEMS] = {}
    memos: Annotated[dict[Id, MemoKey], _ITEMS] = {}


class Cancel(Message, frozen=True, tag=2):
    """The clients of these requests have gone."""

    seqs: SomeIds


class Consumed(Message, frozen=True, tag=8):
    """The clients of these streams have taken events of so many more bytes (with EVENT_COST): as many more may come."""

    nbytes: Consumption  # by seq


class Poison(Message, frozen=True, tag=9):
    """A request of this route has been found to kill workers: another one with the same body is to be refused.

    ``size`` is the body's, ``mark`` its fingerprint (:mod:`engine.core.quarantine`).
    """

    route: RouteNumber
    size: Nbytes
    mark: Annotated[bytes, msgspec.Meta(min_length=FINGERPRINT_BYTES, max_length=FINGERPRINT_BYTES)]


class Again(Message, frozen=True, tag=10):
    """These requests waited for the answer to another try of theirs, which had less time than they have and got none:
    they are to be submitted again."""

    seqs: list[Id]


class FrontendBeat(Message, frozen=True, tag=3):
    """A frontend lives; ``families`` are its metrics (:mod:`engine.metrics`). For people: what its process uses, memory
    now and CPU time so far, the name of its host, the address at which it is asked, and its version; how many
    descriptors it has open and may have, and since when it runs (:class:`engine.usage.Process`)."""

    families: bytes = b""
    resident_bytes: Nbytes = 0
    cpu_us: Micros = 0
    node: ShortText = ""
    url: ShortText = ""
    version: ShortText = ""
    descriptors: Id = 0
    descriptors_most: Id = 0
    began_s: EpochSeconds = 0.0


class Refused(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why a request was refused: ``reason`` is the label by which it is counted. Where it would have been late, in how
    many milliseconds it was expected to be done, and how many it had."""

    reason: str
    needs_ms: int = 0
    had_ms: int = 0


class Answers(Message, frozen=True, tag=4):
    """Final answers; the payload is the body, or for a failure the UTF-8 message the client may see.

    ``trails`` holds for each hop three little-endian u32 of microseconds: queue, batch, compute. Four are sparse, by
    item position: ``headers``, extra response headers; ``speakers``, whose word it is where it is no worker's; and of
    what is refused ``retries_ms``, in how many milliseconds it had better be sent again, and ``refusals``, why.
    """

    seqs: Ids
    statuses: Ints
    mimes: Texts
    trails: Blobs
    headers: dict[int, dict[str, str]] = {}
    speakers: dict[int, SpeakerCode] = {}
    layout: Layout = []
    retries_ms: dict[int, Id] = {}
    refusals: dict[int, Refused] = {}


class Events(Message, frozen=True, tag=5):
    """Stream events of running requests, in order; the payload is the event's bytes. ``flow`` and ``mime`` are those
    of the route's last stage, so that a frontend need not have heard of it before; without a mime type they come from
    another stage of the route."""

    seqs: Ids
    layout: Layout = []
    flow: FlowCode = int(Flow.EVENTS)
    mime: str = ""


class StageState(Message, frozen=True, tag=50):
    """How one stage stands, for readiness and ``engine status``."""

    name: Name
    wanted: int
    ready: int
    starting: int
    queued: int
    in_flight: int
    mime: str = "application/json"
    flow: FlowCode = int(Flow.WHOLE)
    least: int = 1  # workers without which it is not ready; with 0 it takes requests while it has none


class FrontendWelcome(Message, frozen=True, tag=7):
    """The answer to a frontend's introduction: the broker knows it from now on, and knows of none of its requests.

    ``stages`` and ``routes`` (path, numbers of its stages) are the broker's table: its numbers are used from now on.
    ``reasons``: the queue times of its trails say why batches left (:mod:`engine.core.reasons`).
    """

    protocol: int
    epoch: int
    session: int  # another one for each welcome
    stages: list[Name]
    routes: list[tuple[Path, list[Id]]]
    reasons: bool = False


class FrontendPulse(Message, frozen=True, tag=6):
    """The broker's answer to a FrontendBeat, also sent when readiness or draining changes.

    ``memory`` is the arena that this frontend may fill.
    """

    draining: bool
    headroom: int  # requests that could be admitted now
    stages: list[StageState]
    memory: Place | None = None


# --- control -------------------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag=11):
    """The answer to a worker's introduction, which it makes before it loads its model.

    ``lane`` is the endpoint to connect a PULL socket to, over tcp how far its port is behind that of the front.
    ``same_host``: monotonic clocks may be compared. ``memory`` is the arena that this worker may fill; none on another
    host, or when sharing is off. ``stages`` and ``routes`` as in :class:`FrontendWelcome`, of which this worker is of
    stage number ``stage``. ``after``: of the routes that branch, by number, what comes after each of their stages;
    ``splits``: likewise, after which of them requests go on in parts; ``cached``: of the stages
    that have a cache, by which fields.
    """

    protocol: int
    epoch: int
    worker: int
    lane: str
    same_host: bool
    memory: Place | None
    stage: Id
    stages: list[Name]
    routes: list[tuple[Path, list[Id]]]
    after: dict[int, list[int | Fork]] = {}
    splits: dict[int, dict[int, Split]] = {}
    cached: dict[int, list[str]] = {}


class Ready(Message, frozen=True, tag=13):
    """Warm-up is done: batches may come. ``about`` describes the stage (:mod:`engine.core.about`); ``maps``: this
    process can read arenas, else it is sent the bytes; ``times_us``: how long ``forward`` took in the warm-up, by the
    number of values, once it had computed as many before. Where the stage has a ``max_batch_cost`` and the class says
    what a value costs, it ``tells_cost``: then these times are by what the batches cost, and ``costs`` is what values
    of the examples do, by their bytes. ``most`` values are given to it at once, as its own file has it (0: as the
    broker's); ``device`` is what it computes on, and ``node`` the name of its host, for people. ``may_rest``: whoever
    started it keeps spares of this stage, of which it may be one."""

    worker: Id
    mime: Mime
    warmup_ms: Millis = 0
    flow: FlowCode = int(Flow.WHOLE)
    about: bytes = b""
    maps: bool = False
    times_us: TimesBySize = {}
    tells_cost: bool = False
    costs: CostsBySize = {}
    most: Id = 0
    device: ShortText = ""
    node: ShortText = ""
    may_rest: bool = True


class WorkerBeat(Message, frozen=True, tag=14):
    """A worker lives. ``families`` are the user's own metrics; empty when unchanged. ``device_bytes``: memory of its
    GPU that it holds, as far as it knows. ``round_trip_us``: how long the newest answer from the broker took, from what
    it answers; 0: none did yet. ``newest`` is the last batch that it has received on its lane, ``held`` are those whose
    results have not left it; ``newest`` 0: it has received none, or cannot say. ``resident_bytes``, ``cpu_us``: memory
    of its process now, and CPU time so far; the last three as in :class:`FrontendBeat`."""

    worker: Id
    families: bytes = b""
    device_bytes: Nbytes = 0
    round_trip_us: Micros = 0
    newest: Id = 0
    held: Annotated[list[Id], msgspec.Meta(max_length=1024)] = []
    resident_bytes: Nbytes = 0
    cpu_us: Micros = 0
    descriptors: Id = 0
    descriptors_most: Id = 0
    began_s: EpochSeconds = 0.0


class Pulse(Message, frozen=True, tag=15):
    """The broker lives. ``known`` false: introduce yourself again, this epoch does not know you. ``is_loading``: the
    worker's Ready has not come; once it has, the door knows of the worker too."""

    epoch: int
    known: bool
    is_loading: bool = False


class Leave(Message, frozen=True, tag=16):
    """The worker wants to stop: give it nothing more, dismiss it when its batches are settled."""

    worker: Id


class Dismiss(Message, frozen=True, tag=17):
    """Nothing is in flight at this worker and nothing more will come: it may exit."""


class Revoke(Message, frozen=True, tag=18):
    """These batches were given to somebody else: skip them if they have not begun."""

    batches: list[Id]


class CancelItems(Message, frozen=True, tag=19):
    """Nobody waits for these items any more."""

    uids: list[Id]


class Granted(Message, frozen=True, tag=23):
    """The clients of these items have taken events of so many more bytes (with EVENT_COST)."""

    nbytes: dict[Id, Id]  # by uid


class Bye(Message, frozen=True, tag=20):
    """The worker leaves now; whatever it held may be given to others."""

    worker: Id


# --- lane, intake, egress ------------------------------------------------------------------------------------------


class Batch(Message, frozen=True, tag=30):
    """Work for one worker. ``sent_ns`` is the broker's monotonic clock, meaningful only where Welcome said so.

    ``memory`` names the arenas that ``refs`` speak of.
    """

    batch: Id
    sent_ns: int
    reason: str  # why it left the queue: full, idle, wait, deadline, drain, replay
    uids: Ids
    routes: Ints
    budgets_us: Ints
    attempts: Ints
    metas: Blobs
    queues_us: Ints  # time at this stage before the batch left, with why it left in the low bits (engine.core.reasons);
    # the worker makes it a step of the trail
    trails: Blobs  # of the stages before
    layout: Layout = []
    refs: Refs = {}
    memory: list[Place] = []


class Results(Message, frozen=True, tag=31):
    """What became of some items of one batch; always names worker and batch: so that the credit can be freed, and
    because they count only from the worker that holds the batch. ``costs`` is sparse, by item position: what its class
    says that they cost, where the stage has a ``max_batch_cost``."""

    stage: StageNumber
    worker: Id
    batch: Id
    uids: IdsIn
    statuses: Annotated[list[Code], _ITEM_COLUMN]
    trails: BlobsIn
    mime: Mime = ""
    compute_us: Micros = 0  # of the whole batch; once per batch, else 0
    headers: HeadersIn = {}
    layout: Layout = []
    refs: Refs = {}
    costs: CostsIn = {}


class Parts(Message, frozen=True, tag=33):
    """Results of one batch that are neither answers nor another stage's input as they are: of requests that go on in
    parts, and of parts that are done; and what comes to or from a stage with a cache. A request's frame and parts have
    an entry each, one behind the other, all with its uid; they are never in several parcels. ``targets`` is where what
    is done goes. ``keys``: by what the cache of the stage where it goes, or of the one where a part begins, knows it;
    of a frame and of a part that is done what the cache of the stage that gathers makes its own of; empty: nothing is
    told. ``costs`` is sparse, by the position of entries that are no parts; all else as in
    :class:`Results`."""

    stage: StageNumber
    worker: Id
    batch: Id
    uids: IdsIn
    roles: Annotated[list[RoleCode], _ITEM_COLUMN]
    trails: BlobsIn
    compute_us: Micros = 0
    layout: Layout = []
    refs: Refs = {}
    costs: CostsIn = {}
    targets: Annotated[list[Target], msgspec.Meta(max_length=ITEMS_MOST, extra={"column": JOIN})] = []
    keys: Annotated[list[MemoKey], msgspec.Meta(max_length=ITEMS_MOST, extra={"column": b""})] = []
    mime: Mime = ""
    headers: HeadersIn = {}


class StreamEvents(Message, frozen=True, tag=32):
    """Events of items that are still being computed, of one batch. They count only if it names the ``batch``."""

    stage: StageNumber
    worker: Id
    uids: IdsIn
    layout: Layout = []
    flow: FlowCode = int(Flow.EVENTS)
    mime: Mime = ""
    batch: Id = 0


# --- admin ---------------------------------------------------------------------------------------------------------


class Ask(Message, frozen=True, tag=40):
    """``what``: ``status`` (JSON), ``metrics`` (:class:`engine.metrics.Sources`), ``about`` (engine.core.about) or
    ``why`` (JSON, :mod:`engine.broker.why`). The rest is of the last: so many decisions, of this stage or of all, that
    have to do with this request or with any."""

    what: Name
    last: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    stage: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    request: Annotated[str, msgspec.Meta(max_length=ID_MAX)] = ""


class Report(Message, frozen=True, tag=41):
    """The answer to an Ask: its bytes are the parcel's only payload."""

    what: Name
    layout: Layout = []


AnyMessage: TypeAlias = (
    Submit
    | Cancel
    | Consumed
    | Poison
    | FrontendBeat
    | Answers
    | Again
    | Events
    | FrontendWelcome
    | FrontendPulse
    | Welcome
    | Ready
    | WorkerBeat
    | Pulse
    | Leave
    | Dismiss
    | Revoke
    | CancelItems
    | Granted
    | Bye
    | Batch
    | Results
    | Parts
    | StreamEvents
    | Ask
    | Report
)

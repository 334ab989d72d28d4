"""One batch in, one outcome per item out: decode, forward, encode. All rules about failure of user code live here.

* What fails for one item - its bytes, its validation, its result, its encoding - fails that item and no other, and its
  message goes to that item's client alone.
* An exception is one whatever its class: ``SystemExit``, ``KeyboardInterrupt``, a ``CancelledError`` or a panic of
  native code that comes out of user code in a worker process is that item's failure. Only where a person may press
  Ctrl-C, offline, does that pass through (``passing``).
* An exception out of ``forward`` with several items, or a result that is no list of the right length, is narrowed:
  ``forward`` is called again on halves, so that only the guilty items fail (``isolate``). It gets values decoded anew
  from the bytes that came, for it may have changed the first ones before it failed. Where calling twice is forbidden
  the whole batch fails.
* Where only some sizes of batches are allowed, every call is padded to one of them with copies of its last value, whose
  results are dropped unseen; halves of a batch that failed as well.
* Out of memory is narrowed alike, with what is kept for later given back first; how much fitted is told, and no more
  than ``most`` values are given at once.
* What says that the process is of no more use (:mod:`stages.verdict`) is raised as WorkerBroken: nothing of the batch
  is answered here, others compute it.
* A client sees the text of an :class:`~engine.errors.EngineError`; of any other exception only ``inference internal
  error``. The traceback goes to the log, once per kind of failure and batch, with the ids of the requests it struck.
* What reaches the time limit is left to whoever sent the batch (``gives_back``): others find the item that hangs.
  Without anybody who would, all that was in that call is answered as timed out.
* What has sent events is not computed again, and its result is dropped.
* Where a result says itself where it goes (:mod:`stages.ways`), or a field of it does, that is kept beside its outcome
  (``Run.targets``); what names no way that there is fails that item.
* Where requests go on in parts (:mod:`stages.spread`), each part is encoded by itself, and its value decoded by itself
  where they have come together.

No sockets and no clock here. Time limits come in as ``call``, which may raise EngineTimeoutError out of
``forward``, and as ``expired``, which says whether an item is still worth computing.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable, Container, Mapping, Sequence, Set
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

import msgspec

from engine.core import gathered, wording
from engine.core.messages import OWN_HEADERS_MOST, Flow, Status
from engine.core.meta import asked_of
from engine.core.routing import FINAL, JOIN, NOWHERE, Split
from engine.core.wire import Payload, are_bytes, payload_size, payload_sizes
from engine.errors import EncodingError, EngineError, EngineTimeoutError, WorkerBroken
from engine.log import get_logger
from stages import blame, buffers, device, ipc, plainjson
from stages.base import Worker
from stages.context import PADDING, ItemIn
from stages.costing import Coster
from stages.memo import frame_key, key_of
from stages.near import PutTensor
from stages.shm import FOREIGN, Lease
from stages.sizes import filled_up, padded
from stages.spread import parted, together
from stages.stream import entry, flow_of
from stages.verdict import CHAIN_MAX, Verdict, verdict
from stages.ways import Done, Skip, WrongWay, unwrapped

OK: Final = int(Status.OK)  # a member of an enumeration costs a call
TEXT_MAX: Final = 8192  # characters of an error message; more is a dump, not a message
BODY_MAX: Final = 1 << 20  # bytes of the body that an error brings
NO_FIELDS: Final[Mapping[int, tuple[str, ...]]] = {}
INTERNAL_TEXT: Final = b"inference internal error"
TIMEOUT_TEXT: Final = b"inference timeout"


class Outcome(msgspec.Struct, frozen=True):
    """What became of one item: a :class:`Status` or HTTP status, and the result or the message its client may see. Of
    one that goes on in ``parts``, these, and what is left without them."""

    status: int
    payload: Payload = b""
    headers: dict[str, str] | None = None
    parts: tuple[Payload, ...] | None = None
    key: bytes = b""  # by what the cache of the stage where it goes knows it
    keys: tuple[bytes, ...] = ()  # the same of its parts


SKIPPED: Final = Outcome(int(Status.SKIPPED))
TOO_SLOW: Final = Outcome(int(Status.TIMEOUT), b"the client reads too slowly")
# For a stream of a batch that failed as a whole: another request may be the guilty one, and its message is not told.
SPOILED: Final = Outcome(int(Status.FAILED), b"internal error: forward failed after it had begun to stream")
TIMED_OUT: Final = Outcome(int(Status.TIMEOUT), TIMEOUT_TEXT)
INTERNAL: Final = Outcome(int(Status.FAILED), INTERNAL_TEXT)
ASTRAY: Final = Outcome(int(Status.FAILED), wording.ASTRAY.encode())
APART: Final = (BaseException, Done, Skip)  # results that are not simply encoded

Call = Callable[[Callable[[Any], Any], Any], Any]  # call(function, argument) -> function(argument), perhaps timed


def call_plainly(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)


def never(_item: ItemIn) -> bool:
    return False


def none(_items: Sequence[ItemIn]) -> Container[int]:
    return ()


class Codec:
    """How the payloads of one worker object become values and back.

    A class that does not override ``serialize_ipc`` (or ``deserialize_ipc``) is served by :mod:`stages.ipc`
    directly, which keeps large buffers apart; one that does gets and gives plain ``bytes``, large ones by way of
    shared memory too. Which methods are the user's own is decided when it is made: after the warm-up.

    Requests that speak the Open Inference Protocol, of which their meta tells, are :mod:`stages.oip`'s.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        most: int = sys.maxsize,
        most_between: int = sys.maxsize,
        most_afar: int = sys.maxsize,
    ) -> None:
        """``most``: bytes of an answer that is given whole; ``most_between``: of a value for the next stage;
        ``most_afar``: for any later one."""
        self.most = most
        self._most_afar = most_afar
        self._tensors = worker._tensors  # None where no route of the worker's speaks that protocol
        self._most_between = most_between
        self.put: ipc.Put | None = None  # where large parts of results go; None: beside the others
        self.put_tensor: PutTensor | None = None  # where tensors on a GPU go; None: to the CPU, and beside the others
        self._worker = worker
        self._own_serialize = _is_own(worker, "serialize")
        self._own_deserialize = _is_own(worker, "deserialize")
        self._own_decode = _is_own(worker, "deserialize_ipc")
        self._own_encode = _is_own(worker, "serialize_ipc")
        self._is_open = worker._is_open  # then all goes by the object's methods, which know how
        self._flow = flow_of(worker)
        self._is_whole = self._flow is Flow.WHOLE
        self.has_begun: Callable[[ItemIn], bool] = never  # whether the answer of this item is a stream, where it may be
        self._device = worker.device
        self._unpacks = not self._own_decode and not self._is_open
        self._packs = not self._own_encode and not self._is_open

    def decodes_by_own(self, item: ItemIn) -> bool:
        """Whether decoding it runs code of the user's, which may ask for its context or count on its thread (what a
        pickle of the former stage names is not taken for that)."""
        if self._tensors is not None and item.first and asked_of(item.meta) is not None:
            return self._tensors.own_decode
        return self._own_deserialize if item.first else self._own_decode

    def encodes_by_own(self, item: ItemIn) -> bool:
        """The same for encoding its result."""
        if self._tensors is not None and item.last and asked_of(item.meta) is not None:
            return self._tensors.own_encode
        return self._own_serialize if item.last else self._own_encode

    def decode(self, item: ItemIn, lease: Lease = FOREIGN, *, last: bool = False) -> Any:
        """The value for ``forward``, in memory of its own; the payload stays what it is unless this is the ``last``
        time that it is decoded. Raises whatever the user's code raises."""
        if item.first:
            if self._tensors is not None and (asked := asked_of(item.meta)) is not None:
                return self._tensors.decode(lease.whole(item.payload), asked)
            if not self._own_deserialize and type(item.payload) is bytes:
                return plainjson.decode(item.payload)  # what Worker's own does, without the way there
            return self._worker.deserialize(lease.own_bytes(item.payload, last=last))
        buffers.receive_on(self._device)
        split = item.way.gathers if item.way is not None else None
        if split is not None and gathered.is_packed(item.payload):  # else it was sent past the parts
            frame, slots = gathered.unpack(item.payload)
            results = [None if one is None else self._decode_between(one, lease, last=last) for one in slots]
            rest = self._decode_between(frame, lease, last=last) if split.field else None
            return together(split, rest, results)
        return self._decode_between(item.payload, lease, last=last)

    def _decode_between(self, payload: Payload, lease: Lease, *, last: bool) -> Any:
        """A value that another stage has sent."""
        if self._is_open:
            if type(payload) is tuple:
                raise ValueError("a payload of several parts over tcp")
            return self._worker.deserialize_ipc(lease.own_bytes(payload, last=last))
        if self._own_decode:
            return self._worker.deserialize_ipc(ipc.plain(payload, lease, last=last))
        return ipc.unpack(payload, lease, last=last)

    def decode_all(self, items: Sequence[ItemIn]) -> list[Any] | None:
        """The values of several items as :meth:`decode` gives them one by one, with little done for each: what a batch
        costs here is time that ``forward`` lacks. None where they have to be asked for one by one; raises whatever
        decoding one of them raises."""
        payloads = [item.payload for item in items]
        places = {item.first for item in items}
        if len(places) > 1:
            return None
        if not places.pop():
            if not self._unpacks:
                return None
            buffers.receive_on(self._device)
            return ipc.unpack_all(payloads)
        if self._own_deserialize or not are_bytes(payloads) or self._are_tensors(items):
            return None
        return plainjson.decode_all(payloads)  # type: ignore[arg-type]  # bytes

    def encode_all(self, items: Sequence[ItemIn], results: Sequence[Any]) -> Sequence[Payload] | None:
        """The same of :meth:`encode`."""
        places = {item.last for item in items}
        if len(places) > 1 or any(issubclass(kind, APART) for kind in set(map(type, results))):
            return None
        if not places.pop():
            if not self._packs or (packed := ipc.pack_all(results, self.put)) is None:
                return None
            return packed if max(payload_sizes(packed)) <= self._most_between else None
        if self._own_serialize or not self._is_whole or self._are_tensors(items):
            return None
        answers = plainjson.encode_all(results)
        return answers if answers is not None and max(map(len, answers)) <= self.most else None

    def encode(self, item: ItemIn, result: Any) -> Payload:
        """The payload for whoever comes next. Raises whatever the user's code raises, or EncodingError."""
        if item.last:
            if self.streams(item):  # the answer has been sent, and what forward returned was never meant for it
                return b""
            return self.encode_answer(result)
        return self.encode_between(result)

    def streams(self, item: ItemIn) -> bool:
        """Whether what the stage answers to this item is a stream."""
        return not self._is_whole and (self._flow is not Flow.UNKNOWN or self.has_begun(item))

    def encode_answer(self, result: Any) -> bytes:
        """A result as the body of the answer. Raises as :meth:`encode`."""
        if not self._own_serialize:
            return self.bounded(plainjson.encode(result))
        return self.bounded(_as_bytes(self._worker.serialize(result), "serialize"))

    def encode_between(self, result: Any, *, afar: bool = False, gathers: bool = False) -> Payload:
        """A result for another stage. ``afar``: for one that does not come next by the file, and may compute on another
        device. ``gathers``: for one that would take what begins with a certain mark for parts of a request that have
        come together; only a class's own format can begin so, with what a client has sent perhaps. Raises as
        :meth:`encode`."""
        if self._own_encode or self._is_open:
            encoded = _as_bytes(self._worker.serialize_ipc(result), "serialize_ipc")
            if gathers and encoded.startswith(gathered.MARK):  # asked here: in shared memory nobody sees it any more
                raise EncodingError("the result begins as no value may that is sent past the parts of requests")
            return self._passed((self.put(encoded) if self.put is not None else None) or encoded, afar=afar)
        try:
            payload = ipc.pack(result, self.put, self.put_tensor if not afar else None)
        except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError) as error:
            # What pickle says names modules and addresses: that is for the log.
            raise EncodingError("the result cannot be passed on to the next stage") from error
        return self._passed(payload, afar=afar)

    def apart(self, split: Split, result: Any, known: Mapping[int, tuple[str, ...]] = NO_FIELDS) -> Outcome:
        """A result that goes on in parts. Raises what :func:`stages.spread.parted` and encoding them raise."""
        frame, parts = parted(split, result)
        payload: Payload = b"" if frame is None else self.encode_between(frame)
        payloads = ipc.pack_all(parts, self.put) if self._packs and len(parts) > 1 and not split.names else None
        if payloads is None:
            payloads = [self.encode_between(part) for part in parts]
        # Of branches each stage gets one, which has been looked at.
        size = 0 if split.names else payload_size(payload) + sum(payload_sizes(payloads))
        if size > self._most_between:
            raise EncodingError(
                f"the result has {size} bytes in {len(parts)} parts, and max_queue_bytes of the stages that take them "
                f"is {self._most_between}"
            )
        key = frame_key(split, frame, payload, known[split.gather]) if split.gather in known else b""
        if not known.keys() & set(split.heads):
            return Outcome(OK, payload, parts=tuple(payloads), key=key)
        heads = split.heads if split.names else split.heads * len(parts)
        keys = [
            key_of(part, packed, known[head]) if head in known else b""
            for head, part, packed in zip(heads, parts, payloads, strict=True)
        ]
        return Outcome(OK, payload, parts=tuple(payloads), key=key, keys=tuple(keys))

    def _are_tensors(self, items: Sequence[ItemIn]) -> bool:
        """Whether some of them are."""
        return self._tensors is not None and any(asked_of(item.meta) is not None for item in items)

    def outcome(self, item: ItemIn, result: Any) -> Outcome:
        """A result for whoever comes next, with what is told beside it. Raises what :meth:`encode` raises."""
        return self.answer(item, result) if item.last else Outcome(OK, self.encode_between(result))

    def answer(self, item: ItemIn, result: Any) -> Outcome:
        """The same of a result that is the answer, wherever the route would have gone on."""
        if self._tensors is not None and (asked := asked_of(item.meta)) is not None:
            answer, headers = self._tensors.encode(result, asked)
            return Outcome(OK, self.bounded(answer), headers)
        return Outcome(OK, b"" if self.streams(item) else self.encode_answer(result))

    def _passed(self, payload: Payload, *, afar: bool) -> Payload:
        """The value for the next stage, if that may ever have so much waiting. Raises EncodingError."""
        most, which = (self._most_afar, "a later") if afar else (self._most_between, "the next")
        if (size := payload_size(payload)) > most:
            raise EncodingError(f"the result has {size} bytes, and max_queue_bytes of {which} stage is {most}")
        return payload

    def bounded(self, answer: bytes) -> bytes:
        """The answer, if it is not too large: every process on its way would hold all of it. Raises EncodingError."""
        if len(answer) > self.most:
            raise EncodingError(
                f"the answer has {len(answer)} bytes, and max_response_size is {self.most}; "
                "a larger one is for a stream"
            )
        return answer


def _is_own(worker: Worker, method: str) -> bool:
    """Whether a method is another than Worker's: of the user's class, of a mixin that runs validators of the user's, or
    set on the object."""
    return method in vars(worker) or getattr(type(worker), method) is not getattr(Worker, method)


def _as_bytes(encoded: object, method: str) -> bytes:
    if type(encoded) is bytes:
        return encoded
    if isinstance(encoded, bytes | bytearray | memoryview):  # a copy: the user may write into it again
        return bytes(memoryview(encoded))  # not what a subclass says its bytes are
    raise EncodingError(f"{method} must return bytes, not {type(encoded).__name__}")


def outcome_of(error: BaseException) -> Outcome:
    """The answer to a failure. An EngineError speaks for itself; of anything else the client learns nothing."""
    if isinstance(error, EngineTimeoutError):
        return TIMED_OUT
    if not isinstance(error, EngineError):
        return INTERNAL
    try:  # a user's subclass: status, text, headers and body may be anything
        status, text = error.status, error.text
        headers = {str(name): str(value) for name, value in dict(error.headers).items()}
        own = _own_body(error)
    except BaseException:
        _log.exception("an error class cannot be turned into an answer", extra={"error": type(error).__name__})
        return INTERNAL
    size = sum([len(name) + len(value) for name, value in headers.items()])
    if size > OWN_HEADERS_MOST or (own is not None and len(own[0]) > BODY_MAX):
        _log.error("an error class brings too much", extra={"error": type(error).__name__, "headers": size})
        return INTERNAL
    if type(status) is not int or not 300 <= status <= 599 or not isinstance(text, str):
        _log.error("an error class has no proper status", extra={"error": type(error).__name__, "status": status})
        return INTERNAL
    clean = {name: value for name, value in headers.items() if name.lower() != "content-type"}
    if own is not None:
        body, mime = own
        return Outcome(status, body, {**clean, "content-type": mime})
    return Outcome(status, text[:TEXT_MAX].encode("utf-8", "replace"), clean or None)


def _own_body(error: EngineError) -> tuple[bytes, str] | None:
    """The body that an error brings, and its content type; None for one that only has words. Raises EncodingError."""
    body = error.body
    if body is None:
        return None
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body), error.mime or "application/octet-stream"
    if isinstance(body, str):
        return body.encode("utf-8", "replace"), error.mime or "text/plain; charset=utf-8"
    return plainjson.encode(body), error.mime or "application/json"


def as_results(returned: Any, n: int) -> list[Any]:
    """What ``forward`` returned for ``n`` values, as a list of ``n``. Raises WrongResults for anything else."""
    if type(returned) is not list:
        if isinstance(returned, str | bytes | bytearray | memoryview | Mapping | Set):
            raise WrongResults(f"forward returned a {type(returned).__name__} for {n} values; it must return a list")
        try:
            len(returned)  # a generator has none; an array of no dimensions raises as well
            returned = list(returned)
        except TypeError as error:
            raise WrongResults(
                f"forward returned a {type(returned).__name__} for {n} values; it must return a list"
            ) from error
    if len(returned) != n:
        raise WrongResults(f"forward returned {len(returned)} results for {n} values")
    results: list[Any] = returned
    return results


def give_room(error: BaseException) -> None:
    """After a call that ran out of memory: what its frames hold, and what is kept for later."""
    held: BaseException | None = error
    for _ in range(CHAIN_MAX):
        if held is None:
            break
        traceback.clear_frames(held.__traceback__)
        held = held.__cause__ or held.__context__
    device.empty_caches()


class WrongResults(Exception):
    """``forward`` broke its contract; for the log and for ``engine check``, never for a client."""


@dataclass(slots=True)
class Computed:
    """The outcomes of a batch, in the order of its items, and how often ``forward`` was called."""

    outcomes: list[Outcome]
    calls: int
    targets: Mapping[int, int] = field(default_factory=dict)  # by position: where to, of those that do not simply go on


def run_batch(
    worker: Worker,
    items: Sequence[ItemIn],
    *,
    max_batch_size: int,
    isolate: bool = True,
    expired: Callable[[Sequence[ItemIn]], Container[int]] = none,
    begun: Callable[[ItemIn], bool] = never,
    call: Call = call_plainly,
    codec: Codec | None = None,
    sizes: Sequence[int] = (),
    lease: Lease = FOREIGN,
    passing: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> Computed:
    """Compute a batch. Of what user code raises nothing comes out but ``passing``, and WorkerBroken.

    ``expired`` says which items, by uid, nobody waits for any more; it is asked before they are decoded and before
    ``forward`` is called on them once more. ``begun``, whether an item's client has got events already, so that it
    cannot be computed once more.
    """
    run = Run(
        worker,
        items,
        codec or Codec(worker),
        max_batch_size=max_batch_size,
        isolate=isolate,
        expired=expired,
        begun=begun,
        call=call,
        lease=lease,
        passing=passing,
        sizes=sizes,
        forked=any(item.way is not None and item.way.fork is not None for item in items),
        splits=any(item.way is not None and bool(item.way.split or item.way.known) for item in items),
        gathers=any(item.way is not None and item.way.gathers is not None for item in items),
    )
    return run.compute()


@dataclass(slots=True)
class Run:
    """A :func:`run_batch` in two steps, the first of which can be made ahead: :meth:`decode_aside`, :meth:`compute`."""

    worker: Worker
    items: Sequence[ItemIn]
    codec: Codec
    _: KW_ONLY
    max_batch_size: int
    isolate: bool
    expired: Callable[[Sequence[ItemIn]], Container[int]]
    begun: Callable[[ItemIn], bool]
    call: Call
    lease: Lease = FOREIGN
    passing: tuple[type[BaseException], ...] = ()  # what is not user code's, but somebody's who wants to stop it
    most: int = sys.maxsize  # values that forward gets at once
    sizes: Sequence[int] = ()  # how many those may be (stages.sizes)
    coster: Coster | None = None  # who is asked what values cost
    forked: bool = False  # some of the items are on a route that branches behind this stage
    splits: bool = False  # ... that goes on in parts there, or to a stage with a cache
    gathers: bool = False  # ... whose parts come together here
    gives_back: bool = False  # what takes too long is left unanswered, for its sender to try otherwise
    ahead: bool = False  # decoded already
    fresh: bool = False  # just now
    outcomes: list[Outcome | None] = field(default_factory=list)
    live: list[tuple[int, ItemIn, Any]] = field(default_factory=list)  # position, item, decoded value
    calls: int = 0
    exhausted: int = 0  # the most values whose call ran out of memory; 0: none did
    fitted: int = 0  # the most values of a call that succeeded
    padding: int = 0  # values that were given beside the items
    failed: Callable[[int, BaseException], object] | None = None  # told who failed, by position, and of what
    costs: dict[int, float] = field(default_factory=dict)  # by position, of items whose cost is known
    targets: dict[int, int] = field(default_factory=dict)  # by position: where to, of results that do not simply go on
    misfits: int = 0  # calls that returned something else than their results
    struck: dict[tuple[str, str, str], tuple[BaseException, list[str]]] = field(default_factory=dict)

    def decode_aside(self) -> None:
        """Decode in another thread than the one that computes, before :meth:`compute`; nothing where code of the user's
        does it."""
        if not any(self.codec.decodes_by_own(item) for item in self.items):
            self.decode()
            self.ahead = True

    def compute(self) -> Computed:
        """The rest, in the thread of user code."""
        try:
            if not self.ahead:
                self.decode()
            elif not self.fresh:
                self.live = self.not_expired(self.live)
            if self.coster is not None:
                self.ask_costs(self.coster)
            if self.max_batch_size > 1:
                self.forward_batches()
            else:
                self.forward_singles()
            self.report()
        finally:
            self.worker._items = ()
            self.live = []
        return Computed([outcome or INTERNAL for outcome in self.outcomes], self.calls, self.targets)

    def end(self) -> None:
        """After :meth:`compute`, or in its place; before the results are sent. Raises what :meth:`Lease.end` raises."""
        self.live = []
        self.lease.end()

    def decode(self) -> None:
        items = self.items
        self.outcomes = [None] * len(items)
        gone = self.expired(items)
        live = [*enumerate(items)]
        if gone:
            for position, item in live:
                if item.uid in gone:
                    self.outcomes[position] = SKIPPED
            live = [one for one in live if one[1].uid not in gone]
        try:
            is_alike = len(live) > 1 and not self.gathers
            values = self.codec.decode_all([item for _, item in live]) if is_alike else None
        except self.passing:
            raise
        except BaseException:  # of one of them: it is found below
            values = None
        if values is not None:
            self.live = [(position, item, value) for (position, item), value in zip(live, values, strict=True)]
            return
        last = not self.isolate or self.max_batch_size == 1 or len(items) == 1  # else halves may be
        for position, item in live:
            self.live += self.decoded(position, item, last=last)

    def decoded(self, position: int, item: ItemIn, *, last: bool) -> list[tuple[int, ItemIn, Any]]:
        """The item with its value; empty when it cannot be decoded, and has failed."""
        if self.codec.decodes_by_own(item):
            self.worker._items = (item,)  # else nobody asks for its context
        try:
            return [(position, item, self.codec.decode(item, self.lease, last=last))]
        except self.passing:
            raise
        except BaseException as error:
            self.fail(position, error, "deserialize")
            return []

    def ask_costs(self, coster: Coster) -> None:
        """Before ``forward``, which may change the values."""
        for position, item, value in self.live:
            self.worker._items = (item,)
            if (cost := coster.of(value, self.passing)) is not None:
                self.costs[position] = cost

    def forward_singles(self) -> None:
        for position, item, value in self.live:
            self.worker._items = (item,)
            self.calls += 1
            try:
                result = self.call(entry(self.worker), value)
            except self.passing:
                raise
            except EngineTimeoutError as error:
                self.time_out([(position, item, value)], error)
            except BaseException as error:
                if verdict(error) is Verdict.MEMORY:
                    self.make_room(1, error)
                self.fail(position, error, "forward")
            else:
                self.encode(position, item, result)

    def forward_batches(self) -> None:
        parts = [self.live] if len(self.live) <= self.most else self.pieces()
        while parts:
            part = parts.pop()
            if not part:
                continue
            self.worker._items = [item for _, item, _ in part]
            values = [value for _, _, value in part]
            if self.sizes:
                values = self.pad(values)
            self.calls += 1
            try:
                results = as_results(self.call(self.worker.forward, values), len(values))
            except self.passing:
                raise
            except EngineTimeoutError as error:
                self.time_out(part, error)
            except BaseException as error:
                parts += self.narrowed(part, error)
            else:
                self.fitted = max(self.fitted, len(values))
                self.encode_all(part, results if len(results) == len(part) else results[: len(part)])

    def pad(self, values: list[Any]) -> list[Any]:
        """The values of a call, and as many beside them as it takes to reach an allowed size."""
        items = list(self.worker._items)
        size = padded(len(values), self.sizes)
        self.padding += size - len(values)
        self.worker._items = [*items, *[msgspec.structs.replace(items[-1], uid=PADDING)] * (size - len(values))]
        return filled_up(values, size)

    def pieces(self) -> list[list[tuple[int, ItemIn, Any]]]:
        """The batch in as few parts as memory allows, the first one last."""
        starts = range(0, len(self.live), self.most)
        return [self.live[start : start + self.most] for start in reversed(starts)]

    def narrowed(
        self, part: list[tuple[int, ItemIn, Any]], error: BaseException
    ) -> list[list[tuple[int, ItemIn, Any]]]:
        """A call that failed: the halves to call again on, the first one last; none when all has been said."""
        if (found := verdict(error)) is Verdict.MEMORY:
            self.make_room(padded(len(part), self.sizes), error)
        if len(part) == 1 or not self.isolate or found is Verdict.BROKEN:
            self.fail_all(part, error)
            return []
        if isinstance(error, WrongResults):
            self.misfits += 1
            if self.misfits == 1:  # its halves may well succeed, and nobody would hear of it
                _log.error("%s; it is called again on halves", error, extra={"request_ids": self.ids(part)})
        for position, item, _ in part:
            if self.begun(item):
                self.fail(position, error, "forward", SPOILED)
        left = self.not_expired([one for one in part if not self.begun(one[1])])
        last = len(left) <= 2  # a half of one is not halved
        again = [fresh for position, item, _ in left for fresh in self.decoded(position, item, last=last)]
        middle = (len(again) + 1) // 2
        # The first half comes off the list first: results leave in the order of the items.
        return [again[middle:], again[:middle]]

    def make_room(self, n: int, error: BaseException) -> None:
        """After a call on ``n`` values that ran out of memory."""
        self.exhausted = max(self.exhausted, n)
        give_room(error)

    def ids(self, part: Sequence[tuple[int, ItemIn, Any]]) -> list[str]:
        return [item.request_id for _, item, _ in part]

    def not_expired(self, entries: list[tuple[int, ItemIn, Any]]) -> list[tuple[int, ItemIn, Any]]:
        """Those still worth computing; the others are skipped."""
        gone = self.expired([item for _, item, _ in entries])
        if not gone:
            return entries
        for position, item, _ in entries:
            if item.uid in gone:
                self.outcomes[position] = SKIPPED
        return [one for one in entries if one[1].uid not in gone]

    def encode_all(self, part: Sequence[tuple[int, ItemIn, Any]], results: Sequence[Any]) -> None:
        try:
            is_alike = len(part) > 1 and not self.splits
            answers = self.codec.encode_all([item for _, item, _ in part], results) if is_alike else None
        except self.passing:
            raise
        except BaseException:  # of one of them, which may bring code of its own: it is found below
            answers = None
        if answers is None:
            for (position, item, _), result in zip(part, results, strict=True):
                self.encode(position, item, result)
            return
        if self.forked:
            self.part_ways(part, results, answers)
            return
        outcomes = self.outcomes
        for (position, _, _), answer in zip(part, answers, strict=True):
            outcomes[position] = Outcome(OK, answer)

    def part_ways(
        self, part: Sequence[tuple[int, ItemIn, Any]], results: Sequence[Any], answers: Sequence[Payload]
    ) -> None:
        """Results that are encoded, as what comes next takes them: each to the branch that is its own."""
        for (position, item, _), result, answer in zip(part, results, answers, strict=True):
            target = NOWHERE
            try:
                if item.way is not None and item.way.fork is not None:
                    target = item.way.of_value(result)
                    self.targets[position] = target
            except self.passing:
                raise
            except BaseException:  # told below
                target = FINAL
            if target == FINAL:  # no stage takes it: as an answer, or in vain, it is another thing
                self.encode(position, item, result)
            else:
                self.outcomes[position] = Outcome(OK, answer)

    def send(self, item: ItemIn, result: Any) -> tuple[int | None, Outcome]:
        """Where a result goes that says so itself, or by its field, and what it is there; None: it simply goes on.
        Raises WrongWay, or what encoding it raises."""
        way, codec = item.way, self.codec
        self.worker._items = (item,)
        if isinstance(result, Done):
            if item.last or way is None:
                return None, codec.outcome(item, result.result)
            way.be_told("Done")
            if way.in_parts:
                return JOIN, Outcome(OK, codec.encode_between(result.result))
            if codec.streams(item):
                raise WrongWay(f"stage {way.stage} returned Done, and sends events: only the last stage of a route may")
            return FINAL, codec.answer(item, result.result)
        if way is None:
            raise WrongWay("there is no route here, and so no stage to skip to")
        if isinstance(result, Skip):
            target = way.of_skip(result)
            gathers = target in way.receivers
            return target, Outcome(OK, codec.encode_between(result.value, afar=target != way.after, gathers=gathers))
        if way.split is not None:
            return JOIN, codec.apart(way.split, result, way.known)
        target = way.of_value(result)
        if target == FINAL and not item.last:
            return target, codec.answer(item, result)
        return target, codec.outcome(item, result)

    def encode(self, position: int, item: ItemIn, result: Any) -> None:
        if self.codec.encodes_by_own(item):
            self.worker._items = (item,)
        try:
            forks = item.way is not None and (item.way.fork is not None or item.way.split is not None)
            if isinstance(result, (Done, Skip)) or (forks and not isinstance(result, BaseException)):
                target, outcome = self.send(item, result)
                if target is not None:
                    self.targets[position] = target
                self.outcomes[position] = _known(item, target, unwrapped(result), outcome)
                return
            if not isinstance(result, BaseException):
                self.outcomes[position] = _known(item, None, result, self.codec.outcome(item, result))
                return
            where, failure = "forward", result
        except self.passing:
            raise
        except WrongWay as error:
            self.fail(position, error, "forward", ASTRAY)
            return
        except BaseException as error:
            where, failure = "serialize", error
        self.fail(position, failure, where)

    def time_out(self, part: Sequence[tuple[int, ItemIn, Any]], error: EngineTimeoutError) -> None:
        """Calling again would take as long again. Whoever sent the batch may have others find which item it was."""
        for position, item, _ in part:
            self.fail(position, error, "forward", SKIPPED if self.gives_back and not self.begun(item) else None)

    def fail_all(self, part: Sequence[tuple[int, ItemIn, Any]], error: BaseException) -> None:
        for position, _, _ in part:
            self.fail(position, error, "forward")

    def fail(self, position: int, error: BaseException, where: str, outcome: Outcome | None = None) -> None:
        if self.failed is not None:
            self.failed(position, error)
        if not isinstance(error, EngineTimeoutError) and verdict(error) is Verdict.BROKEN:
            raise error if isinstance(error, WorkerBroken) else WorkerBroken(blame.line(error)) from error
        outcome = self.outcomes[position] = outcome or outcome_of(error)
        if outcome.status < Status.FAILED and outcome.status != Status.TIMEOUT and outcome is not SKIPPED:
            return  # the client's fault: its answer says all, and a flood of bad requests must not flood the log
        kind = (where, type(error).__name__, _text(error))
        self.struck.setdefault(kind, (error, []))[1].append(self.items[position].request_id)

    def report(self) -> None:
        """Log the failures. A broken stage fails all of a batch alike: one traceback tells it."""
        for (where, _name, text), (error, struck) in self.struck.items():
            request_ids = [*dict.fromkeys(struck)]  # parts have their request's
            who = {"request_id": request_ids[0]} if len(request_ids) == 1 else {"request_ids": request_ids}
            if isinstance(error, EngineTimeoutError):
                _log.warning("%s timed out", where, extra=who)
            elif isinstance(error, (WrongResults, WrongWay)):
                _log.error("%s", text, extra=who)
            elif isinstance(error, EngineError):
                cause = error.__cause__  # of a format's own: what it could not write, say
                cause = blame.own(cause) if cause is not None and blame.begins_theirs(cause) else None
                _log.warning("%s failed: %s", where, blame.line(error), extra=who, exc_info=cause)
            else:
                _log.error("%s failed", where, exc_info=blame.own(error), extra=who)
        self.struck.clear()  # an exception holds its frames, and they hold the batch


def decode_together(runs: Sequence[Run]) -> None:
    """Decode what several will compute in one call, where that goes as :meth:`Codec.decode_all` has it and nobody has
    gone; else each of them decodes its own. It is a moment before the first of them begins, so they need not look anew
    who is still there."""
    items = [item for run in runs for item in run.items]
    if runs[0].gathers or runs[0].expired(items):
        return
    try:
        values = runs[0].codec.decode_all(items)
    except runs[0].passing:
        raise
    except BaseException:  # of one of them: its run finds it
        return
    if values is None:
        return
    first = 0
    for run in runs:
        count = len(run.items)
        run.outcomes = [None] * count
        run.live = [*zip(range(count), run.items, values[first : first + count], strict=True)]
        run.ahead = run.fresh = True
        first += count


def _known(item: ItemIn, target: int | None, value: Any, outcome: Outcome) -> Outcome:
    """An outcome with the key of what it goes to, or of what it is a part of, if that has a cache."""
    way = item.way
    if way is None or not way.known or outcome.parts is not None:
        return outcome
    target = way.after if target is None else target
    fields: Sequence[str] | None = way.known.get(target)
    if target == JOIN and way.into in way.known:
        fields = ()  # all of it
    if fields is None:
        return outcome
    return msgspec.structs.replace(outcome, key=key_of(value, outcome.payload, fields))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as other:  # a user's __str__
        return f"<{type(other).__name__} in __str__>"


_log = get_logger("stageline.compute")

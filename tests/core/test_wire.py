"""Parcels: what goes in comes out, and nothing else comes in."""

from __future__ import annotations

import struct
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import messages, wire
from engine.core import messages as m
from engine.core.arena import Ref
from engine.core.messages import Answers, AnyMessage, Batch, Message, Results, Submit
from engine.errors import ProtocolError

ids = st.integers(0, 2**62)
small = st.binary(max_size=200)
payload = st.one_of(
    small,
    st.integers(wire.INLINE_MAX - 1, wire.INLINE_MAX + 2).map(bytes),
    st.lists(small, min_size=2, max_size=4).map(tuple),
    st.just((b"alone",)),
)


def test_nobody_sends_what_nobody_takes() -> None:
    piece = memoryview(bytes(wire.INLINE_MAX + 1))
    for payload in ((piece,) * wire.FRAMES_MAX, (Ref(1, 64, 70_000),) * (wire.FRAMES_MAX + 1)):
        message = Results(1, 1, 1, [1], [200], [b""])
        with pytest.raises(ProtocolError):
            wire.encode(message, [payload])
    frames = wire.encode(Results(1, 1, 1, [1], [200], [b""]), [(piece,) * (wire.FRAMES_MAX - 1)])
    assert len(frames) == wire.FRAMES_MAX
    assert wire.decode(frames)


def normal(one: wire.Payload) -> tuple[bytes | Ref, ...]:
    parts = one if isinstance(one, tuple) else (one,)
    return tuple(part if isinstance(part, Ref) else bytes(part) for part in parts)


def submit(n: int) -> Submit:
    return Submit(list(range(n)), [0] * n, [1000] * n, [b""] * n)


@settings(max_examples=200)
@given(st.lists(st.tuples(ids, st.integers(0, 9), st.binary(max_size=50), payload), max_size=20))
def test_round_trip_of_columns_and_payloads(rows: list[Any]) -> None:
    message = Submit(
        seqs=[row[0] for row in rows],
        routes=[row[1] for row in rows],
        budgets_us=[5] * len(rows),
        metas=[row[2] for row in rows],
    )
    payloads = [row[3] for row in rows]
    decoded, got = wire.decode(wire.encode(message, payloads))
    assert isinstance(decoded, Submit)
    assert msgspec.structs.replace(decoded, layout=[]) == msgspec.structs.replace(message, layout=[])
    assert [normal(one) for one in got] == [normal(one) for one in payloads]


every_kind = list(AnyMessage.__args__)  # type: ignore[attr-defined]  # a union at run time


@pytest.mark.parametrize("kind", every_kind)
@given(data=st.data())
@settings(max_examples=20)
def test_round_trip_of_every_message(kind: type[Message], data: st.DataObject) -> None:
    fields: dict[str, Any] = {}
    n = data.draw(st.integers(0, 4))
    for field in msgspec.structs.fields(kind):
        if field.name == "layout":
            continue
        fields[field.name] = data.draw(_values(field.type, n), label=field.name)
    message = kind(**fields)
    columns = wire.columns_of(kind)
    carries = any(field.name == "layout" for field in msgspec.structs.fields(kind))
    payloads = [b"p%d" % i for i in range(n)] if columns else [b"body"] if carries else []
    decoded, got = wire.decode(wire.encode(message, payloads))
    assert type(decoded) is kind
    for name, value in fields.items():
        assert getattr(decoded, name) == value
    assert got == payloads


def _values(kind: Any, n: int) -> st.SearchStrategy[Any]:
    origin: Any = getattr(kind, "__origin__", None)
    args: tuple[Any, ...] = getattr(kind, "__args__", ())
    if origin is list:
        return st.lists(_values(args[0], n), min_size=n, max_size=n)
    if origin is dict:
        return st.just({})
    if origin is tuple:
        return st.tuples(*(_values(arg, n) for arg in args))
    if messages.Place in args:  # or None
        return st.one_of(st.none(), _values(messages.Place, n))
    if hasattr(kind, "__metadata__"):
        (bounds,) = (one for one in kind.__metadata__ if isinstance(one, msgspec.Meta))
        if origin is int:
            return st.integers(bounds.ge, bounds.le)
        if origin is float:
            return st.floats(bounds.ge, bounds.le, allow_nan=False)
        if origin is str:
            return st.text(max_size=min(30, bounds.max_length or 30))
        if origin is bytes:
            return st.binary(min_size=bounds.min_length or 0, max_size=bounds.max_length or 30)
        return _values(origin, n)
    return {
        int: st.integers(0, 2**40),
        str: st.text(max_size=30),
        bytes: st.binary(max_size=30),
        bool: st.booleans(),
        messages.StageState: st.just(messages.StageState("s", 1, 1, 0, 0, 0)),
        messages.Place: st.builds(messages.Place, ids, ids, ids, ids),
    }[kind]


refs = st.builds(Ref, ids, st.integers(0, 2**50), st.integers(1, 2**40))
mixed = st.lists(st.one_of(small, st.just(bytes(wire.INLINE_MAX + 1)), refs), min_size=1, max_size=5).map(tuple)


@settings(max_examples=200)
@given(st.lists(st.one_of(payload, refs, mixed), max_size=12))
def test_round_trip_of_references(payloads: list[wire.Payload]) -> None:
    message, got = wire.decode(wire.encode(submit(len(payloads)), payloads))
    assert isinstance(message, Submit)
    for sent, came in zip(payloads, got, strict=True):
        assert normal(came) == normal(sent)
        assert wire.refs_of(came) == wire.refs_of(sent)
        assert wire.payload_size(came) == wire.payload_size(sent)


def test_a_reference_beside_a_small_part_takes_no_frame() -> None:
    frames = wire.encode(submit(2), [(b"head", Ref(1, 16384, 100_000)), Ref(1, 32768, 70_000)])
    assert len(frames) == 1
    assert frames[0].endswith(b"head")  # type: ignore[union-attr]


def test_a_message_that_cannot_carry_references_refuses_them() -> None:
    with pytest.raises(AttributeError):
        wire.encode(Answers([1], [200], [""], [b""]), [Ref(1, 0, 1)])


def test_small_payloads_share_a_frame_with_the_header_and_large_ones_are_untouched() -> None:
    large = bytes(wire.INLINE_MAX + 1)
    view = memoryview(bytearray(100_000))
    frames = wire.encode(submit(4), [b"a", large, b"b", view])
    assert frames[0].endswith(b"ab")  # type: ignore[union-attr]
    assert frames[1] is large
    assert frames[2] is view
    assert wire.decode(frames)[1][1] is large


def head(header: bytes, small: bytes = b"") -> bytes:
    return struct.pack("<I", len(header)) + header + small


def frames_of(message: Message, small: bytes = b"", *rest: bytes) -> list[wire.Buffer]:
    return [head(msgspec.msgpack.encode(message), small), *rest]


def with_refs(refs: messages.Refs, n: int = 1) -> list[wire.Buffer]:
    """A Submit of ``n`` items with one byte each, and these references."""
    return frames_of(msgspec.structs.replace(submit(n), layout=[1] * n, refs=refs), b"x" * n)


MALFORMED: dict[str, list[wire.Buffer]] = {
    "references of an item that is not there": with_refs({1: [(0, 1, 0, 1)]}),
    "an item without references among them": with_refs({0: []}),
    "a reference past the parts": with_refs({0: [(2, 1, 0, 1)]}),
    "references out of order": with_refs({0: [(1, 1, 0, 1), (0, 1, 16384, 1)]}),
    "two references in one place": with_refs({0: [(0, 1, 0, 1), (0, 1, 16384, 1)]}),
    "an empty reference": with_refs({0: [(0, 1, 0, 0)]}),
    "a negative offset": with_refs({0: [(0, 1, -1, 1)]}),
    "a reference of too few numbers": with_refs({0: [(0, 1, 1)]}),  # type: ignore[list-item]
    "more references than a parcel has": with_refs({0: [(at, 1, 0, 1) for at in range(wire.FRAMES_MAX + 1)]}),
    "no frames": [],
    "nothing in it": [b""],
    "half a length": [b"\1\0\0"],
    "an empty header": [head(b"")],
    "a header that is cut off": [head(msgspec.msgpack.encode(messages.Cancel([1])))[:-1]],
    "not msgpack": [head(b"\xc1\xff\xff")],
    "half a header": [head(msgspec.msgpack.encode(submit(3))[:9], b"aaa")],
    "a map in place of an array": [head(msgspec.msgpack.encode({"seqs": []}))],
    "an unknown tag": [head(msgspec.msgpack.encode([999, 1, 2]))],
    "a wrong type": [head(msgspec.msgpack.encode([2, ["one"]]))],
    "a negative number": [head(msgspec.msgpack.encode([2, [-1]]))],
    "too few fields": [head(msgspec.msgpack.encode([1, [1]]))],
    "an endless name": frames_of(messages.StageState("x" * 300, 1, 1, 0, 0, 0)),
    "columns of different lengths": frames_of(Submit([1, 2], [0], [1], [b""], [1]), b"x"),
    "items without payloads": frames_of(submit(2)),
    "a layout without payloads": frames_of(Submit([1], [0], [1], [b""], [1])),
    "more items than payloads": frames_of(Submit([1, 2], [0] * 2, [1] * 2, [b""] * 2, [1]), b"x"),
    "a blob that is too short": frames_of(Submit([1], [0], [1], [b""], [5]), b"x"),
    "a blob that is too long": frames_of(Submit([1], [0], [1], [b""], [1]), b"xyz"),
    "a missing frame": frames_of(Submit([1], [0], [1], [b""], [-1]), b""),
    "several missing frames": frames_of(Submit([1], [0], [1], [b""], [-3]), b"", b"1", b"2"),
    "a frame too many": frames_of(Submit([1], [0], [1], [b""], [1]), b"x", b"y"),
    "payloads on a message without": frames_of(messages.Cancel([1]), b"x"),
    "a frame on a message without": frames_of(messages.Cancel([1]), b"", b"x"),
    "deep nesting": [head(b"\x91" * 100_000)],
    "a huge promised length": [head(b"\x98\x01\xdd\xff\xff\xff\xff")],
}


@pytest.mark.parametrize("frames", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_parcels_are_protocol_errors(frames: list[wire.Buffer]) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(frames)


def test_bounds_on_header_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEADER_MAX", 20)
    monkeypatch.setattr(wire, "FRAMES_MAX", 3)
    with pytest.raises(ProtocolError, match="header of"):
        wire.decode(wire.encode(submit(20), [b""] * 20))
    with pytest.raises(ProtocolError, match="4 frames"):
        wire.decode([b"x"] * 4)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
@settings(max_examples=300)
def test_random_bytes_never_do_anything_else(frames: list[bytes]) -> None:
    for parcel in (frames, [head(frames[0]), *frames[1:]]):
        try:
            wire.decode(parcel)
        except ProtocolError:
            pass  # the expected outcome; a random valid message is possible too


@given(st.integers(0, 5), st.data())
@settings(max_examples=300)
def test_a_flipped_byte_never_does_anything_else(n: int, data: st.DataObject) -> None:
    ones, texts = [1] * n, [b"m"] * n
    batch = Batch(7, 1, "idle", list(range(n)), ones, ones, ones, ["r"] * n, texts, ones, texts)
    frames = [bytearray(frame) for frame in wire.encode(batch, [b"payload"] * n)]
    frame = data.draw(st.sampled_from([f for f in frames if f]))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))
    try:
        wire.decode(frames)
    except ProtocolError:
        pass


def test_older_peers_ignore_a_new_field() -> None:
    header = msgspec.msgpack.decode(msgspec.msgpack.encode(messages.Cancel([5])))
    message, _ = wire.decode([head(msgspec.msgpack.encode([*header, "from the future"]))])
    assert message == messages.Cancel([5])


def test_a_column_that_an_older_peer_leaves_out_takes_its_default() -> None:
    """The whole of what a new column of a message needs is its declaration."""

    class Newer(Message, frozen=True, tag=1):
        seqs: messages.Ids
        weights: Annotated[list[int], messages.column(7)] = []
        layout: messages.Layout = []

    assert wire.columns_of(Newer) == (wire.Column("seqs", None, True), wire.Column("weights", 7, False))
    older = Newer([1, 2, 3])
    wire.fill_columns(older)
    assert older.weights == [7, 7, 7]
    with pytest.raises(ProtocolError):
        wire.fill_columns(Newer([1, 2, 3], [1]))
    with pytest.raises(ProtocolError):
        wire.fill_columns(Submit([1, 2], [], [1, 1], [b"", b""]))


def test_what_a_peer_says_is_bounded_where_the_message_is_defined() -> None:
    """A number that means a quantity, a time or an index, and each list and table, in all that goes to the broker."""
    for kind in (m.Submit, m.Cancel, m.Consumed, m.FrontendBeat, m.Ready, m.WorkerBeat, m.Leave, m.Bye, m.Results,
                 m.StreamEvents, m.Ask):  # fmt: skip
        for field in msgspec.structs.fields(kind):
            assert not _unbounded(field.type), f"{kind.__name__}.{field.name}"


def _unbounded(kind: Any) -> bool:
    """Whether a number or the count of a container in it may be anything. Layouts count as their column does."""
    if kind == m.Layout:
        return _unbounded(m.Layout.__args__[0])  # type: ignore[attr-defined]
    info = msgspec.inspect.type_info(kind)
    if isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    return _is_open(info)


def _is_open(info: Any) -> bool:
    if isinstance(info, msgspec.inspect.Metadata):
        return _is_open(info.type)
    if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        return info.le is None or info.ge is None
    if isinstance(info, msgspec.inspect.ListType):
        return info.max_length is None or _is_open(info.item_type)
    if isinstance(info, msgspec.inspect.DictType):
        return info.max_length is None or _is_open(info.key_type) or _is_open(info.value_type)
    if isinstance(info, msgspec.inspect.TupleType):
        return any(map(_is_open, info.item_types))
    if isinstance(info, msgspec.inspect.StructType):
        return any(_is_open(field.type) for field in info.fields)
    return not isinstance(info, msgspec.inspect.BoolType | msgspec.inspect.StrType | msgspec.inspect.BytesType)


@pytest.mark.parametrize(
    "message",
    [
        Submit([1], [0], [2**60], [b""]),
        Submit([1], [0], [-1], [b""]),
        Submit([1], [2**16], [1], [b""]),
        Submit([2**63], [0], [1], [b""]),
        Results(99_999, 1, 1, [1], [200], [b""]),
        Results(0, -1, 1, [1], [200], [b""]),
        Results(0, 1, 1, [1], [1000], [b""]),
        Results(0, 1, 1, [1], [-1], [b""]),
        Results(0, 1, 1, [1], [200], [b""], compute_us=2**60),
    ],
)
def test_numbers_that_nothing_can_be_are_refused(message: Message) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(wire.encode(message, [b"x"]))


def test_lists_longer_than_any_parcel_are_refused() -> None:
    for most in (m.Cancel([1] * m.ITEMS_MOST), m.Consumed(dict.fromkeys(range(m.ITEMS_MOST), 1))):
        assert wire.decode(wire.encode(most)) == (most, [])
    for more in (m.Cancel([1] * (m.ITEMS_MOST + 1)), m.Consumed(dict.fromkeys(range(m.ITEMS_MOST + 1), 1))):
        with pytest.raises(ProtocolError):
            wire.decode(wire.encode(more))


def test_trails() -> None:
    trail = wire.pack_step(1, 2, 3) + wire.pack_step(-5, 2**40, 0)
    assert wire.unpack_trail(trail) == [(1, 2, 3), (0, 2**32 - 1, 0)]
    assert wire.unpack_trail(trail + b"torn") == wire.unpack_trail(trail)


def test_results_and_answers_keep_sparse_headers() -> None:
    results = Results(0, 1, 2, [5, 6], [200, 418], [b"", b""], "text/plain", 10, {1: {"x-a": "b"}})
    decoded, _ = wire.decode(wire.encode(results, [b"", b"no"]))
    assert isinstance(decoded, Results)
    assert decoded.headers == {1: {"x-a": "b"}}
    answers = Answers([5], [200], ["m"], [b""], {0: {"a": "b"}})
    assert wire.decode(wire.encode(answers, [b"x"]))[0].headers == {0: {"a": "b"}}  # type: ignore[union-attr]

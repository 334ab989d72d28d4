"""Work on a client's bytes grows as they do: twice the input takes at most 2.5 times as long. A step that looks at all
that came before for each new piece takes four times, and is how little traffic holds a process.

Measured is this thread's own computing time, the least of several, so that others on the machine do not count; and
what is linear has several chances to show it, while what is quadratic has none.
"""

from __future__ import annotations

import gc
import gzip
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from fakes import deployment

from engine.config.schema import FrontendSection
from engine.core import meta
from engine.errors import DecodingError
from frontend import compression, deadline, media, requestid, unpacking
from frontend import head as heads
from frontend.frames import Frames
from frontend.gate import Gate
from frontend.plain import Reader
from frontend.serving.connection import Parser
from stages import plainjson
from stages.context import Context, Headers, ItemIn
from stages.mixin import MsgpackMixin

MOST = 2.5
DOUBLINGS = 4  # in one look, for tables grow in steps
LEAST_S = 0.0002  # shorter ones are measured in a larger size; much larger ones fit into no cache
TRIES = 60

Work = Callable[[], object]
Maker = Callable[[int], Work]  # of work on so many bytes, or pieces of some bytes


def took(work: Work) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def growth(make: Maker, size: int = 250, tries: int = TRIES) -> float:
    """How much longer work on twice as much takes, at the best of many tries; soon, where it is little."""
    for _ in range(10):
        once = make(size)
        if took(once) >= LEAST_S:
            break
        size *= 2
    else:
        return 1.0  # there is an end to it: it does not look at all of a large input
    more = make(size << DOUBLINGS)
    least_once = least_more = math.inf
    for tried in range(tries):
        least_once = min(least_once, took(once))
        least_more = min(least_more, took(more))
        found = (least_more / least_once) ** (1 / DOUBLINGS)
        if tried >= 3 and found <= MOST:
            break
    return found


# --- HTTP/1.1 --------------------------------------------------------------------------------------------------------


def parse(data: bytes, piece: int) -> Work:
    def work() -> None:
        got: list[bytes] = []
        parser = Parser(on_body=got.append, on_message_complete=lambda: None, limit_request_fields=1 << 30,
                        limit_request_field_size=1 << 30)  # fmt: skip
        for start in range(0, len(data), piece):
            parser.feed(data[start : start + piece])
        assert parser.is_complete

    return work


def request(*fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST /inference HTTP/1.1", b"host: x", *fields, b"", body])


def chunked(body: bytes) -> bytes:
    return request(b"transfer-encoding: chunked", body=body)


def read_plain(head: bytes) -> Work:
    whole = deployment()
    reader = Reader(whole.topology, Gate(FrontendSection()).terms, compressed=False)
    return lambda: [reader.read(head) for _ in range(20)]


def read_head(fields: list[tuple[bytes, bytes]]) -> Work:
    return lambda: heads.read("POST", "2", "/inference", b"", fields)


HTTP1: dict[str, Maker] = {
    "a head of many fields": lambda n: parse(request(*[b"x-%d: y" % k for k in range(n)]), 1 << 16),
    "the same byte by byte": lambda n: parse(request(*[b"x-%d: y" % k for k in range(n // 4)]), 1),
    "one long field byte by byte": lambda n: parse(request(b"x: " + b"y" * 8 * n), 1),
    "blanks around a value": lambda n: parse(request(b"x:" + b" \t" * 8 * n + b"y" + b" " * 8 * n), 1 << 16),
    "a body byte by byte": lambda n: parse(request(b"content-length: %d" % n, body=b"x" * n), 1),
    "chunks": lambda n: parse(chunked(b"10\r\n0123456789abcdef\r\n" * n + b"0\r\n\r\n"), 1 << 16),
    "chunks byte by byte": lambda n: parse(chunked(b"10\r\n0123456789abcdef\r\n" * (n // 8) + b"0\r\n\r\n"), 1),
    "zeros before the size of a chunk": lambda n: parse(chunked(b"0" * 8 * n + b"1\r\nx\r\n0\r\n\r\n"), 1 << 16),
    "a long extension of a chunk": lambda n: parse(chunked(b"1;a=" + b"b" * 8 * n + b"\r\nx\r\n0\r\n\r\n"), 1 << 16),
    "many extensions of a chunk": lambda n: parse(chunked(b"1" + b";a=b" * n + b"\r\nx\r\n0\r\n\r\n"), 1 << 16),
    "trailers": lambda n: parse(chunked(b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * n + b"\r\n"), 1 << 16),
    "a plain head with a long field": lambda n: read_plain(
        request(b"content-length: 1", b"x: " + b"y" * 8 * n)
    ),
    "a head that is nearly plain": lambda n: read_plain(request(b"content-length: 1", b"x:" + b" " * 8 * n + b"\x01")),
    "a name without an end": lambda n: read_plain(request(b"content-length: 1", b"a" * 8 * n)),
}  # fmt: skip

# --- what a head says ------------------------------------------------------------------------------------------------

TERMS: dict[str, Maker] = {
    "many fields": lambda n: read_head([(b"x-%d" % k, b"y") for k in range(n)]),
    "a list in many fields": lambda n: read_head([(b"accept", b"text/plain")] * n),
    "a field many times, for a worker": lambda n: (lambda: Headers([(b"x-a", b"some value")] * n)),
    "a long id": lambda n: of(b"x" * 64 * n, requestid.sane),
    "a long timeout": lambda n: of(b"1" * 64 * n, lambda text: deadline.allowed(text, b"", 3.0)),
    "a timeout with blanks": lambda n: of(b" " * 64 * n + b"x", lambda text: deadline.allowed(b"", text, 3.0)),
    "a long content coding": lambda n: of(b" " * 64 * n + b"gzip" + b" " * 64 * n, compression.coding_of),
    "a long length": lambda n: of([(b"content-length", b"1" * 64 * n)], lambda fields: heads.sends_little(fields, 1)),
    "a query of many fields, for a worker": lambda n: read_query(b"&".join(b"a%d=b" % k for k in range(n))),
    "a query of one long field, for a worker": lambda n: read_query(b"a=" + b"%41+" * n),
    "a long upgrade": lambda n: read_head([(b"upgrade", b"websocket" * 8 * n), (b"connection", b"upgrad " * 8 * n)]),
    "packing a head": lambda n: (lambda: meta.head_of(meta.pack("id", meta.pack_head(b"q" * n, [(b"a", b"b")] * n)))),
    "a worker's type": lambda n: of("a/b" + ";" * 64 * n + "\n", media.content_type.__wrapped__),
    "a worker's headers": lambda n: of({f"x-{k}": "y" for k in range(n)}, media.passable),
}  # fmt: skip


def of(value: Any, read: Callable[[Any], object]) -> Work:
    return lambda: read(value)


def read_query(query: bytes) -> Work:
    packed = meta.pack("id", meta.pack_head(query, []))
    return lambda: Context(ItemIn(0, b"", meta=packed), lambda uid: False).query


# Both read no header of more than 1,024 bytes, and remember what they have read; here they have to.
NEGOTIATING: dict[str, Callable[[str], object]] = {
    "accept": media._qualities.__wrapped__,
    "accept-encoding": compression._choose.__wrapped__,
}
NEGOTIATED: dict[str, Callable[[int], str]] = {
    "many types": lambda n: "a/b," * n,
    "many parameters": lambda n: "a/b" + ";c=d" * n,
    "a long quality": lambda n: "a/b;q=" + "0" * 8 * n,
    "blanks": lambda n: "a/b" + " " * 8 * n + ";" + " " * 8 * n + "q=1",
    "separators": lambda n: ";,=" * n,
}


def negotiated(what: str, kind: str) -> Maker:
    return lambda n: of(NEGOTIATED[kind](n), NEGOTIATING[what])


# --- bodies ----------------------------------------------------------------------------------------------------------


class Packed(MsgpackMixin):
    pass


def undone(data: bytes, coding: str) -> Work:
    def work() -> None:
        unpacked = unpacking.Unpacking(coding, data, 1 << 30)
        while not unpacked.done:
            unpacked.go_on(1 << 16)

    return work


BODIES: dict[str, Maker] = {
    "JSON of numbers": lambda n: lambda: plainjson.decode(b"[" + b"1.5," * n + b"1]"),
    "JSON of digits": lambda n: lambda: refused(b"1" * n),
    "JSON of decimals": lambda n: lambda: plainjson.decode(b"0." + b"1234567890" * n),
    "JSON of text": lambda n: lambda: plainjson.decode(json.dumps("\u20ac\n" * n).encode()),
    "JSON of keys": lambda n: lambda: plainjson.decode(b"{" + b",".join(b'"%d":1' % k for k in range(n)) + b"}"),
    "JSON of equal keys": lambda n: lambda: plainjson.decode(b"{" + b'"a":1,' * n + b'"a":1}'),
    "JSON that is Python's": lambda n: lambda: plainjson.decode(b"[" + b"NaN," * n + b"1]"),
    "JSON that nests": lambda n: lambda: refused(b"[" * n),
    "JSON that is none": lambda n: lambda: refused(b'"' + b"\\u0000" * n),
    "MessagePack of numbers": lambda n: packed([1.5] * n),
    "MessagePack of keys": lambda n: packed({str(k): k for k in range(n)}),
    "MessagePack that nests": lambda n: lambda: unreadable(b"\x91" * n),
    "gzip": lambda n: undone(gzip.compress(bytes(64 * n)), "gzip"),
}


def packed(value: object) -> Work:
    data = msgpack.packb(value)
    return lambda: Packed().deserialize(data)


def refused(data: bytes) -> None:
    with suppress(DecodingError):
        plainjson.decode(data)


def unreadable(data: bytes) -> None:
    with suppress(DecodingError):
        Packed().deserialize(data)


# --- HTTP/2 ----------------------------------------------------------------------------------------------------------


def framed(data: bytes) -> Work:
    def work() -> None:
        frames, view = Frames(0.0, 1 << 16), memoryview(data)
        while view:
            view = view[frames.take(view, 0.0) :]

    return work


HTTP2: dict[str, Maker] = {
    "tiny frames": lambda n: framed(bytes(24) + b"\0\0\0\xbe\0\0\0\0\0" * n),
    "a head in many frames": lambda n: framed(bytes(24) + b"\0\0\1\1\0\0\0\0\1x" + b"\0\0\1\x09\0\0\0\0\1x" * n),
}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """It looks at all there is in this process of tests, when so much has been made."""
    gc.disable()
    yield
    gc.enable()


ALL = {
    **HTTP1,
    **TERMS,
    **{f"{what}: {kind}": negotiated(what, kind) for what in NEGOTIATING for kind in NEGOTIATED},
    **BODIES,
    **HTTP2,
}


@pytest.mark.parametrize("name", ALL)
def test_twice_as_much_takes_twice_as_long(name: str) -> None:
    assert growth(ALL[name]) <= MOST


def test_what_grows_too_fast_would_be_found() -> None:
    def quadratic(n: int) -> Work:
        def work() -> None:
            for k in range(n):
                bytes(16 * k)

        return work

    assert growth(quadratic, tries=5) > MOST

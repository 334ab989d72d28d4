"""Bodies that are small to send and long to read: refused, or read in time that grows with their size.

What counts as hostile here is what Python does for each byte; nothing is timed that could be counted instead.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import islice, product
from typing import Any

import msgpack
import msgspec
import pytest

from engine.errors import DecodingError
from stages import Worker, plainjson
from stages.mixin import MsgpackMixin, TypedJSONMixin, TypedMsgPackMixin


class Plain(MsgpackMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


class Trusting(Plain):
    strict_map_key = False


class Untyped(TypedMsgPackMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


class Open(msgspec.Struct):
    name: str = ""
    more: list[Any] = []
    next: Open | None = None


class HalfTyped(TypedMsgPackMixin, Worker):
    def forward(self, data: Open) -> Any:
        return data


class ByNumber(TypedMsgPackMixin, Worker):
    def forward(self, data: dict[int, str]) -> Any:
        return data


class ByName(TypedJSONMixin, Worker):
    def forward(self, data: dict[str, int]) -> Any:
        return data


def colliding(count: int) -> bytes:
    """A map whose keys all have the same hash, for -1 and -2 have: a quadratic time to build, wherever they are let
    in."""
    keys = islice(product((-1, -2), repeat=16), count)
    pairs = [msgpack.packb(list(key)) + b"\0" for key in keys]
    return b"\xdf" + len(pairs).to_bytes(4, "big") + b"".join(pairs)


def test_such_keys_do_collide() -> None:
    found = msgpack.unpackb(colliding(100), use_list=False, strict_map_key=False)
    assert len(found) == 100
    assert len({hash(key) for key in found}) == 1


@pytest.mark.parametrize("worker", [Plain, Untyped])
@pytest.mark.parametrize(
    "body", [colliding(100), msgpack.packb({7: 1}), msgpack.packb({1.5: 1}), msgpack.packb([{7: 1}])]
)
def test_a_key_that_is_neither_text_nor_bytes_is_400(worker: type[Worker], body: bytes) -> None:
    with pytest.raises(DecodingError, match="not allowed for map key"):
        worker().deserialize(body)


def test_it_is_refused_in_a_corner_that_a_type_leaves_open() -> None:
    body = b"\x81\xa4next\x81\xa4more\x91" + colliding(100)
    with pytest.raises(DecodingError, match="not allowed for map key"):
        HalfTyped().deserialize(body)
    assert HalfTyped().deserialize(msgpack.packb({"more": [{"a": 1}]})).more == [{"a": 1}]


@pytest.mark.parametrize("worker", [Plain, Untyped])
def test_text_and_bytes_are_keys(worker: type[Worker]) -> None:
    assert worker().deserialize(msgpack.packb({"a": 1, b"b": 2})) == {"a": 1, b"b": 2}


def test_keys_that_a_type_names_are_taken() -> None:
    assert ByNumber().deserialize(msgpack.packb({7: "x"})) == {7: "x"}


def test_a_worker_that_trusts_its_clients_takes_any_key() -> None:
    assert Trusting().deserialize(msgpack.packb({7: 1})) == {7: 1}


# --- twice the bytes take twice the time -----------------------------------------------------------------------------

# Of what C does nothing can be counted, so the best of some runs is timed, at sizes that differ by a factor at which
# linear (8) and quadratic (64) are told apart by any machine. Timed is what this thread computes: others may have the
# processor meanwhile. The garbage collector waits: the larger of two bodies has it look at all that other tests hold.
FACTOR = 8
MOST = 32


def grows(read: Callable[[bytes], object], make: Callable[[int], bytes], size: int) -> float:
    """How many times as long ``read`` takes for what is FACTOR times as large."""

    def least_s(body: bytes) -> float:
        best = 1e9
        for _ in range(5):
            began = time.thread_time()
            try:
                read(body)
            except DecodingError:
                pass  # refusing is work too
            best = min(best, time.thread_time() - began)
        return best

    collected = gc.isenabled()
    gc.disable()
    try:
        return least_s(make(size * FACTOR)) / least_s(make(size))
    finally:
        if collected:
            gc.enable()


BODIES: dict[str, tuple[Callable[[bytes], object], Callable[[int], bytes], int]] = {
    "msgpack, colliding keys": (Plain().deserialize, colliding, 4096),
    "typed msgpack, colliding keys": (Untyped().deserialize, colliding, 4096),
    "msgpack, many keys": (Plain().deserialize, lambda n: msgpack.packb({f"k{i}": i for i in range(n)}), 4096),
    "msgpack, one key often": (
        Plain().deserialize, lambda n: b"\xdf" + n.to_bytes(4, "big") + b"\xa1a\0" * n, 8192,
    ),
    "msgpack, deep": (Plain().deserialize, lambda n: b"\x91" * n, 65536),
    "typed msgpack, deep": (Untyped().deserialize, lambda n: b"\x91" * n, 65536),
    "JSON, many keys": (plainjson.decode, lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n)) + b"}", 4096),
    "JSON, deep": (plainjson.decode, lambda n: b"[" * n, 65536),
    "JSON, a long number": (plainjson.decode, lambda n: b"7" * n, 65536),
    "JSON, many long numbers": (plainjson.decode, lambda n: b"[" + b",".join([b"7" * 4000] * n) + b"]", 16),
    "JSON, long numbers among NaN": (plainjson.decode, lambda n: b"[NaN" + (b"," + b"7" * 4000) * n + b"]", 16),
    "JSON, a long fraction": (plainjson.decode, lambda n: b"0." + b"7" * n + b"e-7", 65536),
    "JSON, a long fraction among NaN": (plainjson.decode, lambda n: b"[NaN,0." + b"7" * n + b"e-7]", 65536),
    "JSON, escapes": (plainjson.decode, lambda n: b'"' + b"\\ud800" * n + b'"', 8192),
    "typed JSON, many keys": (
        ByName().deserialize, lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n)) + b"}", 4096,
    ),
    "typed JSON, a wrong value at the end": (
        ByName().deserialize, lambda n: b"{" + b"".join(b'"%d":1,' % i for i in range(n)) + b'"x":""', 4096,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_reading_takes_time_as_the_body_has_bytes(name: str) -> None:
    read, make, size = BODIES[name]
    assert any(grows(read, make, size) < MOST for _ in range(6))  # quadratic is it never

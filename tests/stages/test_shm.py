"""Values through shared memory: what arrives looks at the sender's copy, and every block comes back.

That what arrives is the receiver's own is in test_own_memory.py.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine import memory
from engine.broker.arenas import Arenas
from engine.core.arena import SHARED_MIN, UNIT, Ref
from engine.core.messages import Place
from engine.core.wire import Payload, refs_of
from engine.errors import ProtocolError
from engine.memory import Gone, Store, Views, open_arena
from stages import ipc
from stages.base import Worker
from stages.compute import Codec
from stages.context import ItemIn
from stages.shm import Lease, SharedMemory, open_store

SIZE = 16 << 20


class Pair:
    """A producer, a reader, and the broker between them, in one process."""

    def __init__(self, size: int = SIZE) -> None:
        self.arenas = Arenas(size)
        place = self.arenas.create()
        assert place is not None
        self.place = place
        self.store = Store(place)
        self.views = Views()

    def send(self, value: Any) -> Lease:
        """Packed, arrived at the broker, given to the reader."""
        self.sent = ipc.pack(value, self.store.put)
        self.arenas.arrive([self.sent])
        return self.lease(self.sent)

    def lease(self, payload: Payload) -> Lease:
        return Lease(self.views.open([payload], self.arenas.places(refs_of(payload))), self.views.blocks)

    def pass_on(self, value: Any) -> Any:
        lease = self.send(value)
        return ipc.unpack(self.sent, lease)

    def settle(self) -> None:
        self.arenas.release(refs_of(self.sent))

    def close(self) -> None:
        self.store.close()
        self.views.close()
        self.arenas.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_an_array_arrives_as_a_view_of_the_one_copy(pair: Pair) -> None:
    sent = np.arange(1 << 20, dtype=np.float32)
    got = pair.pass_on({"x": [sent, sent[:10]]})["x"]
    assert np.array_equal(got[0], sent)
    assert not got[0].flags.owndata
    (ref,) = refs_of(pair.sent)  # the short one stays in the pickle
    pair.store._bytes[ref.offset : ref.offset + 4] = np.float32(7).tobytes()
    assert got[0][0] == 7  # the same memory, not a copy of it
    sent[1] = -1
    assert got[0][1] == 1  # but not the sender's array, which it may fill again
    assert isinstance(pair.sent, tuple)
    assert sum(len(part) for part in pair.sent if isinstance(part, bytes)) < 1000


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_shape_and_order_of_an_array_are_kept(pair: Pair, order: Any) -> None:
    sent = np.asarray(np.arange(60_000.0).reshape(3, 200, 100), order=order)
    got = pair.pass_on(sent)
    assert np.array_equal(got, sent)
    assert got.flags.f_contiguous == sent.flags.f_contiguous
    assert len(refs_of(pair.sent)) == 1


BIG = bytes(range(256)) * 512


@pytest.mark.parametrize(
    ("value", "blocks"),
    [
        (BIG, 1),
        (bytearray(BIG), 1),
        ({"a": BIG, "b": [bytearray(BIG), (BIG, 1)], "c": {"d": BIG}}, 4),
        ([BIG[:100], "text", None, 3.5], 0),
        ("x" * 100_000, 1),  # the pickle itself is large
        ([{"n": number} for number in range(10_000)], 1),
        ([BIG] * 100, 1),  # too many to be looked at: they go in the pickle, which is one part
        (BIG[: SHARED_MIN - 1], 1),  # its pickle is just large enough
        ({1, 2}, 0),
    ],
)
def test_what_goes_by_reference_comes_back_equal_and_of_its_type(pair: Pair, value: Any, blocks: int) -> None:
    got = pair.pass_on(value)
    assert got == value
    assert type(got) is type(value)
    assert len(refs_of(pair.sent)) == blocks


def test_a_memoryview_arrives_as_one(pair: Pair) -> None:
    got = pair.pass_on([memoryview(bytearray(BIG)), memoryview(b"small"), memoryview(BIG)[::2]])
    assert [bytes(one) for one in got] == [BIG, b"small", BIG[::2]]
    assert len(refs_of(pair.sent)) == 2


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "bool", "int8", "int64", "complex64"])
def test_a_tensor_arrives_without_a_copy(pair: Pair, kind: str) -> None:
    import torch

    sent = (torch.arange(600_000) % 100).reshape(6, 1000, 100).to(getattr(torch, kind)).transpose(0, 1)
    got = pair.pass_on({"t": sent})["t"]
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert torch.equal(got, sent)
    (ref,) = refs_of(pair.sent)
    before = bytes(pair.store._bytes[ref.offset : ref.offset + UNIT])
    pair.store._bytes[ref.offset : ref.offset + UNIT] = bytes(UNIT)
    assert not got.flatten()[: UNIT // got.element_size()].any()
    pair.store._bytes[ref.offset : ref.offset + UNIT] = before


@pytest.mark.parametrize("make", ["small", "gradient", "sparse", "parameter"])
def test_other_tensors_go_as_torch_pickles_them(pair: Pair, make: str) -> None:
    import torch

    sent: Any = {
        "small": lambda: torch.ones(3),
        "gradient": lambda: torch.ones(100_000, requires_grad=True),
        "sparse": lambda: torch.eye(300).to_sparse(),
        "parameter": lambda: torch.nn.Parameter(torch.ones(100_000)),
    }[make]()
    got = pair.pass_on(sent)
    assert type(got) is type(sent)
    assert got.requires_grad == sent.requires_grad
    assert torch.equal(got.to_dense(), sent.to_dense())


def test_without_shared_memory_everything_arrives_all_the_same() -> None:
    import torch

    value = {"array": np.arange(100_000.0), "tensor": torch.arange(100_000), "bytes": BIG}
    got = ipc.unpack(ipc.pack(value))
    assert np.array_equal(got["array"], value["array"])
    assert torch.equal(got["tensor"], torch.arange(100_000))
    assert got["bytes"] == BIG


def test_blocks_come_back_and_are_used_again(pair: Pair) -> None:
    array = np.ones(1 << 18)  # 2 MiB: eight at most
    offsets = set()
    for _ in range(1000):
        pair.send(array)
        offsets |= {ref.offset for ref in refs_of(pair.sent)}
        pair.settle()
    assert len(offsets) == 1  # the lowest every time
    assert pair.store.used == 0
    assert pair.arenas.usage() == (1, 0)


def test_a_full_arena_sends_the_bytes_and_copies_what_may_change(pair: Pair) -> None:
    held = [pair.store.put(bytes(1 << 20)) for _ in range(SIZE >> 20)]
    assert held[-1] is None  # the marks take a unit
    array = np.ones(1 << 18)
    payload = ipc.pack(array, pair.store.put)
    assert refs_of(payload) == ()
    array[:] = 2
    assert (ipc.unpack(payload) == 1).all()
    pair.store.take_back(ref for ref in held if ref is not None)
    assert pair.store.used == 0


def test_a_result_that_is_a_view_of_what_came_in_is_copied_on(pair: Pair) -> None:
    """Its memory is given back as soon as the next stage has the result."""
    got = pair.pass_on(np.ones(1 << 18))
    tiny = ipc.pack(got, lambda _: None)  # there is no room for it
    pair.store._bytes[pair.sent[1].offset] = 99  # type: ignore[index,union-attr]
    assert (ipc.unpack(tiny) == 1).all()


def test_what_was_put_and_is_not_sent_is_taken_back(pair: Pair) -> None:
    shared = SharedMemory()
    shared.switch(pair.store)
    kept, dropped = shared.put(BIG), shared.put(BIG)
    assert kept is not None
    assert dropped is not None
    shared.keep([b"small", (b"head", kept)])
    assert pair.store.used == -(-len(BIG) // UNIT) * UNIT
    shared.keep([])
    assert shared.put(BIG) == dropped
    pair.store = Store(pair.place)  # the other was given away
    shared.close()


def test_memory_that_is_given_back_is_that_of_free_blocks_and_can_be_used_again(pair: Pair) -> None:
    file = f"/proc/self/fd/{pair.place.fd}"
    pages = os.stat(file).st_blocks
    before = pair.store.put(BIG)
    kept = pair.send(BIG)
    assert before is not None
    pair.store.take_back([before])
    used = os.stat(file).st_blocks
    pair.store.give_back()
    assert pages < os.stat(file).st_blocks < used
    assert ipc.unpack(pair.sent, kept) == BIG
    pair.settle()
    pair.store.give_back()
    assert os.stat(file).st_blocks <= pages + 16 * UNIT // 512
    assert pair.pass_on(BIG[::-1]) == BIG[::-1]


class Own(Worker):
    """With bytes of its own between stages."""

    def serialize_ipc(self, data: Any) -> bytes:
        return b"own:" + pickle.dumps(data)

    def deserialize_ipc(self, data: bytes) -> Any:
        assert type(data) is bytes
        return pickle.loads(data.removeprefix(b"own:"))

    def forward(self, data: Any) -> Any:
        return data


def test_a_class_with_its_own_bytes_shares_large_ones_and_is_given_bytes(pair: Pair) -> None:
    codec = Codec(Own())
    codec.put = pair.store.put
    item = ItemIn(1, b"", first=False, last=False)
    payload = codec.encode(item, BIG)
    assert isinstance(payload, Ref)
    pair.arenas.arrive([payload])
    assert codec.decode(ItemIn(1, payload, first=False, last=False), pair.lease(payload)) == BIG
    assert type(codec.encode(item, b"small")) is bytes


def test_who_cannot_map_is_given_the_bytes(pair: Pair) -> None:
    array = np.arange(100_000.0)
    pair.send(array)
    (got,) = pair.arenas.plain([pair.sent])
    assert refs_of(got) == ()
    assert np.array_equal(ipc.unpack(got), array)
    assert pair.arenas.plain([b"as it is"]) == [b"as it is"]


# --- arenas come and go ----------------------------------------------------------------------------------------------


def test_an_arena_has_no_name_and_cannot_be_cut_short(pair: Pair) -> None:
    fd = open_arena(pair.place, writable=True)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:stageline")
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 2 * SIZE)
    finally:
        os.close(fd)


def test_what_a_producer_sent_before_it_died_can_be_read_and_then_its_memory_is_free(pair: Pair) -> None:
    array = pair.pass_on(np.ones(1 << 20))
    watching = os.dup(pair.place.fd)
    try:
        pair.store.close()
        pair.arenas.retire(pair.place)
        assert os.fstat(watching).st_blocks > 0
        assert array.sum() == 1 << 20
        pair.settle()
        assert pair.arenas.usage() == (0, 0)
        assert os.fstat(watching).st_blocks == 0  # although it is still mapped here
    finally:
        os.close(watching)
    pair.store = Store(pair.arenas.create() or pair.place)
    with pytest.raises(ProtocolError):
        pair.arenas.arrive([pair.sent])


def test_mappings_of_arenas_that_are_gone_are_dropped(pair: Pair) -> None:
    for _ in range(5):
        pair.send(np.ones(1 << 20))
        pair.settle()
        pair.store.close()
        pair.arenas.retire(pair.place)
        place = pair.arenas.create()
        assert place is not None
        pair.place, pair.store = place, Store(place)
        assert len(pair.views) == 1


def test_no_more_than_so_many_arenas_are_mapped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAPPED_MOST", 3)
    arenas, views = Arenas(SIZE), Views()
    places = [place for _ in range(6) if (place := arenas.create()) is not None]
    stores = [Store(place) for place in places]
    for round_ in range(2):
        for store in stores:
            ref = store.put(bytes([round_]) * SHARED_MIN)
            assert ref is not None
            lease = Lease(views.open([ref], [store.place]))
            assert bytes(lease.view(ref)) == bytes([round_]) * SHARED_MIN
            assert len(views) <= 3
    refs = [ref for store in stores if (ref := store.put(BIG)) is not None]
    assert len(views.open(refs, places)) == 6  # what one batch needs is mapped all the same
    for store in stores:
        store.close()
    views.close()
    arenas.close()


def test_an_arena_that_is_gone_is_told_apart_from_one_that_cannot_be_mapped(pair: Pair) -> None:
    place = pair.place
    for wrong in (
        Place(place.arena, 2**22 + 1, place.fd, place.size),  # no such process
        Place(place.arena, place.pid, 9_999, place.size),
        Place(place.arena + 1, place.pid, place.fd, place.size),  # another arena has its number now
        Place(place.arena, place.pid, 0, place.size),
        Place(place.arena, place.pid, place.fd, place.size + 1),
    ):
        with pytest.raises(Gone):
            open_arena(wrong, writable=False)
        assert open_store(wrong) is None


def test_an_arena_whose_number_is_a_sockets_now_is_gone(pair: Pair) -> None:
    """Or any other's that cannot be opened by its name: numbers of descriptors are used again."""
    with socket.socket(socket.AF_UNIX) as sock, select.epoll() as events:
        for fd in (sock.fileno(), events.fileno()):
            with pytest.raises(Gone):
                open_arena(Place(pair.place.arena, pair.place.pid, fd, pair.place.size), writable=False)


def test_a_reference_past_the_end_is_refused_by_the_reader_too(pair: Pair) -> None:
    with pytest.raises(ProtocolError):
        pair.views.open([Ref(pair.place.arena, SIZE - UNIT, UNIT + 1)], [pair.place])
    with pytest.raises(ProtocolError):
        pair.views.open([(b"head", Ref(1, UNIT, 1))], [])


def test_no_memory_means_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Arenas(0).create() is None
    assert open_store(None) is None
    assert SharedMemory().put(BIG) is None

    def refuse(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert Arenas(SIZE).create() is None


def test_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = Pair()
    made.pass_on(np.ones(1 << 20))
    made.settle()
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before

"""What `forward` receives is its own: writable and private at every size, however it came, as long as it is kept."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from engine import memory
from engine.broker.arenas import Arenas
from engine.core import wire
from engine.core.messages import Results
from engine.core.wire import Payload, refs_of
from engine.memory import KEPT, PASSED_OVER, Store, Views
from stages import ipc
from stages.base import Worker
from stages.compute import Codec, run_batch
from stages.context import ItemIn
from stages.mixin import NumBinIPCMixin
from stages.shm import COPY_MAX, FOREIGN, Lease

SIZES = [100, 60_000, 65_536, COPY_MAX + 4, 2_000_004]  # bytes
SIZE = 64 << 20


class Way:
    """From one process to another: what is packed, as it is there, and its memory."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.arenas = Arenas(SIZE)
        place = self.arenas.create()
        assert place is not None
        self.place = place
        self.store = Store(place)
        self.views = Views()

    def carry(self, payload: Payload) -> tuple[Payload, Lease]:
        """Through the broker, if it is one that shares memory, or as frames of a socket, or within the process."""
        if self.kind == "local":
            return payload, FOREIGN
        self.arenas.arrive([payload])
        lease = Lease(self.views.open([payload], self.arenas.places(refs_of(payload))), self.views.blocks)
        if self.kind == "shared":
            return payload, lease
        results = Results(stage=0, worker=0, batch=0, uids=[0], statuses=[200], trails=[b""], mime="", headers={})
        frames = [memoryview(bytearray(frame)) for frame in wire.encode(results, [payload])]  # as a socket gives them
        (came,) = wire.decode([bytes(frames[0]), *frames[1:]])[1]
        return came, lease

    def send(self, value: Any) -> tuple[Payload, Lease]:
        return self.carry(ipc.pack(value, self.store.put if self.kind == "shared" else None))

    def pass_on(self, value: Any) -> Any:
        payload, lease = self.send(value)
        return ipc.unpack(payload, lease, last=True)

    def settle(self, payload: Payload) -> None:
        self.arenas.release(refs_of(payload))

    def close(self) -> None:
        self.store.close()
        self.views.close()
        self.arenas.close()


@pytest.fixture(params=["local", "socket", "shared"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    made = Way(request.param)
    yield made
    made.close()


@pytest.fixture
def shared() -> Iterator[Way]:
    made = Way("shared")
    yield made
    made.close()


def frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array


def tensor(size: int) -> Any:
    import torch

    return torch.full((size // 4,), 255.0)


# What is sent, by its size, and what a stage does to it in place; the result must be 1 everywhere.
def _divide(value: Any) -> Any:
    value /= 255
    return value


def _through_torch(value: Any) -> Any:
    import torch

    torch.from_numpy(value).div_(255)
    return value


def _bytes_of(value: Any) -> Any:
    array = np.frombuffer(value, np.uint8)
    assert array.flags.writeable
    array //= 255
    return value


def _item_by_item(value: Any) -> Any:
    for index in range(len(value)):
        value[index] = 1
    return value


KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {
    "array": (lambda size: np.full(size // 4, 255, np.float32), _divide),
    "array through torch": (lambda size: np.full(size // 4, 255, np.float32), _through_torch),
    "array that was read-only": (lambda size: frozen(np.full(size // 4, 255, np.float32)), _through_torch),
    "array of bytes": (lambda size: np.frombuffer(b"\xff" * size, np.uint8), _bytes_of),
    "array in columns": (lambda size: np.full((size // 8, 2), 255, np.float32, order="F"), _divide),
    "array with steps": (lambda size: np.full((size // 4, 2), 255, np.float32)[:, 0], _divide),
    "read-only, in columns": (lambda size: frozen(np.full((2, size // 8), 255, np.float32).T), _divide),
    "tensor": (tensor, lambda value: value.div_(255)),
    "bytearray": (lambda size: bytearray(b"\xff" * size), _bytes_of),
    "memoryview": (lambda size: memoryview(bytearray(b"\xff" * size)), _bytes_of),
    "memoryview of bytes": (lambda size: memoryview(b"\xff" * size), _bytes_of),
    "list": (lambda size: [255.0] * (size // 16), _item_by_item),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_changed_in_place_and_nobody_else_sees_it(way: Way, kind: str) -> None:
    for size in SIZES:
        changed_in_place(way, *KINDS[kind], size)


def changed_in_place(way: Way, make: Callable[[int], Any], change: Callable[[Any], Any], size: int) -> None:
    sent = make(size)
    payload, lease = way.send({"x": [sent]})
    for last in (False, False, True):
        got = ipc.unpack(payload, lease, last=last)["x"][0]
        assert type(got) is type(sent)
        assert len(got) == len(sent)
        assert (np.asarray(got) == 255).all()
        changed = change(got)
        assert (np.asarray(changed) == 1).all()
        assert (np.asarray(sent) == 255).all()
    # The block serves for the next one, which sees nothing of it.
    del got, changed
    lease.end()
    way.settle(payload)
    payload, lease = way.send(sent)
    assert (np.asarray(ipc.unpack(payload, lease, last=True)) == 255).all()
    lease.end()
    way.settle(payload)


def test_bytes_stay_bytes_and_what_c_code_does_to_them_stays_there(way: Way) -> None:
    for size in SIZES:
        sent = os.urandom(size)
        before = bytes(bytearray(sent))
        payload, lease = way.send([sent])
        for last in (False, True):
            (got,) = ipc.unpack(payload, lease, last=last)
            assert type(got) is bytes
            assert got == before
            _scribble(got)
        assert sent == before


def _scribble(data: bytes) -> None:
    """What torch.frombuffer makes possible."""
    import ctypes

    address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
    assert address is not None
    ctypes.memset(address, 0, len(data))


ODD = {
    "nothing": lambda: np.zeros((0, 3)),
    "a single number": lambda: np.array(7.0),
    "a single byte that Python keeps for all": lambda: np.frombuffer(b"\x07", np.uint8),
    "fields": lambda: np.zeros(50_000, [("a", "i1"), ("b", "f8")]),
    "fields, read-only": lambda: frozen(np.ones(50_000, [("a", "i1"), ("b", "f8")])),
    "dates": lambda: frozen(np.arange(100_000).astype("M8[s]")),
    "text": lambda: frozen(np.array(["text"] * 50_000)),
    "objects": lambda: frozen(np.array([{"a": 1}, None], object)),
    "complex, big-endian": lambda: frozen(np.ones(50_000, ">c16")),
    "truth": lambda: np.ones(100_000, bool),
    "axes turned": lambda: frozen(np.arange(120_000.0).reshape(30, 40, 100).transpose(1, 0, 2)),
    "one number seen many times": lambda: np.broadcast_to(np.float64(3), (400, 300)),
    "backwards": lambda: frozen(np.arange(100_000.0))[::-1],
}


@pytest.mark.parametrize("name", ODD)
def test_arrays_of_every_kind_arrive_equal_and_writable(way: Way, name: str) -> None:
    sent = ODD[name]()
    got = way.pass_on([sent, {"again": sent}])
    assert got[0] is got[1]["again"]
    assert (got[0].dtype, got[0].shape, got[0].tobytes() == sent.tobytes()) == (sent.dtype, sent.shape, True) or (
        got[0].tolist() == sent.tolist()
    )
    assert got[0].flags.writeable
    assert got[0].flags.f_contiguous == sent.flags.f_contiguous or not sent.flags.f_contiguous
    assert got[0].flags.aligned


def test_a_single_byte_that_is_written_to_does_not_change_python(way: Way) -> None:
    import torch

    got = way.pass_on(np.frombuffer(b"\x07", np.uint8))
    torch.from_numpy(got).fill_(99)
    assert got[0] == 99
    assert bytes([7]) == pickle.loads(pickle.dumps(b"\x07")) == bytes(bytearray([7]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "bool", "int8", "int64", "complex128"])
@pytest.mark.parametrize("count", [10, 100_000])
def test_tensors_of_every_kind_can_be_changed_in_place(way: Way, dtype: str, count: int) -> None:
    import torch

    sent = torch.ones((2, count), dtype=getattr(torch, dtype)).t()
    payload, lease = way.send(sent)
    for last in (False, True):
        got = ipc.unpack(payload, lease, last=last)
        assert (got.dtype, got.shape, torch.equal(got, sent)) == (sent.dtype, sent.shape, True)
        got.zero_()
        assert not got.any()
    assert sent.all()


# --- kept ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "tensor", "memoryview"])
@pytest.mark.parametrize("size", [100, 80_000, 1_000_000])
def test_what_is_kept_after_the_batch_stays_what_it_was(way: Way, kind: str, size: int) -> None:
    """The memory is given out again as soon as the results are sent."""
    make = KINDS[kind][0]
    payload, lease = way.send(make(size))
    kept = np.asarray(ipc.unpack(payload, lease, last=True))[: size // 8]  # a part of it
    kept[3] = 7
    lease.end()
    way.settle(payload)
    for number in range(3):
        payload, lease = way.send(np.full(size, number, np.uint8))
        ipc.unpack(payload, lease, last=True)
        lease.end()
        way.settle(payload)
    assert kept[3] == 7
    assert (np.delete(kept, 3) == 255).all()


def test_thousands_may_be_kept_and_take_no_descriptors(shared: Way) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for number in range(600):
        shared.views.blocks._copies = 0  # else it would be copied from the second one on
        payload, lease = shared.send(np.full(COPY_MAX + 4096, number % 256, np.uint8))
        kept.append(ipc.unpack(payload, lease, last=True))
        lease.end()
        shared.settle(payload)
    assert all((array == number % 256).all() for number, array in enumerate(kept))
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # of the arena, and to see what was written
    assert len(shared.views.blocks) == 0


def test_what_is_kept_in_a_cycle_is_let_go_with_it(shared: Way) -> None:
    payload, lease = shared.send(np.ones(1 << 20))
    loop: list[Any] = [ipc.unpack(payload, lease, last=True)]
    loop.append(loop)
    del loop
    mapped = _private_mappings()
    lease.end()
    assert _private_mappings() == mapped
    gc.collect()
    assert _private_mappings() == mapped - 1


def _private_mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:stageline" in line and line.split()[1] == "rw-p" for line in maps)


# --- blocks ----------------------------------------------------------------------------------------------------------


def sent_and_read(way: Way, value: Any, use: Callable[[Any], object] = lambda _: None) -> bool:
    """Whether it was lent, and not copied."""
    payload, lease = way.send(value)
    got = ipc.unpack(payload, lease, last=True)
    assert np.array_equal(got, value)
    use(got)
    lent = bool(lease._loans)
    del got
    lease.end()
    way.settle(payload)
    return lent


def _private_bytes() -> int:
    """Of mappings of arenas: pages that were copied because they were written to."""
    taken, ours = 0, False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            name = line.split()
            if "-" in name[0] and len(name) >= 5:
                ours = "memfd:stageline" in line
            elif ours and name[0] == "Anonymous:":
                taken += int(name[1]) * 1024
    return taken


def test_reading_takes_no_memory_and_one_mapping(shared: Way) -> None:
    for number in range(20):
        assert sent_and_read(shared, np.full(1 << 20, number, np.uint8), lambda got: got.sum())
    assert _private_bytes() == 0
    assert _private_mappings() == 1
    assert len(shared.views.blocks) == 1


def test_what_was_written_is_given_back_and_nobody_sees_it(shared: Way) -> None:
    taken = []

    def write(got: Any) -> None:
        got[5000] = 77
        taken.append(_private_bytes())

    for number in range(3):
        assert sent_and_read(shared, np.full(1 << 20, number, np.uint8), write)
    assert taken == [mmap.PAGESIZE] * 3
    assert _private_bytes() == 0


def test_who_writes_everywhere_is_given_copies_and_asked_again_later(shared: Way) -> None:
    def write(got: Any) -> None:
        got += 1

    lent = [sent_and_read(shared, np.full(1 << 20, 3, np.uint8), write) for _ in range(PASSED_OVER + 3)]
    assert [place for place, one in enumerate(lent) if one] == [0, PASSED_OVER + 1]


def test_larger_and_smaller_ones_at_the_same_place_see_their_own_bytes(shared: Way) -> None:
    for number, size in enumerate((1 << 20, 200_000, 3 << 20, 250_000, 1 << 21, 3 << 20)):
        sent_and_read(shared, np.full(size, number, np.uint8), lambda got: got.__setitem__(-1, 9))
    assert len(shared.views.blocks) == 1


def test_a_block_may_be_lent_twice_at_once(shared: Way) -> None:
    """An item that was given back and is given to the same worker again while the first one is computed."""
    payload, lease = shared.send(np.zeros(1 << 20, np.uint8))
    other = Lease(lease._arenas, shared.views.blocks)
    first, second = (ipc.unpack(payload, one, last=True) for one in (lease, other))
    first[:] = 1
    assert not second.any()
    second[0] = 2
    assert first[0] == 1
    del first, second
    lease.end()
    other.end()
    assert len(shared.views.blocks) == 1
    assert not ipc.unpack(payload, lease, last=True).any()


def test_idle_blocks_are_bounded_and_end_with_their_arena(shared: Way) -> None:
    sent = [shared.send(np.full(COPY_MAX + 1, number % 256, np.uint8)) for number in range(KEPT + 20)]
    for payload, lease in sent:
        ipc.unpack(payload, lease, last=True)
        lease.end()
    assert len(shared.views.blocks) == KEPT
    for payload, _ in sent:
        shared.settle(payload)
    shared.store.close()
    shared.arenas.retire(shared.place)
    place = shared.arenas.create()
    assert place is not None
    shared.place, shared.store = place, Store(place)
    payload, lease = shared.send(np.ones(1 << 20))
    assert len(shared.views.blocks) == 0


def test_where_blocks_cannot_be_had_copies_are_made(shared: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = np.arange(1 << 20, dtype=np.uint8)

    def refuse(*_: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(memory.Block, "of", refuse)
        assert not sent_and_read(shared, sent, lambda got: got.fill(0))
    shared.views.close()
    monkeypatch.setattr(memory, "_open_pagemap", lambda: -1)  # a system that does not show it
    assert not sent_and_read(shared, sent, lambda got: got.fill(0))
    assert len(shared.views.blocks) == 0


def test_an_older_kernel_keeps_pages_one_by_one(shared: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_POPULATE_WRITE", 9999)
    payload, lease = shared.send(np.arange(1 << 20, dtype=np.uint8))
    kept = ipc.unpack(payload, lease, last=True)
    lease.end()
    (ref,) = refs_of(payload)
    shared.store._bytes[ref.offset : ref.offset + ref.length] = bytes(ref.length)
    assert np.array_equal(kept, np.arange(1 << 20, dtype=np.uint8))


def test_two_threads_may_borrow_at_once(shared: Way) -> None:
    """One decodes ahead while the other ends a batch."""
    payloads = [shared.send(np.full(1 << 19, number, np.uint8))[0] for number in range(8)]
    arenas = shared.views.open(payloads, [shared.place])
    failures: list[Any] = []

    def borrow(offset: int) -> None:
        for turn in range(200):
            number = (turn * 3 + offset) % 8
            lease = Lease(arenas, shared.views.blocks)
            got = ipc.unpack(payloads[number], lease, last=True)
            if not (got[::4096] == number).all():
                failures.append((offset, turn))
            got[turn] = 255
            del got
            lease.end()

    threads = [threading.Thread(target=borrow, args=(offset,)) for offset in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- a second look ---------------------------------------------------------------------------------------------------


class _Builtin(Worker):
    """Changes its values in place, and fails when one of them is bad."""

    def forward(self, data: Any) -> Any:
        results = []
        for value in data:
            x = value["x"]
            x = np.frombuffer(x, np.float32) if isinstance(x, memoryview | bytearray) else x
            bad = x[0] != 255
            x /= 255
            results.append((float(x.min()), float(x.max()), bad))
        if any(bad for *_, bad in results):
            raise ValueError("one of them is bad")
        return [low if low == high else -1 for low, high, _ in results]


class _Own(_Builtin):
    """With bytes of its own, which it looks at without a copy and writes into."""

    def deserialize_ipc(self, data: bytes) -> Any:
        import warnings

        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about bytes, which are not to be written to
            return {"x": torch.frombuffer(data, dtype=torch.float32).numpy()}

    deserialize = deserialize_ipc


@pytest.mark.parametrize("kind", ["array", "array that was read-only", "tensor", "bytearray", "memoryview"])
@pytest.mark.parametrize("size", [400, 80_000, 1_000_000])
def test_who_is_computed_again_is_computed_from_what_was_sent(way: Way, kind: str, size: int) -> None:
    def made(number: int) -> Any:
        value = np.full(size // 4, 255.0, np.float32)
        if number == 2:
            value[0] = 254
        if kind == "tensor":
            import torch

            return torch.from_numpy(value)
        wrap: Any = {"bytearray": bytearray, "memoryview": memoryview, "array that was read-only": frozen}
        return wrap.get(kind, lambda one: one)(value)

    items, arenas = [], {}
    for number in range(5):
        payload, lease = way.send({"x": made(number)})
        arenas.update(lease._arenas)
        items.append(ItemIn(number, payload, first=False))
    shared = way.kind != "local"
    lease = Lease(arenas, way.views.blocks) if shared else FOREIGN
    worker = _Builtin()
    statuses = computed(worker, items, lease)
    assert statuses == [(200, b"1.0")] * 2 + [(500, b"inference internal error")] + [(200, b"1.0")] * 2


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("size", [400, 80_000, 1_000_000])
def test_bytes_that_user_code_writes_into_are_those_that_were_sent_when_it_looks_again(
    way: Way, first: bool, size: int
) -> None:
    items, arenas = [], {}
    for number in range(5):
        body = np.full(size // 4, 255.0 if number != 2 else 3.0, np.float32).tobytes()
        payload, lease = way.carry((way.store.put(body) if way.kind == "shared" else None) or body)
        arenas.update(lease._arenas)
        items.append(ItemIn(number, payload, first=first))
    lease = Lease(arenas, way.views.blocks) if way.kind != "local" else FOREIGN
    assert computed(_Own(), items, lease) == [
        (200, b"1.0") if number != 2 else (500, b"inference internal error") for number in range(5)
    ]


def computed(worker: Worker, items: list[ItemIn], lease: Lease) -> list[tuple[int, bytes]]:
    found = run_batch(worker, items, max_batch_size=8, lease=lease).outcomes
    return [(one.status, bytes(one.payload)) for one in found]  # type: ignore[arg-type]


def test_a_batch_of_one_is_not_copied_out_of_its_frame(way: Way) -> None:
    """Nobody will decode it again."""
    if way.kind != "socket":
        return
    payload, lease = way.send(np.ones(100_000))
    assert isinstance(payload, tuple)
    got = ipc.unpack(payload, lease, last=True)
    got[0] = 5
    assert np.frombuffer(payload[1], np.float64)[0] == 5  # type: ignore[arg-type]


# --- other transports ------------------------------------------------------------------------------------------------


class Binary(NumBinIPCMixin, Worker):
    pass


@pytest.mark.parametrize("cls", [Worker, Binary])
@pytest.mark.parametrize("size", [400, 2_000_000])
def test_by_bytes_of_a_class_of_its_own_it_is_the_same(cls: type[Worker], size: int) -> None:
    for sent in (
        np.full((100, size // 400), 255, np.float32),
        np.frombuffer(b"\xff" * size, np.uint8).reshape(100, -1),
    ):
        data = cls().serialize_ipc(sent)
        before = bytes(bytearray(data))
        got = cls().deserialize_ipc(data)
        assert got.flags.writeable
        got[:] = 1
        assert data == before


def test_a_memoryview_goes_by_one_pickle_too() -> None:
    worker = Worker()
    got = worker.deserialize_ipc(worker.serialize_ipc([memoryview(b"abc"), b"x" * 100_000, bytearray(100_000)]))
    got[0][0] = 0
    assert (bytes(got[0]), type(got[1]), type(got[2])) == (b"\0bc", bytes, bytearray)


# --- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way_there", ["no room", "no shared memory"])
def test_a_result_that_looks_at_what_came_in_is_sent_as_it_was(shared: Way, way_there: str) -> None:
    payload, lease = shared.send(np.full(1 << 20, 5, np.uint8))
    got = ipc.unpack(payload, lease, last=True)
    results = [got[10:], frozen(got[20:]), memoryview(got).toreadonly(), frozen(got.view(np.float32))]
    packed = [ipc.pack(one, (lambda _: None) if way_there == "no room" else None) for one in results]
    got[:] = 9
    del got, results
    lease.end()
    shared.settle(payload)
    assert {int(value) for one in packed for value in np.unique(np.asarray(ipc.unpack(one)).view(np.uint8))} == {5}


def test_a_read_only_view_of_a_buffer_that_is_filled_anew_is_copied() -> None:
    buffer = np.zeros(100_000)
    view = buffer.view()
    payload = ipc.pack(frozen(view))
    buffer[:] = 7
    assert not ipc.unpack(payload).any()


def test_bytes_are_not_copied_to_be_sent() -> None:
    data = bytes(100_000)
    (_, part) = ipc.pack([data])  # type: ignore[misc]
    assert isinstance(part, memoryview)
    assert part.obj is data


def test_the_answer_of_a_class_of_its_own_is_its_bytes_whatever_they_say() -> None:
    class Odd(bytes):
        def __bytes__(self) -> bytes:
            return b"wrong"

    class Raw(Worker):
        def serialize(self, data: Any) -> bytes:
            return Odd(data)

        serialize_ipc = serialize

    for last in (True, False):
        assert Codec(Raw()).encode(ItemIn(1, b"", last=last), b"right") == b"right"

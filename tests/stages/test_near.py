"""Tensors on a GPU that stay there on their way to the next stage. No GPU is needed: memory of a file is taken for its
memory (tests/e2e/services/far.py); tests/stages/test_cuda.py has the real one's."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from engine import handles
from engine.broker.arenas import Arenas
from engine.broker.handles import Handles
from engine.core.arena import SHARED_MIN, Ref
from engine.core.wire import Payload, refs_of
from engine.errors import ProtocolError, WorkerBroken
from engine.memory import Gone, Store, Views
from stages import buffers, ipc, near
from stages.cuda import Unable
from stages.near import Lender, Reader, StandIn
from stages.shm import Lease, SharedMemory

FAR = Path(__file__).parents[1] / "e2e" / "services" / "far.py"
SIZE = 4 << 20
MB = torch.arange(1 << 18, dtype=torch.float32)


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("far", FAR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for changed, name, value in module.CHANGES:
        monkeypatch.setattr(changed, name, value)
    return module


class Hosts:
    """Two workers and the broker between them, in one process."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "handles")
        self.arenas = Arenas(SIZE)
        self.server = Handles(self.path, self.arenas)
        self.server.start()
        self.reader = Reader(self.path, "cuda:0")
        buffers.read_by(self.reader)
        self.lender = Lender(self.path, "cuda:0", ["cuda:0"])
        self.shared = SharedMemory(self.lender)
        self.views = Views()
        self.join()

    def join(self) -> None:
        """A worker that starts is given an arena."""
        place = self.arenas.create()
        assert place is not None
        self.place = place
        self.shared.switch(Store(place))

    def send(self, value: Any) -> Payload:
        payload = ipc.pack(value, self.shared.put, self.shared.put_tensor)
        self.shared.keep([payload])
        self.arenas.arrive([payload])
        return payload

    def receive(self, payload: Payload) -> Any:
        places = self.arenas.places(refs_of(payload))
        return ipc.unpack(payload, Lease(self.views.open([payload], places), self.views.blocks))

    def release(self, payload: Payload) -> None:
        self.arenas.release(refs_of(payload))

    def close(self) -> None:
        buffers.read_by(None)
        self.shared.close()
        self.reader.close()
        self.views.close()
        self.server.stop()
        self.arenas.close()


@pytest.fixture
def hosts(tmp_path: Path, far: ModuleType) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()
    assert far.FileRegion.made == 0
    assert not os.path.exists(made.path)


def parts(payload: Payload) -> tuple[Any, ...]:
    assert type(payload) is tuple
    return payload


def test_what_travels_is_a_stand_in(hosts: Hosts) -> None:
    payload = hosts.send({"x": MB, "y": [MB * 2]})
    head, *rest = parts(payload)
    assert len(head) < 500
    assert [type(part) for part in rest] == [Ref, Ref]
    assert {part.length for part in rest} == {near.STAND.size}
    got = hosts.receive(payload)
    assert torch.equal(got["x"], MB)
    assert torch.equal(got["y"][0], MB * 2)


def test_what_arrives_is_its_own(hosts: Hosts) -> None:
    payload = hosts.send(MB)
    first = hosts.receive(payload)
    first += 1
    assert torch.equal(hosts.receive(payload), MB)  # computed again, say
    hosts.release(payload)
    hosts.send(MB * 3)  # in the same place
    assert torch.equal(first, MB + 1)


KINDS = [
    MB.reshape(512, 512).t(),
    MB.to(torch.bfloat16),
    torch.complex(MB, MB).conj(),
    MB.clone().requires_grad_(),
    MB[::2],
]


@pytest.mark.parametrize("tensor", KINDS, ids=["transposed", "bfloat16", "conjugated", "gradient", "strided"])
def test_every_kind_arrives_as_it_was(hosts: Hosts, tensor: torch.Tensor) -> None:
    got = hosts.receive(hosts.send([tensor]))[0]
    assert (got.dtype, got.shape, got.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
    assert torch.equal(got, tensor)


def test_small_ones_and_what_finds_no_room_go_by_way_of_the_cpu(hosts: Hosts) -> None:
    small = torch.zeros(SHARED_MIN - 1, dtype=torch.uint8)
    assert hosts.shared.put_tensor(small) is None
    held = []
    while type(stand := hosts.shared.put_tensor(MB)) is StandIn:
        held.append(stand)
    assert 0 < len(held) <= SIZE // MB.nbytes
    hosts.shared.keep([])  # none of them is sent after all
    payload = hosts.send(small)
    assert torch.equal(hosts.receive(payload), small)
    assert type(hosts.shared.put_tensor(MB)) is StandIn


def test_without_room_for_the_stand_in_nothing_is_kept(hosts: Hosts) -> None:
    store = hosts.shared._store
    assert store is not None
    while store.put(b"x", least=1) is not None:
        pass
    before = hosts.lender._allocator.used
    assert hosts.shared.put_tensor(MB) is None
    assert hosts.lender._allocator.used == before


def test_a_place_is_free_again_when_the_broker_releases_it_and_not_before(hosts: Hosts) -> None:
    payloads = []
    while len(refs_of(payload := hosts.send(MB))) and parts(payload)[1].length == near.STAND.size:
        payloads.append(payload)
    hosts.release(payload)
    assert len(payloads) >= 2
    for one in payloads:
        assert torch.equal(hosts.receive(one), MB)
    hosts.release(payloads[0])
    again = hosts.send(MB + 1)
    assert parts(again)[1].length == near.STAND.size
    assert torch.equal(hosts.receive(again), MB + 1)
    assert torch.equal(hosts.receive(payloads[1]), MB)


def test_a_copy_that_fails_keeps_nothing(hosts: Hosts, far: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.release(hosts.send(MB))

    def lost(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(far.FileRegion, "write", lost)
    with pytest.raises(RuntimeError, match="device-side assert"):
        hosts.shared.put_tensor(MB)
    assert hosts.lender._allocator.used == 0


def test_it_outlives_its_maker_and_ends_with_its_arena(hosts: Hosts, far: ModuleType) -> None:
    payload = hosts.send(MB)
    hosts.shared.switch(None)
    hosts.arenas.retire(hosts.place)  # the worker has died
    assert torch.equal(hosts.receive(payload), MB)
    arena = hosts.place.arena
    hosts.release(payload)
    with pytest.raises(Gone):
        handles.ask(hosts.path, arena)
    hosts.join()  # another in its place
    assert torch.equal(hosts.receive(hosts.send(MB * 2)), MB * 2)
    assert list(hosts.reader._regions) == [hosts.place.arena]  # what had ended is mapped no more
    assert far.FileRegion.made == 2


def test_where_it_cannot_be_had_the_cpu_does_it(
    hosts: Hosts, far: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def unable(*_: Any) -> None:
        tries.append(1)
        raise Unable("cuMemCreate: CUDA_ERROR_NOT_SUPPORTED")

    monkeypatch.setattr(far.FileRegion, "create", unable)
    for _ in range(3):
        payload = hosts.send(MB)
        assert parts(payload)[1].length == MB.nbytes
        assert torch.equal(hosts.receive(payload), MB)
    assert len(tries) == 1


def test_a_broker_that_was_not_there_is_asked_again(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    instant = 100.0
    monkeypatch.setattr(near, "now", lambda: instant)
    hosts.server.stop()
    assert parts(hosts.send(MB))[1].length == MB.nbytes
    again = Handles(hosts.path, hosts.arenas)
    again.start()
    try:
        assert parts(hosts.send(MB))[1].length == MB.nbytes
        instant += near.RETRY_S
        assert parts(hosts.send(MB))[1].length == near.STAND.size
    finally:
        again.stop()


def test_what_is_not_answered_is_no_word_of_the_brokers(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors, say: whoever waits for the tensor is served by somebody else."""
    payload = hosts.send(MB)

    def full(_arena: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(hosts.arenas, "kept", full)
    with pytest.raises(WorkerBroken, match="has not answered"):
        hosts.receive(payload)


def test_what_has_ended_is_looked_for_now_and_then(
    hosts: Hosts, far: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    instant = 100.0
    monkeypatch.setattr(near, "now", lambda: instant)
    first = hosts.send(MB)
    hosts.receive(first)
    former = hosts.place
    hosts.join()
    second = hosts.send(MB)
    hosts.receive(second)
    hosts.release(first)
    hosts.arenas.retire(former)
    hosts.receive(second)
    assert len(hosts.reader._regions) == 2
    instant += near.LOOK_S + 1
    hosts.receive(second)
    assert list(hosts.reader._regions) == [hosts.place.arena]


def test_a_gpu_that_cannot_be_reached_is_left_alone(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "reaches", lambda device, other: device == other)
    lender = Lender(hosts.path, "cuda:0", ["cuda:0", "cuda:1"])
    lender.switch(Store(hosts.place))
    assert lender.put(MB) is None
    assert lender._store is not None
    lender._store.close()


def test_without_a_broker_nothing_is_lent(hosts: Hosts) -> None:
    hosts.server.stop()
    payload = hosts.send(MB)
    assert parts(payload)[1].length == MB.nbytes


def test_who_cannot_map_it_says_that_it_is_of_no_use_here(
    hosts: Hosts, far: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = hosts.send(MB)

    def unable(*_: Any) -> None:
        raise Unable("cuMemMap: CUDA_ERROR_INVALID_DEVICE")

    monkeypatch.setattr(far.FileRegion, "open", unable)
    with pytest.raises(WorkerBroken, match="CUDA_ERROR_INVALID_DEVICE"):
        hosts.receive(payload)
    buffers.read_by(None)
    with pytest.raises(WorkerBroken, match="has none"):
        hosts.receive(payload)


@pytest.mark.parametrize("stand", [b"", b"x" * (near.STAND.size + 1), near.STAND.pack(1, SIZE, SIZE)])
def test_what_is_no_stand_in_is_refused(hosts: Hosts, stand: bytes) -> None:
    with pytest.raises(ProtocolError):
        hosts.reader.read(stand, torch.float32, (4,))


# --- the socket ------------------------------------------------------------------------------------------------------


def descriptor() -> int:
    return os.memfd_create("handed-in", os.MFD_CLOEXEC)


def test_one_descriptor_for_an_arena_that_is_there(hosts: Hosts) -> None:
    arena, fd = hosts.place.arena, descriptor()
    try:
        with pytest.raises(Gone):
            handles.hand_in(hosts.path, arena + 1, fd)
        with pytest.raises(Gone):
            handles.ask(hosts.path, arena)
        handles.hand_in(hosts.path, arena, fd)
        with pytest.raises(Gone):  # nobody takes another's place
            handles.hand_in(hosts.path, arena, fd)
        found = handles.ask(hosts.path, arena)
        assert os.path.sameopenfile(found, fd)
        assert not os.get_inheritable(found)
        os.close(found)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "words", [b"", b"x", b"GET / HTTP/1.1\r\n\r\n", handles.WORDS.pack(b"!", 1), handles.WORDS.pack(b"+", 1)]
)
def test_whoever_says_something_else_is_answered_no_and_others_are_served(hosts: Hosts, words: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(hosts.path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.connect(hosts.path)
            fd = descriptor()
            socket.send_fds(peer, [words or b"\0"], [fd])
            os.close(fd)
            assert peer.recv(1) == handles.NO
    assert torch.equal(hosts.receive(hosts.send(MB)), MB)


def test_a_broker_whose_socket_cannot_be_made_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Handles(str(tmp_path / "none" / "handles"), Arenas(SIZE))
    server.start()
    server.stop()
    assert "by way of the CPU" in caplog.text


def test_the_socket_of_a_broker_that_was_killed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "handles").touch()
    server = Handles(str(tmp_path / "handles"), Arenas(SIZE))
    server.start()
    with pytest.raises(Gone):
        handles.ask(str(tmp_path / "handles"), 1)
    assert (tmp_path / "handles").stat().st_mode & 0o777 == 0o600
    server.stop()
    with pytest.raises(Gone):
        handles.ask(str(tmp_path / "handles"), 1)

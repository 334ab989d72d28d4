"""A GPU's memory that several processes map: with a real one, where there is one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.broker.arenas import Arenas
from engine.broker.handles import Handles
from engine.core.wire import refs_of
from engine.memory import Store, Views
from stages import buffers, cuda, ipc, near
from stages.near import Lender, Reader
from stages.shm import Lease, SharedMemory

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
SIZE = 64 << 20
GPU = "cuda:0"
if torch.cuda.is_available():
    torch.zeros(1, device=GPU)  # what CUDA opens for a process stays with it, and is nothing that a test leaves behind


def test_without_a_driver_it_says_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_loaded", None)
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: not found")))
    with pytest.raises(cuda.Unable, match="not found"):
        cuda._call("cuMemRelease", 0)


def free() -> int:
    torch.cuda.synchronize()
    return int(torch.cuda.mem_get_info(0)[0])


MAKER = """
import signal, socket, sys
import torch
from stages import cuda
region = cuda.Region.create(0, int(sys.argv[2]))
region.write(4 << 20, torch.arange(1 << 20, dtype=torch.float32, device="cuda:0"))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [region.fd])
signal.pause()
"""


@needs_gpu
def test_what_one_process_wrote_another_reads_also_after_its_end() -> None:
    own, its = socket.socketpair()
    with own, its:
        maker = subprocess.Popen([sys.executable, "-c", MAKER, str(its.fileno()), str(SIZE)], pass_fds=[its.fileno()])
        try:
            _, (fd,), _, _ = socket.recv_fds(own, 1, 1)
        finally:
            maker.kill()
            maker.wait(30)
    region = cuda.Region.open(0, SIZE, fd)
    os.close(fd)
    found = torch.empty(1 << 20, dtype=torch.float32, device=GPU)
    region.read(4 << 20, found)
    assert torch.equal(found.cpu(), torch.arange(1 << 20, dtype=torch.float32))
    region.close()


@needs_gpu
def test_closing_gives_the_memory_back() -> None:
    torch.zeros(1, device=GPU)
    before = free()
    for _ in range(3):
        region = cuda.Region.create(0, SIZE)
        other = cuda.Region.open(0, region.size, region.fd)
        assert free() <= before - SIZE
        region.close()
        region.close()
        other.close()
    assert free() == before


@needs_gpu
def test_more_than_there_is_cannot_be_had_and_costs_nothing() -> None:
    before = free()
    with pytest.raises(cuda.Unable, match="OUT_OF_MEMORY"):
        cuda.Region.create(0, 4 << 40)
    assert free() == before


@needs_gpu
def test_a_descriptor_of_something_else_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(cuda.Unable):
        cuda.Region.open(0, SIZE, file.fileno())


@pytest.fixture
def carried(tmp_path: Path) -> Iterator[Any]:
    """Packs a value, and gives back what another stage would get, with the parts that travelled."""
    path, arenas, views = str(tmp_path / "handles"), Arenas(SIZE), Views()
    server, reader = Handles(path, arenas), Reader(path, GPU)
    server.start()
    shared = SharedMemory(Lender(path, GPU, [GPU]))
    place = arenas.create()
    assert place is not None
    shared.switch(Store(place))
    buffers.read_by(reader)
    buffers.receive_on(GPU)

    def carry(value: Any) -> Any:
        payload = ipc.pack(value, shared.put, shared.put_tensor)
        shared.keep([payload])
        arenas.arrive([payload])
        refs = list(refs_of(payload))
        got = ipc.unpack(payload, Lease(views.open([payload], arenas.places(refs)), views.blocks))
        arenas.release(refs)
        return got, refs

    yield carry
    buffers.receive_on("cpu")
    buffers.read_by(None)
    shared.close()
    reader.close()
    views.close()
    server.stop()
    arenas.close()


KINDS = [
    torch.arange(1 << 20).reshape(1024, 1024).t(),
    torch.arange(1 << 18, dtype=torch.float32).to(torch.bfloat16),
    torch.complex(torch.ones(1 << 16), torch.ones(1 << 16)).conj(),
    torch.ones(1 << 16, requires_grad=True),
]


@needs_gpu
@pytest.mark.parametrize("tensor", KINDS, ids=["transposed", "bfloat16", "conjugated", "gradient"])
def test_it_never_leaves_the_gpu_and_arrives_as_it_was(carried: Any, tensor: torch.Tensor) -> None:
    sent = tensor.detach().to(GPU).requires_grad_(tensor.requires_grad)
    for _ in range(3):
        got, refs = carried([sent])
        assert [ref.length for ref in refs] == [near.STAND.size]
        assert (got[0].device, got[0].dtype, got[0].shape) == (sent.device, sent.dtype, sent.shape)
        assert got[0].requires_grad == sent.requires_grad
        assert torch.equal(got[0], sent)


@needs_gpu
def test_what_is_still_being_computed_is_waited_for(carried: Any) -> None:
    matrix = torch.randn(4096, 4096, device=GPU)
    product = matrix
    for _ in range(20):
        product = (product @ matrix).clamp(-1, 1)
    got, _ = carried(product)
    assert torch.equal(got, product)

"""Tensors on a device arrive on the receiving stage's own, and go there by way of the CPU.

No GPU is needed: what lies in ordinary memory is taken for a device's, and ``meta`` for the device that receives.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine.core.arena import SHARED_MIN
from engine.worker import Worker
from stages import buffers, ipc
from stages.compute import Codec
from stages.context import ItemIn


@pytest.fixture(autouse=True)
def _far(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(buffers, "_is_plain", lambda tensor: False)
    monkeypatch.setattr(buffers, "_is_elsewhere", buffers._is_dense)
    yield
    buffers.receive_on("cpu")


TENSORS = [
    torch.arange(6).reshape(2, 3),
    torch.tensor(1.5),
    torch.zeros(0, 3),
    torch.ones(3, dtype=torch.bfloat16),
    torch.tensor([1 + 2j]).conj(),
    torch.arange(SHARED_MIN, dtype=torch.uint8),
    torch.ones(2, requires_grad=True),
    torch.arange(12).reshape(3, 4).t(),
]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}")
def test_what_arrives_is_the_same_and_can_be_written_to(tensor: torch.Tensor) -> None:
    (found,) = ipc.unpack(ipc.pack([tensor]))  # in a list: alone and small, one on the CPU goes as its bytes
    assert (found.dtype, found.shape, found.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
    assert torch.equal(found, tensor)
    if not found.requires_grad:
        found += 1


def test_it_arrives_on_the_receivers_own_device() -> None:
    class Receiver(Worker):
        def forward(self, data: Any) -> Any:
            return data

    worker = Receiver()
    worker.device = "meta"
    payload = ipc.pack([torch.ones(2, 3)])
    found = Codec(worker).decode(ItemIn(0, payload, first=False))
    assert found[0].device.type == "meta"
    worker.device = "cpu"
    found = Codec(worker).decode(ItemIn(0, payload, first=False))
    assert found[0].device.type == "cpu"


def test_a_pickle_names_no_device() -> None:
    """Reading one must open no context on a GPU of the sender's."""
    head, _ = buffers.dumps(torch.ones(3), apart_min=SHARED_MIN)
    assert b"cuda" not in head
    assert b"_rebuild_tensor" not in head
    assert torch.equal(pickle.loads(head), torch.ones(3))

"""Stages whose tensors lie on a GPU, as far as Stageline can tell: memory of a file is taken for the GPU's."""

from __future__ import annotations

import mmap
import os
import signal
from typing import Any

import torch

from engine import Worker
from stages import buffers, near


class FileRegion:
    """What :class:`stages.cuda.Region` is, in a file."""

    made = 0  # that are not closed yet

    @staticmethod
    def where(_device: int) -> str:
        return "cpu"

    @classmethod
    def create(cls, _device: int, size: int) -> FileRegion:
        fd = os.memfd_create("region", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        return cls(fd, size, fd)

    @classmethod
    def open(cls, _device: int, size: int, fd: int) -> FileRegion:
        return cls(-1, size, fd)

    def __init__(self, fd: int, size: int, mapped: int) -> None:
        self.fd, self.size = fd, size
        self._map = mmap.mmap(mapped, size)
        FileRegion.made += 1

    def write(self, offset: int, tensor: torch.Tensor) -> None:
        self._map[offset : offset + tensor.nbytes] = tensor.flatten().view(torch.uint8).numpy().tobytes()

    def read(self, offset: int, tensor: torch.Tensor) -> None:
        data = bytearray(self._map[offset : offset + tensor.nbytes])
        tensor.copy_(torch.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape))

    def close(self) -> None:
        self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
        FileRegion.made -= 1


CHANGES = (
    (buffers, "_is_plain", lambda _tensor: False),
    (buffers, "_is_elsewhere", buffers._is_dense),
    (near, "Region", FileRegion),
    (near, "reaches", lambda _device, _other: True),
)


def is_first(path: str | None) -> bool:
    """Whether nobody has made this file yet; it is made."""
    try:
        if path is not None:
            open(path, "x").close()
        return path is not None
    except FileExistsError:
        return False


class Stage(Worker):
    def __init__(self) -> None:
        for module, name, value in CHANGES:
            setattr(module, name, value)
        self.device = "cpu"  # where what arrives is to lie: there is no GPU


class Make(Stage):
    """``{"n": 3, "size": 100000}`` -> a tensor of that many threes."""

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**one, "pid": os.getpid(), "x": torch.full((one["size"],), one["n"], dtype=torch.int32)} for one in data
        ]


class Look(Stage):
    """Whether all of it is what was made, and ends its process once where it is asked to."""

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        tensor = data.pop("x")
        right = bool((tensor == data["n"]).all()) and tensor.numel() == data["size"]
        tensor += 1  # its own
        if is_first(data.get("die")):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_first(data.get("end_the_maker")):
            os.kill(data["pid"], signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return {"n": data["n"], "right": right}

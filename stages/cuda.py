"""A piece of a GPU's memory that several processes can map: CUDA's virtual memory management, by way of the driver.

The memory is made with cuMemCreate and leaves its process as a file descriptor. It lasts as long as anybody has it
mapped or holds the descriptor, also a process that never touches a GPU; so it outlives whoever made it, and ends with
the last of them, whoever is killed in whatever order. (What cudaIpcGetMemHandle names ends with its maker.)
The calls are those of the CUDA driver API, "Virtual Memory Management": https://docs.nvidia.com/cuda/cuda-driver-api

Imported where a tensor on a GPU is handed on or arrives, so torch is there.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

PINNED: Final = 1  # CU_MEM_ALLOCATION_TYPE_PINNED
DESCRIPTOR: Final = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
ON_DEVICE: Final = 1  # CU_MEM_LOCATION_TYPE_DEVICE
READ, READ_WRITE = 1, 3  # CU_MEM_ACCESS_FLAGS_PROT_*


_made = 0


def made_bytes() -> int:
    """Of what this process has made and not closed."""
    return _made


class Unable(Exception):
    """The driver has refused, or is too old; why. Nothing is broken by it."""


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("device", ctypes.c_int))


class _Kind(ctypes.Structure):  # CUmemAllocationProp
    _fields_ = (
        ("type", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("location", _Location),
        ("security", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):  # CUmemAccessDesc
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class Region:
    """One such piece, mapped by this process for ``device`` (its number). Not thread-safe."""

    def __init__(self, device: int, size: int, fd: int, address: int, handle: int) -> None:
        self.size = size
        self.fd = fd  # of who made it, to be handed on; negative where it has been opened
        self._device = device
        self._address = address
        self._handle = handle

    @staticmethod
    def where(device: int) -> str:
        """As torch calls it."""
        return f"cuda:{device}"

    @classmethod
    def create(cls, device: int, size: int) -> Region:
        """Of at least ``size`` bytes, on the device. Raises Unable."""
        with _on(device):
            kind, step = _Kind(PINNED, DESCRIPTOR, _Location(ON_DEVICE, device)), ctypes.c_size_t()
            _call("cuMemGetAllocationGranularity", ctypes.byref(step), ctypes.byref(kind), ctypes.c_int(0))
            size = -(-size // step.value) * step.value
            handle, fd = ctypes.c_uint64(), ctypes.c_int(-1)
            _call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(size), ctypes.byref(kind), ctypes.c_uint64(0))
            try:
                _call("cuMemExportToShareableHandle", ctypes.byref(fd), handle, ctypes.c_int(DESCRIPTOR), _NO_FLAGS)
                address = _map(handle, device, size, READ_WRITE)
            except Unable:
                if fd.value >= 0:
                    os.close(fd.value)
                _call("cuMemRelease", handle)
                raise
        os.set_inheritable(fd.value, False)
        _count(size)
        return cls(device, size, fd.value, address, handle.value)

    @classmethod
    def open(cls, device: int, size: int, fd: int) -> Region:
        """What ``fd`` stands for, to be read by this device: the one that it lies on, or one that reaches that. The
        descriptor stays the caller's. Raises Unable."""
        with _on(device):
            handle = ctypes.c_uint64()
            _call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(fd), ctypes.c_int(DESCRIPTOR))
            try:
                address = _map(handle, device, size, READ)
            except Unable:
                _call("cuMemRelease", handle)
                raise
        return cls(device, size, -1, address, handle.value)

    def write(self, offset: int, tensor: Any) -> None:
        """Copy a dense tensor of this device there. It is there when this returns: who reads it asks no event of ours.
        Raises what torch raises when the device is lost."""
        self._copy(self._address + offset, tensor.data_ptr(), tensor.nbytes)

    def read(self, offset: int, tensor: Any) -> None:
        """Fill a dense tensor of this device with what lies there. Nothing of it is needed when this returns."""
        self._copy(tensor.data_ptr(), self._address + offset, tensor.nbytes)

    def close(self) -> None:
        """Unmap it. The memory is free once nobody else has it either."""
        address, self._address = self._address, 0
        if not address:
            return
        if self.fd >= 0:
            os.close(self.fd)
            _count(-self.size)
        try:
            with _on(self._device):
                _unmap(address, self.size)
                _call("cuMemRelease", ctypes.c_uint64(self._handle))
        except (Unable, RuntimeError):
            pass  # a device that is lost: its memory ends with the process

    def _copy(self, to: int, source: int, nbytes: int) -> None:
        import torch

        with _on(self._device):
            stream = torch.cuda.current_stream()
            code = _driver().cuMemcpyDtoDAsync_v2(
                ctypes.c_uint64(to),
                ctypes.c_uint64(source),
                ctypes.c_size_t(nbytes),
                ctypes.c_void_p(stream.cuda_stream),
            )
            stream.synchronize()  # if a kernel before it has failed it says so in torch's words, which are known
            if code:
                raise RuntimeError(f"CUDA error: {_name(code)} when a tensor was copied")


def _count(nbytes: int) -> None:
    global _made
    _made += nbytes


_NO_FLAGS: Final = ctypes.c_uint64(0)


def reaches(device: int, other: int) -> bool:
    """Whether the device can read the other's memory: is it, or a peer of it."""
    import torch

    return device == other or (
        max(device, other) < torch.cuda.device_count() and bool(torch.cuda.can_device_access_peer(device, other))
    )


def _map(handle: ctypes.c_uint64, device: int, size: int, access: int) -> int:
    """The address, in this process, of memory that the device may use so."""
    address, length = ctypes.c_uint64(), ctypes.c_size_t(size)
    _call("cuMemAddressReserve", ctypes.byref(address), length, ctypes.c_size_t(0), _NO_FLAGS, _NO_FLAGS)
    try:
        _call("cuMemMap", address, length, ctypes.c_size_t(0), handle, _NO_FLAGS)
        told = _Access(_Location(ON_DEVICE, device), access)
        _call("cuMemSetAccess", address, length, ctypes.byref(told), ctypes.c_size_t(1))
    except Unable:
        _unmap(address.value, size)
        raise
    return address.value


def _unmap(address: int, size: int) -> None:
    driver, length = _driver(), ctypes.c_size_t(size)
    driver.cuMemUnmap(ctypes.c_uint64(address), length)  # refused where nothing was mapped
    driver.cuMemAddressFree(ctypes.c_uint64(address), length)


def _on(device: int) -> Any:
    """A context in which that device is this thread's. (torch has made its context, or makes it now.)"""
    import torch

    return torch.cuda.device(device)


def _call(function: str, *arguments: Any) -> None:
    try:
        code = getattr(_driver(), function)(*arguments)
    except AttributeError as error:
        raise Unable(f"the driver has no {function}") from error
    if code:
        raise Unable(f"{function}: {_name(code)}")


def _name(code: int) -> str:
    name = ctypes.c_char_p()
    _driver().cuGetErrorName(ctypes.c_int(code), ctypes.byref(name))
    return (name.value or b"error %d" % code).decode()


_loaded: ctypes.CDLL | None = None


def _driver() -> ctypes.CDLL:
    global _loaded
    if _loaded is None:
        try:
            _loaded = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Unable(str(error)) from error
    return _loaded

"""What an exception out of user code says about the process it came from: nothing, that memory is short, or that the
process is of no more use.

Frameworks are known by the names and words of their errors, so none of them is imported. Words are looked for where a
framework puts them, and not all over a text: a message of the user's may quote what a client has sent. Where torch can
be asked whether its device still answers, that decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

from engine.errors import EngineError, WorkerBroken
from stages.device import answers


class Verdict(Enum):
    ITEM = "item"  # whoever was computed has failed; the process is sound
    MEMORY = "memory"  # of the machine or of a device: less at once may fit
    BROKEN = "broken"  # the device answers every later call of this process with the same error


CHAIN_MAX: Final = 16  # exceptions that are looked at, from the last to those it came from

# What the drivers of CUDA and HIP call the errors that stay for the rest of a process. The numbers and names are those
# of cudaError_t in the CUDA runtime's reference.
_STICKY: Final = (
    r"device-side assert"
    r"|an illegal memory access"
    r"|illegal instruction"
    r"|misaligned address"
    r"|invalid program counter"
    r"|operation not supported on global/shared address space"
    r"|hardware stack error"
    r"|unspecified launch failure"
    r"|the launch timed out"
    r"|uncorrectable (?:ECC|NVLink) error"
    r"|NVLink error"
    r"|context is destroyed"
    r"|cudaError(?:Assert|IllegalAddress|IllegalInstruction|MisalignedAddress|InvalidPc|InvalidAddressSpace"
    r"|HardwareStackError|LaunchFailure|LaunchTimeout|ECCUncorrectable|NvlinkUncorrectable|ContextIsDestroyed)"
    r"|CUDA_ERROR_(?:ASSERT|ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|MISALIGNED_ADDRESS|INVALID_PC|INVALID_ADDRESS_SPACE"
    r"|HARDWARE_STACK_ERROR|LAUNCH_FAILED|LAUNCH_TIMEOUT|ECC_UNCORRECTABLE|NVLINK_UNCORRECTABLE|CONTEXT_IS_DESTROYED)"
    r"|hipError(?:Assert|IllegalAddress|LaunchFailure|LaunchTimeOut|ECCNotCorrectable|ContextIsDestroyed)"
)
_STICKY_CODES: Final = frozenset({214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719})
_sticky = re.compile(_STICKY, re.IGNORECASE)
_device = re.compile(r"cuda|hip(?:Error)?\b|rocm|gpu", re.IGNORECASE)
# A plain RuntimeError, as torch raises it: by how it begins, and nothing of it but its first line.
_sticky_first = re.compile(rf"(?:CUDA|HIP)(?: runtime)? (?:error|failure)[^:]{{0,40}}: (?:{_STICKY})", re.IGNORECASE)

_memory_first = re.compile(
    r"(?:CUDA|HIP|MPS|XPU)(?: backend)? out of memory"
    r"|(?:CUDA|HIP) error: out of memory"
    r"|\[enforce fail at [^\]]{0,200}\] \. DefaultCPUAllocator: "
    r"|DefaultCPUAllocator: "
    r"|(?:cuBLAS|CUDA) error: CUBLAS_STATUS_ALLOC_FAILED"
    r"|RESOURCE_EXHAUSTED: ",
    re.IGNORECASE,
)
_memory = re.compile(r"out of memory|RESOURCE_EXHAUSTED|failed to allocate memory", re.IGNORECASE)


def verdict(error: BaseException, answers: Callable[[], bool | None] = answers) -> Verdict:
    """Look at an exception, and at those it came from. Never raises.

    ``answers`` is asked where words say that the device refuses: True, it does not; None, nobody knows.
    """
    ours = True  # raised as it is, or from what stands behind it on purpose
    for one in _chain(error):
        try:
            found = _of(one)
        except BaseException:  # the user's __str__, or attributes that are none
            found = Verdict.ITEM
        if found is Verdict.BROKEN and (isinstance(one, WorkerBroken) or answers() is not True):
            return found
        ours = ours and not isinstance(one, EngineError)  # a class that answers in words of its own has dealt with it
        if found is Verdict.MEMORY and ours:
            return found
        ours = ours and one.__cause__ is not None
    return Verdict.ITEM


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, then what it was raised from or beside."""
    one: BaseException | None = error
    for _ in range(CHAIN_MAX):
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__


def _of(error: BaseException) -> Verdict:
    kind = type(error)
    if isinstance(error, WorkerBroken):
        return Verdict.BROKEN
    if isinstance(error, MemoryError) or kind.__name__ in ("OutOfMemoryError", "CUDAOutOfMemoryError"):
        return Verdict.MEMORY
    if not isinstance(error, RuntimeError) and not _is_foreign(kind):
        return Verdict.ITEM
    text = str(error)[:4096]
    if kind is RuntimeError:
        if _memory_first.match(text):
            return Verdict.MEMORY
        return Verdict.BROKEN if _sticky_first.match(text) else Verdict.ITEM
    if not _is_foreign(kind):
        return Verdict.ITEM
    if _memory.search(text):
        return Verdict.MEMORY
    code = getattr(error, "error_code", None)  # torch.AcceleratorError
    if kind.__name__ == "AcceleratorError" and type(code) is int and code in _STICKY_CODES:
        return Verdict.BROKEN
    named = _device.search(text) or kind.__name__ in ("AcceleratorError", "CUDARuntimeError", "CUDADriverError")
    return Verdict.BROKEN if named and _sticky.search(text) else Verdict.ITEM


_FRAMEWORKS: Final = frozenset(
    {"torch", "cupy", "cupy_backends", "jax", "jaxlib", "onnxruntime", "tensorflow", "numba", "pycuda", "triton"}
)


def _is_foreign(kind: type) -> bool:
    """Whether an error's class is that of a framework which computes on devices."""
    return any(str(one.__module__).partition(".")[0] in _FRAMEWORKS for one in kind.__mro__[:-1])

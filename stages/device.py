"""How much memory is in use, of the machine and of its GPUs, and whether these still answer.

Never imports torch: it asks it if user code has.
"""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path
from typing import Any

from stages.cuda import made_bytes

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def _cuda() -> Any:
    """torch.cuda if it is in use in this process, else None."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def gpu_bytes() -> int | None:
    """Bytes of GPU memory that torch's tensors hold now, over all devices, and what is kept for those on their way
    to the next stage; None when torch has not used one."""
    cuda = _cuda()
    if cuda is None:
        return None
    return sum(int(cuda.memory_allocated(index)) for index in range(cuda.device_count())) + made_bytes()


def gpu_peak_bytes() -> int | None:
    """The most of it since the process began, or since :func:`reset_peak`. What was allocated, and not what torch keeps
    in its cache: that depends on the stages measured before."""
    cuda = _cuda()
    if cuda is None:
        return None
    return sum(int(cuda.max_memory_allocated(index)) for index in range(cuda.device_count()))


def resident_bytes() -> int:
    """Memory of this process now."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The most memory this process has held since it began, or since :func:`reset_peak`."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    scale = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reset_peak() -> None:
    """Begin a new peak (proc(5), clear_refs). Where the system does not allow it, peaks are of the whole life."""
    if (cuda := _cuda()) is not None:
        for index in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(index)
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return


def answers() -> bool | None:
    """Whether torch's device still takes calls: after some errors it refuses all of a process's. None: unknown."""
    try:
        cuda = _cuda()
        if cuda is None:
            return None
        cuda.synchronize()
    except BaseException:  # whatever a broken device makes of it
        return False
    return True


def empty_caches() -> None:
    """Give back memory that nobody uses and a framework keeps for later, as far as that can be had. Never raises."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    try:
        gc.collect()
        if (cuda := _cuda()) is not None:
            cuda.empty_cache()
        if (xpu := getattr(torch, "xpu", None)) is not None and xpu.is_initialized():
            xpu.empty_cache()
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()
    except BaseException:  # a device that is lost as well: the next call of forward will say so
        return


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is none."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return 0

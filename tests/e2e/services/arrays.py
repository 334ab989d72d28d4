"""Arrays from stage to stage: each made from a request's number, checked element by element where it arrives.

What a request asks for: `{"n": ..., "kib": ..., "kind": "array" | "tensor" | "bytes", "slow": seconds, "die": stage}`.
A stage that is told to die does so once for each `n`, leaving a file in the folder ARRAYS_DIED.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine import Worker


def arenas() -> list[str]:
    """What this process has mapped, as `access name`."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:stageline" in line]
    return sorted(f"{line[1]} {line[5]}" for line in lines)


def may_die(data: dict[str, Any], stage: str) -> None:
    if data.get("die") == stage:
        try:
            Path(os.environ["ARRAYS_DIED"], f"{stage}-{data['n']}").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class Make(Worker):
    def forward(self, data: Any) -> Any:
        may_die(data, "make")
        numbers = np.arange(data["kib"] * 256, dtype=np.float32) + data["n"] % 1000
        value: Any = numbers
        if data.get("kind") == "tensor":
            import torch

            value = torch.from_numpy(numbers)
        elif data.get("kind") == "bytes":
            value = numbers.tobytes()
        return {"request": {**data, "pad": len(data.get("pad", ""))}, "value": value}


class Check(Worker):
    """In batches, so that views of several blocks are open at once. Keeps one in ten: it stays what it is."""

    def __init__(self) -> None:
        self.kept: tuple[Any, Any] | None = None

    def forward(self, data: Any) -> Any:
        return [self._check(one) for one in data]

    def _check(self, data: dict[str, Any]) -> dict[str, Any]:
        request, value = data["request"], data["value"]
        may_die(request, "check")
        expected = np.arange(request["kib"] * 256, dtype=np.float32) + request["n"] % 1000
        right = self._is(value, expected)
        time.sleep(request.get("slow", 0.0))
        if self.kept is not None:
            right = right and self._is(*self.kept)
        about: dict[str, Any] = {"type": type(value).__name__}
        if isinstance(value, np.ndarray):
            about = {**about, "writable": value.flags.writeable, "owns": value.flags.owndata}
        right = right and self._is(value, expected)  # nobody has written there meanwhile
        if not isinstance(value, bytes):  # it is ours
            value[:1] += 1
            expected[:1] += 1
            right = right and self._is(value, expected)
        if request["n"] % 10 == 5:
            self.kept = value, expected
        return {"n": request["n"], "pad": request["pad"], "right": right, "arenas": arenas(), **about}

    @staticmethod
    def _is(value: Any, expected: Any) -> bool:
        found = np.frombuffer(value, np.float32) if isinstance(value, bytes) else np.asarray(value)
        return bool(np.array_equal(found, expected))

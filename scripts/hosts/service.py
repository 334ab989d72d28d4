"""What is served over several hosts: each stage takes its time for a batch, and says that it was there."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

from engine import Worker


class Step(Worker):
    """Takes ``ms`` for a batch, whatever is in it. Each item that it begins is a line of STAGELINE_JOURNAL, if set."""

    def __init__(self, name: str, ms: float) -> None:
        self.name = name
        self.s = ms / 1000

    def forward(self, data: Any) -> Any:
        items = data if isinstance(data, list) else [data]
        journal = os.environ.get("STAGELINE_JOURNAL")
        if journal:
            with open(journal, "a") as file:
                file.write("".join(f"{self.name} {item['id']}\n" for item in items))
        if any(item.get("hold_s") for item in items) and self.name == "encode":
            hold(max(item.get("hold_s", 0.0) for item in items))
        time.sleep(self.s)
        done = [{**item, "trace": [*item.get("trace", ()), self.name]} for item in items]
        return done if isinstance(data, list) else done[0]


def hold(seconds: float) -> None:
    """Keep the interpreter, as native code may that does not give it up: no other thread of this process runs."""
    ctypes.PyDLL(None).poll(None, 0, int(seconds * 1000))

"""Stages that stream, told by each request what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import SSEWorker, StreamWorker, ValidationError


def wait_for_file(path: str, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.01)


class Tell(SSEWorker):
    """One request at a time: ``events`` to send, and what to ``do`` then."""

    example = {"events": ["warm"]}

    def forward(self, data: dict[str, Any]) -> Any:
        if "log" in data:
            with open(data["log"], "a") as file:
                file.write(f"{self.context().attempt}\n")
        if data.get("do") == "fail early":
            raise ValidationError("no such\nthing")
        for text in data["events"]:
            self.send_stream_event(text)
        match data.get("do"):
            case "wait":
                wait_for_file(data["gate"])
            case "fail":
                raise ValidationError("not that")
            case "break":
                raise RuntimeError("a detail that no client may see")
            case "sleep":
                time.sleep(60)
            case "die":
                wait_for_file(data["gate"])
                os._exit(9)
            case "until left":
                end = time.monotonic() + 20
                while not self.context().cancelled and time.monotonic() < end:
                    time.sleep(0.01)
                Path(data["gate"]).write_text("left" if self.context().cancelled else "still there")
        return object()  # nothing that JSON knows: results of streams are dropped


class Either(Tell):
    """As Tell, or its result as a whole answer where there is nothing to send; after ``pause`` seconds."""

    whole_mime_type = "application/json"

    def forward(self, data: dict[str, Any]) -> Any:
        time.sleep(data.get("pause", 0))
        super().forward(data)
        return {"whole": data["events"]}


class Crowd(SSEWorker):
    """A batch: each stream is told its place and the size of the batch, and then sent ``flood`` events of 16 KiB."""

    example = [{}, {}]

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        results: list[Any] = [None] * len(data)
        for index, one in enumerate(data):
            self.send_stream_event(f"{one.get('name')} {len(data)}", index=index)
            if one.get("do") == "fail":
                results[index] = ValidationError(f"not {one.get('name')}")
        if any(one.get("do") == "raise" for one in data):
            raise ValidationError("whose is it")
        for number in range(max(one.get("flood", 0) for one in data)):
            for index, one in enumerate(data):
                if number < one.get("flood", 0):
                    self.send_stream_event(f"{number}".ljust(16 * 1024, "."), index=index)
        return results


class Pieces(StreamWorker):
    """``count`` pieces of ``size`` bytes."""

    resp_mime_type = "text/plain"
    example = {"count": 2}

    def forward(self, data: dict[str, Any]) -> Iterator[bytes]:
        try:
            if data.get("do") == "fail early":
                raise ValidationError("not even begun")
            for number in range(data.get("count", 3)):
                yield f"{number}\n".encode().rjust(data.get("size", 0), b".")
                if number == 0 and "gate" in data:
                    wait_for_file(data["gate"])
            if data.get("do") == "fail":
                raise ValidationError("too late to say")
        finally:
            if "closed" in data:
                Path(data["closed"]).write_text(str(self.context().cancelled))

"""Stages that do what a request tells them: the other half of the end-to-end tests.

A request is `{"id": ..., "acts": {STAGE: {"do": ..., ...}}}`; at each stage the item does its act, or nothing, and is
passed on with the stage's name and pid added to its trace. With STAGELINE_JOURNAL set, every item that a stage begins
is a line of that file, so that a test can tell what was computed and how often.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from engine import ClientError, DecodingError, EncodingError, ServerError, ValidationError, Worker, WorkerBroken

ERRORS = {
    "client_error": ClientError,
    "decoding_error": DecodingError,
    "validation_error": ValidationError,
    "server_error": ServerError,
    "encoding_error": EncodingError,
}

acts_total = Counter("actor_acts", "Items that a stage has begun.", ["stage", "act"])


class Actor(Worker):
    """Does the act meant for the stage `name`, on a single item or on each of a batch."""

    def __init__(self, name: str, load_s: float = 0.0, held_by: str = "") -> None:
        """``held_by``: a file; loading takes as long as it is there."""
        time.sleep(load_s)
        while held_by and Path(held_by).exists():
            time.sleep(0.05)
        self.name = name

    def forward(self, data: Any) -> Any:
        if isinstance(data, list):
            results = [self._act(item) for item in data]
            return results[:-1] if any(item.get("short") for item in data) else results
        return self._act(data)

    def _act(self, item: dict[str, Any]) -> Any:
        act = item.get("acts", {}).get(self.name, {})
        do = act.get("do", "pass")
        acts_total.labels(self.name, do).inc()
        self._journal(item, do)
        if do in ERRORS:
            error = ERRORS[do](act.get("text", ""))
            if act.get("how") == "return":
                return error
            raise error
        if do == "exception":
            raise RuntimeError("a detail that no client may see")
        if do == "sleep":
            time.sleep(act["s"])
        elif do == "wait":
            while not os.path.exists(act["gate"]):
                time.sleep(0.01)
        elif do == "hold_gil":
            sum(range(10**13))  # one C loop that looks at no signal
        elif do == "die":
            os._exit(3)  # as a crash of native code: nobody from outside had a hand in it
        elif do == "quit":
            raise SystemExit(4)
        elif do == "break" and item_is_first(act["once"]):
            raise WorkerBroken("its device is gone")
        elif do == "unserializable":
            return {"result": lambda: None}
        trace = [*item.get("trace", ()), [self.name, os.getpid()]]
        return {**item, "trace": trace}

    def _journal(self, item: dict[str, Any], do: str) -> None:
        path = os.environ.get("STAGELINE_JOURNAL")
        if path:
            with open(path, "a") as file:  # one small append: whole lines, also from several processes
                file.write(f"{self.name} {item.get('id')} {do} {os.getpid()}\n")


def item_is_first(path: str) -> bool:
    """Whether no process has asked for this file before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class BadInit(Worker):
    def __init__(self) -> None:
        raise FileNotFoundError("weights.bin is not there")

    def forward(self, data: Any) -> Any:
        return data


class BadWarmUp(Worker):
    example = {"x": 1}

    def forward(self, data: Any) -> Any:
        raise ZeroDivisionError("the example does not fit")


class Checked(Worker):
    """Has an example, for `engine check`."""

    example = {"id": "example"}

    def forward(self, data: Any) -> Any:
        return data


class Where(Worker):
    """Tells what this process was given: its environment, CPUs, device, slot."""

    def forward(self, data: Any) -> Any:
        return {
            "env": {name: os.environ.get(name) for name in data["names"]},
            "worker_id": self.worker_id,
            "device": self.device,
            "pid": os.getpid(),
            "query": dict(self.context().query),
            "header": self.context().headers.get("x-flavour"),
        }

"""Workers that do what the request asks for, so that a test can make each thing happen."""

from __future__ import annotations

import asyncio
import collections
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

import msgspec

from engine.errors import ValidationError, WorkerBroken
from stages import SSEWorker, Worker


class Obey(Worker):
    """Each value is {"do": ..., ...}."""

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        return [getattr(self, value["do"])(position, value) for position, value in enumerate(data)]

    def echo(self, _position: int, value: dict[str, Any]) -> Any:
        return value.get("x")

    def large(self, _position: int, value: dict[str, Any]) -> Any:
        return "x" * value["size"]

    def refuse(self, _position: int, value: dict[str, Any]) -> Any:
        raise ValidationError(f"no {value['x']}")

    def sleep(self, _position: int, value: dict[str, Any]) -> Any:
        time.sleep(value["s"])
        return "slept"

    def swallow(self, _position: int, value: dict[str, Any]) -> Any:
        try:
            time.sleep(value["s"])
        except BaseException:
            return "swallowed"

    def hold_interpreter(self, _position: int, _value: dict[str, Any]) -> None:
        collections.deque(itertools.repeat(None), maxlen=0)  # C code: never ends, never looks for signals

    def gate(self, _position: int, value: dict[str, Any]) -> Any:
        with open(value["path"]):  # until the test opens it for writing
            return "through"

    def until_cancelled(self, position: int, value: dict[str, Any]) -> Any:
        open(value["path"], "w").close()  # to say that it has begun
        while not self.context(position).cancelled:
            time.sleep(0.002)
        return "cancelled"

    def fork(self, _position: int, value: dict[str, Any]) -> Any:
        """Processes that are ended by a signal, as those of ``multiprocessing.Pool`` are; how they ended."""
        ends = []
        for _ in range(value["n"]):
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            child.start()
            child.terminate()
            child.join()
            ends.append(child.exitcode)
        return ends

    def watch_signals(self, _position: int, _value: dict[str, Any]) -> Any:
        async def watch() -> None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGWINCH, print)
            loop.remove_signal_handler(signal.SIGWINCH)

        asyncio.run(watch())
        return "watched"

    def mischief(self, _position: int, value: dict[str, Any]) -> Any:
        exec(value["code"], {"os": os, "signal": signal, "sys": sys, "threading": threading, "asyncio": asyncio})
        return "managed"

    def about(self, position: int, value: dict[str, Any]) -> Any:
        context = self.context(position)
        return {
            "worker_id": self.worker_id,
            "stage": self.stage,
            "max_batch_size": self.max_batch_size,
            "device": self.device,
            "env": os.environ.get(value.get("env", ""), None),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "heavy": [name for name in ("torch", "falcon", "numpy") if name in sys.modules],
            "request_id": context.request_id,
            "tenant": context.headers.get("X-Tenant"),
            "q": context.query.get("q"),
            "in_time": 0 < context.remaining() < 3600,
            "pid": os.getpid(),
        }

    def teardown(self) -> None:
        print("torn down", file=sys.stderr, flush=True)

    def quit(self, _position: int, value: dict[str, Any]) -> Any:
        sys.exit(value["code"])

    def broken(self, _position: int, value: dict[str, Any]) -> Any:
        raise WorkerBroken(value["why"])

    def bug(self, _position: int, _value: dict[str, Any]) -> Any:
        raise ZeroDivisionError("a bug")

    def lazy(self, _position: int, value: dict[str, Any]) -> Any:
        """An import that is slower than the stage's time limit, and can be made only once."""
        sys.path.insert(0, value["folder"])
        import lazily_imported

        time.sleep(value["then_s"])
        return lazily_imported.VALUE

    def memory(self, position: int, value: dict[str, Any]) -> Any:
        """Fits as long as no more than ``fits`` come at once."""
        if len(self._items) > value["fits"]:
            raise MemoryError(f"no room for {len(self._items)}")
        return len(self._items)


class Alone(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Shown(Obey):
    """With an example, whose fate is a file's."""

    def __init__(self, path: str) -> None:
        self.example = [{"do": "shown", "path": path}]

    def shown(self, _position: int, value: dict[str, Any]) -> Any:
        with open(value["path"], "a+") as file:
            file.write("+")
            file.seek(0)
            if "-" in file.read():
                raise ValueError("torn")


class Warm(Obey):
    multi_examples = ([{"do": "echo", "x": 1}], [{"do": "echo", "x": 2}, {"do": "echo", "x": 3}])

    def setup(self) -> None:
        self.resp_mime_type = "text/x-warm"


class Priced(Obey):
    example = [{"do": "echo", "x": 30}, {"do": "echo", "x": 50}]

    def cost(self, value: dict[str, Any]) -> float:
        return float(value["x"])


class Steady(Obey):
    """Takes its time, answers with a buffer that it fills anew, and tells which threads there are."""

    def __init__(self) -> None:
        self.buffer: dict[str, Any] = {}

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        time.sleep(0.005)
        if data[0]["do"] != "echo":
            return super().forward(data)
        self.buffer["x"] = data[0]["x"]
        self.buffer["threads"] = sorted(thread.name for thread in threading.enumerate())
        return [self.buffer] * len(data)


class Own(Steady):
    """Decodes by a method of its own, which must run where forward does."""

    def deserialize(self, data: bytes) -> Any:
        assert threading.current_thread() is threading.main_thread()
        assert self.context().request_id
        return super().deserialize(data)


class Decoder(Obey):
    """Its methods belong to no class and no module."""

    deserialize = staticmethod(msgspec.json.Decoder().decode)
    serialize = staticmethod(msgspec.json.Encoder().encode)


class BadInit(Obey):
    def __init__(self) -> None:
        raise RuntimeError("no such model")


class BadExample(Obey):
    example = ({"do": "refuse", "x": "example"},)


class BadAtThree(Obey):
    example = {"do": "echo"}

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        time.sleep(0.03 if self.is_new(len(data)) else 0.0)
        if len(data) == 3:
            raise ValueError("no three")
        return super().forward(data)

    def is_new(self, size: int) -> bool:
        self.known = getattr(self, "known", set())
        return size not in self.known and not self.known.add(size)


class Fresh(Obey):
    """Takes long the first time that it computes some number of values, and says whether it was that."""

    example = {"do": "fresh"}

    def setup(self) -> None:
        self.known: set[int] = set()

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        is_fresh = len(data) not in self.known
        self.known.add(len(data))
        time.sleep(0.03 * is_fresh)
        return [is_fresh] * len(data)


class StuckWarm(Obey):
    example = {"do": "echo"}

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        if len(data) == 2:
            print("computing two", file=sys.stderr, flush=True)
            time.sleep(600)
        return [1] * len(data)


class Roomy(Obey):
    """Memory takes two values at once, and no more."""

    example = [{"do": "count"}] * 4

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        if len(data) > 2:
            raise MemoryError
        if data[0]["do"] == "sleep":
            time.sleep(data[0]["s"])
        return [len(data)] * len(data)


class Sized(Obey):
    example = {"do": "count"}

    def count(self, _position: int, _value: dict[str, Any]) -> Any:
        return len(self._items)


class Coroutine(Worker):
    async def forward(self, data: Any) -> Any:
        return data


class BadQuits(Obey):
    def setup(self) -> None:
        sys.exit("no licence")


class Panic(BaseException):
    def __str__(self) -> str:
        sys.exit(3)


class BadText(Obey):
    def __init__(self) -> None:
        raise Panic


class NoForward(Worker):
    pass


class NotAWorker:
    pass


class SlowInit(Obey):
    def __init__(self, gate: str) -> None:
        with open(gate):
            pass


class StuckInit(Obey):
    def __init__(self) -> None:
        while True:  # user code that lets nothing through, as some libraries do
            try:
                time.sleep(60)
            except BaseException as error:
                print("ignored", repr(error), file=sys.stderr, flush=True)


class BadTeardown(Obey):
    def teardown(self) -> None:
        raise RuntimeError("cannot tear down")


class Counting(Obey):
    def __init__(self) -> None:
        from prometheus_client import Counter

        self.seen = Counter("seen_items", "Items seen.", ["kind"])

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        self.seen.labels("any").inc(len(data))
        return super().forward(data)


class Stream(SSEWorker):
    """Sends two events for each value and then waits at the gate."""

    def forward(self, data: list[dict[str, Any]]) -> list[Any]:
        for position, value in enumerate(data):
            for text in value["events"]:
                self.send_stream_event(text, index=position)
        if "gate" in data[0]:
            with open(data[0]["gate"]):
                pass
        return [None] * len(data)

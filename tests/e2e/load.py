"""Requests in number: a crowd that asks at once, and a load that goes on until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any
from urllib.parse import urlsplit

import httpx
from harness import wait_for

LOAD_MOST = 20_000  # requests of one load, however long its test takes, but for one that says otherwise
CALM_S = 0.3  # how long after the last look at its flow a load goes on at full speed
PAUSE_S = 0.03  # between two requests of a thread from then on


@dataclass(frozen=True)
class Answer:
    """An HTTP answer as the tests look at it, from either of the clients here."""

    status_code: int
    headers: dict[str, str]  # names in lower case
    text: str
    took_s: float

    def json(self) -> Any:
        return json.loads(self.text)


def right(sent: dict[str, Any], answer: Answer | httpx.Response, stages: Sequence[str] = ("first", "second")) -> bool:
    """The answer is to this very request, and every stage had it once in its final trace."""
    if answer.status_code != 200:
        return False
    got = answer.json()
    return bool(got["id"] == sent["id"] and [name for name, _ in got["trace"]] == list(stages))


def crowd(
    url: str,
    bodies: Sequence[dict[str, Any]],
    *,
    timeout_s: float = 60.0,
    every_s: float = 0.0,
    at_s: Sequence[float] = (),
    tries: int = 1,
) -> list[Answer]:
    """All of them at once, or one every ``every_s``, or each at its own instant, whatever became of the others, each on
    a connection of its own; the answers in their order. Who is not answered 200 asks again at once, until it has made
    ``tries``; its answer is the first.

    Bare streams: a pooling client spends seconds on a thousand connections, in which a server rightly loses patience.
    """
    where = urlsplit(url)

    async def ask(body: dict[str, Any]) -> Answer:
        began = time.monotonic()
        content = json.dumps(body).encode()
        lines = (f"POST {where.path} HTTP/1.1", "host: test", "connection: close", f"content-length: {len(content)}")
        head = "\r\n".join((*lines, "", ""))
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            writer.write(head.encode() + content)
            raw = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        return _parsed(raw, time.monotonic() - began)

    async def come(body: dict[str, Any], after_s: float) -> Answer:
        await asyncio.sleep(after_s)
        first = last = await ask(body)
        for _ in range(tries - 1):
            if last.status_code != 200:
                last = await ask(body)
        return first

    async def come_all() -> list[Answer]:
        instants = at_s or [every_s * number for number in range(len(bodies))]
        asked = [come(body, after_s) for body, after_s in zip(bodies, instants, strict=True)]
        return await asyncio.wait_for(asyncio.gather(*asked), timeout_s)

    return asyncio.run(come_all())


def _parsed(raw: bytes, took_s: float) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    assert status.startswith("HTTP/1.1 "), f"no answer: {raw[:200]!r}"
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    assert int(headers["content-length"]) == len(body), f"cut short: {raw[:200]!r}"
    return Answer(int(status.split()[1]), headers, body.decode(), took_s)


class Load:
    """Threads that each ask one request after the other; `wrong` tells every answer that was not right.

    As fast as they can while a test waits for their answers, and for a moment after, in which it kills or stops what
    has them. What it waits for then is processes that start, which takes twice as long where a load has all cores: so
    there are pauses until answers are waited for again.
    """

    def __init__(self, url: str, *, threads: int = 8, act: dict[str, Any] | None = None, most: int = LOAD_MOST) -> None:
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.slowest_s = 0.0
        self._url = url
        self._most = most
        self._act = act or {}
        self._stop = threading.Event()
        self._calm_at = time.monotonic() + CALM_S
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), name=f"load-{number}") for number in range(threads)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Lets every thread have its last answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def flow(self, count: int, *, within_s: float = 30.0) -> None:
        """Wait for so many further answers."""
        wanted = self.answered + count
        self._calm_at = inf
        try:
            wait_for(f"{count} further answers", lambda: self.answered >= wanted, within_s=within_s)
        finally:
            self._calm_at = time.monotonic() + CALM_S

    @property
    def answered(self) -> int:
        with self._lock:
            return self.answers.total()

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=60, trust_env=False, verify=False) as client:
            count = 0
            while not self._stop.is_set() and self.answered < self._most:
                body = {"id": f"{number}-{count}", **self._act}
                count += 1
                began = time.monotonic()
                try:
                    answer = self._post(client, body, count)
                except httpx.HTTPError as error:
                    self._note(0, f"{body['id']}: {error!r}", time.monotonic() - began)
                    continue
                problem = "" if right(body, answer) else f"{body['id']}: {answer.status_code} {answer.text[:200]}"
                self._note(answer.status_code, problem, time.monotonic() - began)

    def _post(self, client: httpx.Client, body: dict[str, Any], count: int) -> httpx.Response:
        return client.post(self._url, json=body)

    def _note(self, status: int, problem: str, took_s: float) -> None:
        with self._lock:
            self.answers[status] += 1
            self.slowest_s = max(self.slowest_s, took_s)
            if problem:
                self.wrong.append(problem)
        if time.monotonic() > self._calm_at:
            self._stop.wait(PAUSE_S)


class Turns(Load):
    """Requests of several kinds, in turns."""

    def turn(self, name: str, count: int) -> tuple[str, dict[str, Any], Callable[[Any], bool]]:
        """Where the next one goes, its body, and whether an answer of 200 is the right one. ``name``: no other's."""
        raise NotImplementedError

    def _ask(self, number: int) -> None:
        count = number
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self._stop.is_set():
                count += 1
                path, body, is_right = self.turn(f"{number}-{count}", count)
                began = time.monotonic()
                try:
                    answer = client.post(f"{self._url}{path}", json=body)
                    is_good = answer.status_code == 200 and is_right(answer.json())
                    problem = "" if is_good else f"{path} {body}: {answer.status_code} {answer.text[:200]}"
                    self._note(answer.status_code, problem, time.monotonic() - began)
                except httpx.HTTPError as error:
                    self._note(0, f"{path} {body}: {error!r}", time.monotonic() - began)


class Balanced(Load):
    """Goes round several frontends, a connection for each request, and on to the next where nobody listens: the least
    that balancers do."""

    def __init__(self, urls: Sequence[str], *, threads: int = 8) -> None:
        super().__init__(urls[0], threads=threads)
        self._urls = urls

    def _post(self, client: httpx.Client, body: dict[str, Any], count: int) -> httpx.Response:
        turns = [self._urls[(count + turn) % len(self._urls)] for turn in range(len(self._urls))]
        for url in turns[:-1]:
            with contextlib.suppress(httpx.ConnectError):
                return client.post(url, json=body, headers={"connection": "close"})
        return client.post(turns[-1], json=body, headers={"connection": "close"})

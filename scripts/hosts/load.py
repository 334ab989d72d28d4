"""Requests at a fixed rate, whatever becomes of them, each answer looked at: run on the host that asks.

    python load.py URL RATE SECONDS [WORDS]    prints a list of [begun after, status, took, right] for each, as JSON

``status`` 0: no answer came at all; ``right``: it is to this very request, and each stage had it once in its trace.
WORDS are a JSON object that every request brings as well.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final
from urllib.parse import urlsplit

STAGES: Final = ["prep", "encode"]
PATIENCE_S: Final = 60.0  # far beyond any request's time limit


class Pool:
    """Connections that are used again. Bare streams, for a client library would take more CPU than what is measured."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port, self._path = where.hostname, where.port, where.path
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, body: dict[str, Any]) -> tuple[int, bytes]:
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection(self._host, self._port)
        content = json.dumps(body).encode()
        writer.write(
            f"POST {self._path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        got = await reader.readexactly(length)
        if "connection: close" in head:
            writer.close()
        else:
            self._free.append((reader, writer))
        return int(head.split()[1]), got

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def load(url: str, rate: float, seconds: float, words: dict[str, Any]) -> list[tuple[float, int, float, bool]]:
    pool = Pool(url)
    began = time.monotonic()
    told: list[tuple[float, int, float, bool]] = []

    async def ask(number: int) -> None:
        at = time.monotonic()
        status, got = 0, b""
        try:
            status, got = await asyncio.wait_for(pool.ask({"id": number, **words}), PATIENCE_S)
            answer = json.loads(got) if status == 200 else {}
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            answer = {}
        right = answer.get("id") == number and answer.get("trace") == STAGES
        told.append((round(at - began, 4), status, round(time.monotonic() - at, 4), right))

    asked = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        asked.append(asyncio.create_task(ask(number)))
    await asyncio.gather(*asked)
    pool.close()
    return told


if __name__ == "__main__":
    _, url, rate, seconds, *rest = sys.argv
    words = json.loads(rest[0]) if rest else {}
    print(json.dumps(asyncio.run(load(url, float(rate), float(seconds), words))))

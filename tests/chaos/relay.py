"""Stands between the client and a service, and does to one answer what a faulty service would: so that detectors can be
seen to detect. Everything else passes as it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

KINDS: Final = ("lose", "double", "falsify", "swap", "delay")
DELAY_S: Final = 1.5


class Relay:
    """``meddle[number] = kind`` is what happens to the answer to that request; "swap" waits for another such answer and
    gives each client the other's."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._target = (where.hostname or "", where.port or 0)
        self._meddle: dict[int, str] = {}
        self._kept: list[tuple[bytes, asyncio.StreamWriter]] = []
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="relay")
        self._thread.start()
        self._listening.wait()

    def meddle(self, number: int, kind: str) -> None:
        assert kind in KINDS
        self._meddle[number] = kind

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        await self._ended.wait()
        server.close()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    async def _carry(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        service, to_service = await asyncio.open_connection(*self._target)
        forth = asyncio.ensure_future(_pass_on(client, to_service))
        try:
            while data := await service.read(1 << 16):  # small answers, one at a time: each comes whole
                await self._answer(data, to_client)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            forth.cancel()
            to_service.close()
            to_client.close()

    async def _answer(self, data: bytes, to_client: asyncio.StreamWriter) -> None:
        kind = next((kind for number, kind in self._meddle.items() if b'"number":%d,' % number in data), "")
        if kind == "lose":
            raise ConnectionError("lost on purpose")
        if kind == "double":
            data += data
        elif kind == "falsify":
            data = data[:-2] + bytes((data[-2] ^ 1,)) + data[-1:]  # the last digit of the proof
        elif kind == "delay":
            await asyncio.sleep(DELAY_S)
        elif kind == "swap":
            self._kept.append((data, to_client))
            if len(self._kept) < 2:
                return
            (first, one), (second, other) = self._kept
            one.write(second)
            other.write(first)
            self._kept.clear()
            return
        to_client.write(data)
        await to_client.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    made = Relay(url)
    try:
        yield made
    finally:
        made.stop()

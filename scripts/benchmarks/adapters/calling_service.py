"""The steps of :mod:`benchmarks.pages` as services that call each other: ``python calling_service.py PORT``.

A service under uvicorn finds the lines of a page, beside its event loop, asks another for each of them, all at once on
connections that it keeps, and joins what comes back. The other one reads lines under Mosec, in batches of whichever
requests come.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks import pages, plan

READER = "BENCH_READER"  # where the other service listens


class Pages:
    """What a process of the first service holds."""

    def __init__(self) -> None:
        service = plan.Service.from_json(os.environ[plan.SERVICE_VARIABLE])
        self.find = getattr(pages, service.stages[0].work)()
        self.beside = ThreadPoolExecutor(1)
        self.session: aiohttp.ClientSession

    @contextlib.asynccontextmanager
    async def connected(self, _app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=512)
        async with aiohttp.ClientSession(connector=connector) as self.session:
            yield

    async def answer(self, request: Request) -> JSONResponse:
        asked = await request.json()
        found = await asyncio.get_running_loop().run_in_executor(self.beside, self.find.forward, asked)
        found["crops"] = await asyncio.gather(*map(self.read, found["crops"]))
        return JSONResponse(self.find.made_of.join(found))

    async def read(self, crop: Any) -> Any:
        async with self.session.post(os.environ[READER], data=crop.tobytes()) as response:
            response.raise_for_status()
            return msgspec.json.decode(await response.read())


def app() -> Starlette:
    """Made in each process by uvicorn."""
    held = Pages()
    return Starlette(routes=[Route("/inference", held.answer, methods=["POST"])], lifespan=held.connected)


def main() -> None:
    """Serve until a signal."""
    service = plan.Service.from_json(os.environ[plan.SERVICE_VARIABLE])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ[READER] = f"http://127.0.0.1:{port}/inference"
    find, read = service.stages
    reader = plan.Service((read,), timeout_s=service.timeout_s)
    other = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "mosec_service.py"), "--address", "127.0.0.1",
         "--port", str(port), "--path", str(Path.cwd() / "reader"), "--log-level", "warning",
         "--capacity", str(service.capacity), "--timeout", str(round(service.timeout_s * 1000))],
        env={**os.environ, plan.SERVICE_VARIABLE: reader.to_json()},
    )  # fmt: skip
    try:
        uvicorn.run(
            "benchmarks.adapters.calling_service:app", factory=True, host="127.0.0.1", port=int(sys.argv[1]),
            workers=find.num, log_level="warning", access_log=False,
        )  # fmt: skip
    finally:
        other.send_signal(signal.SIGTERM)
        other.wait()


if __name__ == "__main__":
    main()

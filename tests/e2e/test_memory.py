"""What all processes of a deployment hold together, under more bodies than it has room for, and afterwards."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest
from harness import Deployed, deployed, wait_for

pytestmark = pytest.mark.unmeasured

MB = 1_000_000
MIB = 1 << 20
CAPACITY = 100 * MIB
BODY = 10 * MB
AT_ONCE = 60
# As docs/operations.md says it: each body once in the frontend, once in shared memory or on its way, and once in the
# worker; of those that are refused what came before they were. What is given back is so after a while: REST.
REST = 64 * MIB
PEAK = 3 * CAPACITY + REST

SERVICE = """
import time
from pathlib import Path

from engine import Worker

GO = Path(__file__).with_name("go")

class Size(Worker):
    def deserialize(self, data):
        return data

    def forward(self, data):
        while not GO.exists():
            time.sleep(0.01)
        return len(data)
"""

FILE = f"""
[frontend]
capacity_bytes = {CAPACITY}
max_request_size = {BODY}
timeout = 30

[[stage]]
name = "size"
worker = "service:Size"
"""


def held(running: Deployed) -> int:
    """Bytes of all processes; what several share counts once (PSS)."""
    total = 0
    for process in running.processes():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def ask(address: tuple[str, int], source: str, codes: Counter[int]) -> None:
    """As a client does that sends all before it reads, but for one that is refused meanwhile."""
    with socket.create_connection(address, timeout=60, source_address=(source, 0)) as sock:
        head = f"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: {BODY}\r\nconnection: close\r\n\r\n"
        with contextlib.suppress(ConnectionError):
            sock.sendall(head.encode())
            for _ in range(BODY // MB):
                sock.sendall(bytes(MB))
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(65536):
                answer += data
    codes[int(answer.split()[1])] += 1


def test_more_bodies_than_there_is_room_for(folder: Path) -> None:
    (folder / "service.py").write_text(SERVICE)
    file = folder / "stages.toml"
    file.write_text(FILE)
    with deployed(file) as running:
        host, _, port = running.url.removeprefix("http://").partition(":")
        codes: Counter[int] = Counter()
        go = folder / "go"
        go.touch()
        ask((host, int(port)), "127.0.0.1", codes)  # what every first one brings along
        go.unlink()
        before = most = held(running)

        # From two addresses: one alone is given half of the room.
        clients = [
            threading.Thread(target=ask, args=((host, int(port)), f"127.0.0.{2 + k % 2}", codes))
            for k in range(AT_ONCE)
        ]
        for one in clients:
            one.start()
        while any(one.is_alive() for one in clients):
            most = max(most, held(running))
            if codes[429]:  # there is no room, and now they may go on
                go.touch()
        assert most - before < PEAK, f"{(most - before) // MB} MB"
        wait_for("the memory given back", lambda: held(running) - before < REST)
        assert codes.keys() == {200, 429}
        assert codes[200] >= CAPACITY // BODY
        assert sum(codes.values()) == AT_ONCE + 1, "each got an answer"

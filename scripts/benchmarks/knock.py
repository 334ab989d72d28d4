"""Strangers at the ports of a broker that has a key: all that they can be, one after the other, at a steady rate::

python -m benchmarks.knock FILE RATE            # until its input ends; then says how many have tried
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from itertools import cycle
from typing import Final

import zmq

from engine import transport
from engine.config import Deployment, load
from engine.curve import pairs_of
from engine.keyfile import Keyring

PATIENCE_S: Final = 0.5  # for a port to send one away
LANES: Final = 4  # as many of these as there are other ports


class Strangers:
    """Of a deployment with a key."""

    def __init__(self, deployment: Deployment) -> None:
        self._context = zmq.Context()
        self._public = pairs_of(Keyring(deployment.engine.key).secrets[0]).broker_public
        found = transport.reaching(deployment)
        doors = [found.front, found.admin, found.control(0), found.egress, found.intake(0)]
        first = max(int(one.rpartition(":")[2]) for one in doors) + 1
        self._lanes = [f"tcp://127.0.0.1:{first + number}" for number in range(LANES)]
        manners: list[Callable[[str], None]] = [self._plain, self._guessing, self._knowing, self._http, self._silent]
        self._tries = cycle([(manner, port) for port in (*doors, *self._lanes) for manner in manners])

    def knock(self) -> None:
        manner, port = next(self._tries)
        with contextlib.suppress(OSError):
            if port in self._lanes:
                _connected(port).close()  # else no worker has it, and ZeroMQ would wait for one
            manner(port)

    def _plain(self, port: str) -> None:
        self._connect(port, None)

    def _guessing(self, port: str) -> None:
        self._connect(port, zmq.curve_keypair()[0])

    def _knowing(self, port: str) -> None:
        self._connect(port, self._public)

    def _http(self, port: str) -> None:
        with _connected(port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while sock.recv(4096):
                pass

    def _silent(self, port: str) -> None:
        _connected(port).close()

    def _connect(self, port: str, server_key: bytes | None) -> None:
        sock = self._context.socket(zmq.DEALER)
        sock.linger, sock.immediate, sock.reconnect_ivl = 0, 1, -1
        if server_key is not None:
            sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()
            sock.curve_serverkey = server_key
        monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        sock.connect(port)
        if monitor.poll(int(PATIENCE_S * 1000)) and int.from_bytes(monitor.recv_multipart()[0][:2], "little") != int(
            zmq.EVENT_DISCONNECTED
        ):
            raise RuntimeError(f"a stranger was let in at {port}")
        sock.disable_monitor()
        monitor.close()
        sock.close()


def _connected(port: str) -> socket.socket:
    host, _, number = port.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(number)), timeout=PATIENCE_S)


def main(file: str, rate: float) -> None:
    strangers, count = Strangers(load(file)), 0
    at = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, at - time.monotonic()))[0]:
        strangers.knock()
        count += 1
        at = max(at + 1.0 / rate, time.monotonic() - 1.0)
    print(count, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

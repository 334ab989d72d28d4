"""A switch in user space: one TAP device per host, and every frame between two of them passes here.

So a fault is on the wire, where neither end can tell: a packet filter of a host's own, or its link taken down, is a
local failure to its kernel, which retries it otherwise. And nothing is needed of this machine's kernel but TAP devices.

    python switch.py COUNT         prints the names of so many devices, which are ports 1, 2, ...; then obeys
    {"port": 2, "cut_to": true}    lines on stdin, each answered by one: what becomes of the frames of a port
    {"reset": true}                ends every TCP connection that has passed, as its peers would

Ports are told apart by the last byte of a MAC address, which is the port's number.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

_TUNSETIFF: Final = 0x400454CA
_TAP_PLAIN: Final = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI
FRAME_MAX: Final = 65_536
FRAMES_PER_PASS: Final = 64  # of one device

_IPV4: Final = 0x0800
_TCP: Final = 6
FIN, SYN, RST, ACK = 1, 2, 4, 16


@dataclass(frozen=True)
class Wire:
    """Between a host and the switch. ``to``: the host. Seconds, and parts of one."""

    cut_to: bool = False
    cut_from: bool = False
    delay_s: float = 0.0  # each way
    jitter_s: float = 0.0  # up to so much more; frames of one way stay in order
    loss: float = 0.0


class Segment(NamedTuple):
    """A TCP segment: which way it goes, and what its sender will send next."""

    way: tuple[bytes, bytes, bytes]  # both addresses, both ports
    flags: int
    next: int


def segment(frame: bytes) -> Segment | None:
    """What is known of a frame that carries one over IPv4."""
    if len(frame) < 54 or struct.unpack_from("!H", frame, 12)[0] != _IPV4 or frame[23] != _TCP:
        return None
    head = (frame[14] & 15) * 4
    tcp = 14 + head
    seq, flags = struct.unpack_from("!I", frame, tcp + 4)[0], frame[tcp + 13]
    length = struct.unpack_from("!H", frame, 16)[0] - head - (frame[tcp + 12] >> 4) * 4
    following = (seq + length + bool(flags & SYN) + bool(flags & FIN)) & 0xFFFFFFFF
    return Segment((frame[26:30], frame[30:34], frame[tcp : tcp + 4]), flags, following)


def reset(frame: bytes, following: int) -> bytes:
    """The frame by which the sender of ``frame`` would reset its connection, if ``following`` comes next of it."""
    tcp = 14 + (frame[14] & 15) * 4
    ports, ack = frame[tcp : tcp + 4], frame[tcp + 8 : tcp + 12]
    addresses = frame[26:34]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, _TCP, 0) + addresses
    ip = ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:]
    body = ports + struct.pack("!I", following) + ack + struct.pack("!BBHHH", 0x50, RST | ACK, 0, 0, 0)
    check = _checksum(addresses + struct.pack("!BBH", 0, _TCP, len(body)) + body)
    return frame[:14] + ip + body[:16] + struct.pack("!H", check) + body[18:]


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Switch:
    """One thread. ``devices``: by port."""

    def __init__(self, devices: dict[int, int], seed: int = 1) -> None:
        self._devices = devices
        self._ports = {fd: port for port, fd in devices.items()}
        self._wires = {port: Wire() for port in devices}
        self._waiting: list[tuple[float, int, int, bytes]] = []  # when, in what order, to which port
        self._last: dict[tuple[int, int], float] = {}  # by way: when the newest frame arrives
        self._count = 0
        self._random = random.Random(seed)
        self._flows: dict[tuple[bytes, bytes, bytes], tuple[int, bytes]] = {}  # what comes next, and the newest frame

    def run(self) -> None:
        poll = select.poll()
        for fd in (*self._ports, 0):
            poll.register(fd, select.POLLIN)
        commands = b""
        while True:
            left_s = self._waiting[0][0] - time.monotonic() if self._waiting else 1.0
            for fd, _ in poll.poll(max(0, left_s * 1000)):
                if fd:
                    self._take(fd)
                    continue
                commands += (told := os.read(0, 65_536))
                if not told:
                    return
                *lines, commands = commands.split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
                    print("done", flush=True)
            self._deliver()

    def _obey(self, command: dict[str, object]) -> None:
        if command.pop("reset", False):
            for following, frame in list(self._flows.values()):
                self._send(frame[5], reset(frame, following))
            self._flows.clear()
        for port in self._wires if command.get("port") is None else [command["port"]]:
            about = {name: value for name, value in command.items() if name != "port"}
            self._wires[port] = replace(self._wires[port], **about)  # type: ignore[arg-type, index]

    def _take(self, fd: int) -> None:
        source = self._ports[fd]
        for _ in range(FRAMES_PER_PASS):
            try:
                frame = os.read(fd, FRAME_MAX)
            except OSError:  # nothing more, or the host has gone
                return
            if frame[0] & 1:
                targets = [port for port in self._devices if port != source]
            else:
                targets = [frame[5]] if frame[5] in self._devices else []
            for target in targets:
                self._pass(source, target, frame)

    def _pass(self, source: int, target: int, frame: bytes) -> None:
        here, there = self._wires[source], self._wires[target]
        if here.cut_from or there.cut_to:
            return
        if (loss := here.loss + there.loss) and self._random.random() < loss:
            return
        if (part := segment(frame)) is not None:
            if part.flags & RST:
                self._flows.pop(part.way, None)
            else:
                self._flows[part.way] = part.next, frame[:74]
        delay_s = here.delay_s + there.delay_s
        if not delay_s and (source, target) not in self._last:
            self._send(target, frame)
            return
        delay_s += self._random.random() * (here.jitter_s + there.jitter_s)
        at = max(time.monotonic() + delay_s, self._last.get((source, target), 0.0))
        self._last[source, target] = at
        self._count += 1
        heapq.heappush(self._waiting, (at, self._count, target, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._waiting)
            if not self._wires[target].cut_to:
                self._send(target, frame)

    def _send(self, target: int, frame: bytes) -> None:
        try:
            os.write(self._devices[target], frame)
        except OSError:
            pass  # that host has gone, or its queue is full: a frame is lost


def tap(name: str) -> int:
    """A new device; it may be moved to another namespace, and lives as long as the descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_PLAIN))
    return fd


def main(count: int) -> None:
    names = [f"sl{os.getpid()}p{port}" for port in range(1, count + 1)]
    devices = {port: tap(name) for port, name in enumerate(names, 1)}
    print(" ".join(names), flush=True)
    Switch(devices).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))

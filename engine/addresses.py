"""By which address a broker is reached whose host is given by name.

ZeroMQ would look the name up itself, in the one thread that carries all connections of a context: a resolver that does
not answer holds them all up for seconds. So names are looked up here, each time in a thread of its own, and sockets are
given numbers. Whoever makes a connection anew looks the name up anew: a broker that was moved has another address. So
has one whose address stands in a file, which whoever moves it writes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from engine.config import read_key
from engine.config.endpoints import Endpoints, file_of
from engine.log import get_logger

RETRY_S: Final = 1.0  # until a name that could not be looked up is tried again
PORTS_FROM: Final = 20_000
PORTS_TO: Final = 32_000
ANSWER_S: Final = 1.0  # that an address has to take a connection, if the name has others
READ_MOST: Final = 1000  # characters of a file with an address

log: Final = get_logger("stageline.addresses")


class Search:
    """The endpoints of a broker with a number for the name of its host. One thread calls it.

    ``ring`` is called in another thread when there is something to be found. Where there is no name, all is at hand.
    """

    def __init__(self, endpoints: Endpoints, ring: Callable[[], object]) -> None:
        self._endpoints = endpoints
        self._ring = ring
        self._is_plain = not endpoints.is_tcp or is_number(endpoints.host)
        self._looks = False
        self._found: list[Endpoints] | None = None  # what the last look has brought
        self._failure = ""  # as it was told last
        self._turn = 0  # of several addresses, the next one each time: one may be of no use
        self._again_at = 0.0

    def begin(self) -> None:
        """Look the name up, unless that is being done."""
        if not self._is_plain and not self._looks:
            self._found, self._looks = None, True
            threading.Thread(target=self._look, name="lookup", daemon=True).start()

    def result(self, now: float) -> Endpoints | None:
        """What was found, each time by another address, if there are several; None: nothing yet, to be asked again when
        it rings, or in RETRY_S."""
        if self._is_plain:
            return self._endpoints
        if self._looks:
            return None
        if self._found:
            self._turn += 1
            return self._found[self._turn % len(self._found)]
        if self._found is not None:  # the look has failed
            self._found, self._again_at = None, now + RETRY_S
        elif now >= self._again_at:
            self.begin()
        return None

    def _look(self) -> None:
        found: list[Endpoints] = []
        try:
            found = _looked_up(self._endpoints)
            self._failure = ""
        except (OSError, ValueError) as error:
            if str(error) != self._failure:
                self._failure = str(error)
                told = {"broker": self._endpoints.base.removeprefix("tcp://"), "reason": str(error)}
                log.warning("the broker's address cannot be looked up", extra=told)
        self._found = found
        self._looks = False
        self._ring()


def _looked_up(endpoints: Endpoints) -> list[Endpoints]:
    """By all addresses, or by one at which somebody listens. Raises OSError where the system does not tell, ValueError
    where what it tells is none."""
    named = _read(endpoints)
    if is_number(named.host):
        return [named]
    told = socket.getaddrinfo(named.host, None, type=socket.SOCK_STREAM)
    found = [named.at(address) for address in dict.fromkeys(str(address[0]) for *_, address in told)]
    return next(([one] for one in found if len(found) > 1 and _takes(one)), found)


def _read(endpoints: Endpoints) -> Endpoints:
    """Where a file has the address, by what stands in it now. What is no address is not told, nor looked up: where a
    path was mistaken, it may be a secret."""
    path = file_of(endpoints.base.removeprefix("tcp://"))
    if path is None:
        return endpoints
    try:
        with open(path, encoding="utf-8") as file:
            (told,) = read_key("engine", "broker", [file.read(READ_MOST).strip()])
    except ValueError:
        told = ""
    if not told or file_of(told) is not None:
        raise ValueError(f"{path}: expected HOST:PORT in it, and nothing else")
    return replace(endpoints, base=f"tcp://{told}")


def _takes(endpoints: Endpoints) -> bool:
    """Whether somebody listens there: of the two families of addresses a broker may serve one."""
    host = endpoints.host
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.settimeout(ANSWER_S)
            return sock.connect_ex((host, endpoints.port)) == 0
    except OSError:  # a host without that family
        return False


def is_number(host: str) -> bool:
    """Whether it is an address already."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def numbered(endpoints: Endpoints) -> Endpoints:
    """The same by an address, for those who may wait for it. Raises OSError when there is none, and ValueError."""
    if not endpoints.is_tcp or is_number(endpoints.host):
        return endpoints
    return _looked_up(endpoints)[0]


def free_ports(count: int, host: str = "") -> int:
    """The first of so many ports behind each other that nobody has, at all addresses or at one. They are below those
    that systems give to outgoing connections, so that nobody gets one by chance before it is used. RuntimeError when
    there are none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    firsts = range(PORTS_FROM, PORTS_TO - count + 1, count)
    for step in range(len(firsts)):
        first = firsts[(os.getpid() + step) % len(firsts)]  # not where all others begin
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket(family)).bind((host, port))
            except OSError:
                continue
            return first
    raise RuntimeError(f"no {count} ports behind each other are free between {PORTS_FROM} and {PORTS_TO}")

"""By which address a broker is reached whose host is given by name.

ZeroMQ would look the name up itself, in the one thread that carries all connections of a context: a resolver that does
not answer holds them all up for seconds. So names are looked up here, each time in a thread of its own, and sockets are
given numbers. Whoever makes a connection anew looks the name up anew: a broker that was moved has another address.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Final

from engine.config.endpoints import Endpoints
from engine.log import get_logger

RETRY_S: Final = 1.0  # until a name that could not be looked up is tried again
ANSWER_S: Final = 1.0  # that an address has to take a connection, if the name has others

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
        self._found: list[str] | None = None  # what the last look has brought
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
            return self._endpoints.at(self._found[self._turn % len(self._found)])
        if self._found is not None:  # the look has failed
            self._found, self._again_at = None, now + RETRY_S
        elif now >= self._again_at:
            self.begin()
        return None

    def _look(self) -> None:
        found: list[str] = []
        try:
            told = socket.getaddrinfo(self._endpoints.host, None, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(address[0]) for *_, address in told))
            if len(found) > 1:
                found = next(([address] for address in found if self._takes(address)), found)
            self._failure = ""
        except (OSError, UnicodeError) as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warning(
                    "the broker's host cannot be looked up", extra={"host": self._endpoints.host, "reason": str(error)}
                )
        self._found = found
        self._looks = False
        self._ring()

    def _takes(self, address: str) -> bool:
        """Whether somebody listens there: of the two families of addresses a broker may serve one."""
        try:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
                sock.settimeout(ANSWER_S)
                return sock.connect_ex((address, self._endpoints.port)) == 0
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
    """The same by an address, for those who may wait for it. Raises OSError when there is none."""
    if not endpoints.is_tcp or is_number(endpoints.host):
        return endpoints
    return endpoints.at(str(socket.getaddrinfo(endpoints.host, None, type=socket.SOCK_STREAM)[0][4][0]))

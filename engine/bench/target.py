"""Where requests go: an address taken apart, and looked up once, so that no resolver is a part of any latency."""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from engine.config.endpoints import bracket
from engine.errors import ConfigError

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """``path`` has its query; "" where none was given. ``verify`` false: any certificate will do."""

    host: str
    port: int
    tls: bool = False
    path: str = ""
    verify: bool = True

    @property
    def authority(self) -> str:
        """For the field ``host``."""
        host = bracket(self.host)
        return host if self.port == _PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"

    @property
    def base(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    def looked_up(self) -> tuple[socket.AddressFamily, tuple[object, ...]]:
        """An address at which somebody listens. Raises ConfigError where there is none."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConfigError([f"{self.base}: there is no such host: {error}"]) from None
        problem: OSError | None = None
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as sock:
                sock.settimeout(5.0)
                try:
                    sock.connect(address)
                except OSError as error:
                    problem = error
                else:
                    return family, address
        raise ConfigError([f"{self.base}: nobody answers there: {problem}; is the service up?"])

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """For a question beside the measurement; not made yet."""
        if not self.tls:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=self.tls_context())

    def tls_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def parse(url: str, *, verify: bool = True) -> Target:
    """Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError([f"{url}: {error}"]) from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ConfigError([f"{url}: expected an address such as http://127.0.0.1:8000/inference"])
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    if any(ord(letter) < 33 or ord(letter) > 126 for letter in path):
        raise ConfigError([f"{url}: its path has to be written in ASCII, without spaces (%20)"])
    return Target(parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "https", path, verify)

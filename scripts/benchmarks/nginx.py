"""nginx in front of a system, as people put it there: its configuration, its start, its end.

A process of the measurement's own: unprivileged, on the loopback, with all its files in a folder of the run. Only
:func:`proxied` touches the system.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias

from benchmarks import systems

Way: TypeAlias = Literal["default", "keep-alive"]

START_S: Final = 10.0
POLL_S: Final = 0.02
IDLE: Final = 64  # connections to the server that a worker of nginx keeps open
TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

# What is written in a location of ours: nothing but where to (HTTP/1.0, a connection per request), or what nginx's
# manual says for connections that stay open.
LOCATION: Final[dict[Way, tuple[str, ...]]] = {
    "default": ("proxy_pass http://server;",),
    "keep-alive": ("proxy_pass http://server;", "proxy_http_version 1.1;", 'proxy_set_header Connection "";'),
}
UPSTREAM: Final[dict[Way, tuple[str, ...]]] = {"default": (), "keep-alive": (f"keepalive {IDLE};",)}


def binary() -> str | None:
    """Where nginx is: Debian keeps it where only root looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def missing() -> str | None:
    """Why nothing can be measured behind nginx here, or None."""
    return None if binary() else "nginx is not installed; on Debian: apt-get install nginx-light"


def config(way: Way, *, port: int, server_port: int, folder: Path, root: bool) -> str:
    """nginx.conf. ``root``: started by root, whom its workers would leave for a user that cannot enter the folder."""
    return "\n".join(
        [
            *(["user root;"] if root else []),
            "daemon off;",
            "worker_processes auto;",  # as Debian's
            f"pid {folder}/nginx.pid;",
            f"error_log {folder}/error.log;",
            "events { worker_connections 1024; }",
            "http {",
            "  access_log off;",
            *(f"  {name}_temp_path {folder}/{name};" for name in TEMPORARY),
            f"  upstream server {{ server 127.0.0.1:{server_port}; {' '.join(UPSTREAM[way])} }}",
            "  server {",
            f"    listen 127.0.0.1:{port};",
            f"    location / {{ {' '.join(LOCATION[way])} }}",
            "  }",
            "}",
            "",
        ]
    )


@contextmanager
def proxied(running: systems.Running, way: Way, folder: Path, body: str) -> Iterator[systems.Running]:
    """The system as nginx's clients see it, once ``body`` is answered with 200. Ends what it has started.

    ``folder`` is made. Raises RuntimeError when nginx does not get ready.
    """
    nginx = binary()
    if nginx is None:
        raise RuntimeError(missing())
    folder.mkdir(parents=True)
    seen = dataclasses.replace(running, port=systems.free_port())
    file = folder / "nginx.conf"
    file.write_text(config(way, port=seen.port, server_port=running.port, folder=folder, root=os.geteuid() == 0))
    log = folder / "error.log"
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [nginx, "-p", str(folder), "-e", str(log), "-c", str(file)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + START_S
        while systems.post(seen.port, seen.service.paths[0], body) != 200:
            if process.poll() is not None or time.monotonic() > until:
                said = "".join(path.read_text(errors="replace") for path in (folder / "output", log) if path.exists())
                raise RuntimeError(f"nginx did not become ready: {said[-2000:]}")
            time.sleep(POLL_S)
        yield seen
    finally:
        systems.stop(process)

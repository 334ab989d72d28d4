"""gunicorn's settings, each with its reason where it is not ours by name. Imports nothing of gunicorn."""

from __future__ import annotations

import importlib.util
import math
from typing import Any, Final

from engine.config.schema import FrontendSection
from engine.core.liveness import frontend_stop_s
from engine.process import die_with_parent
from frontend.listening import BACKLOG

WORKER_CLASS: Final = "frontend.serving.process.Worker"
LOGGER_CLASS: Final = "frontend.serving.master.Log"
MAX_FIELDS: Final = 100  # header fields of one request, gunicorn's default
MAX_TARGET: Final = 8190  # bytes of the request line, the most gunicorn allows


def options(frontend: FrontendSection, grace_s: float) -> dict[str, Any]:
    """What :class:`frontend.serving.application.Application` tells gunicorn."""
    http2 = has_http2()
    return {
        "workers": frontend.processes,
        "worker_class": WORKER_CLASS,
        "logger_class": LOGGER_CLASS,
        "accesslog": None,
        "backlog": BACKLOG,
        "proc_name": "stageline frontend",
        # And then the worker needs a moment to say goodbye; after this the master kills it.
        "graceful_timeout": math.ceil(frontend_stop_s(frontend.drain_delay, grace_s)) + 2,
        # A worker whose event loop is stuck for this long is replaced. It also bounds gunicorn's own waits for a body,
        # so it must be above ours, which answers 408.
        "timeout": max(30, math.ceil(frontend.body_timeout) + 10),
        "limit_request_line": MAX_TARGET,
        "limit_request_fields": MAX_FIELDS,
        "limit_request_field_size": frontend.max_header_size,
        "http2_max_header_list_size": frontend.max_header_size,
        "http_protocols": "h2,h1" if http2 else "h1",
        # "both", because with prior knowledge alone gunicorn refuses HTTP/1; our connection turns upgrading off.
        "http2_cleartext": "both" if http2 else "off",
        # gunicorn allows cleartext HTTP/2 to peers it trusts with forwarding headers: trust all peers, and no header.
        "forwarded_allow_ips": "*",
        "secure_scheme_headers": {},
        "forwarder_headers": "",
        # No files of its own: no socket for gunicornc, no pid file.
        "control_socket_disable": True,
        "pidfile": None,
        "post_fork": _post_fork,
    }


def has_http2() -> bool:
    return importlib.util.find_spec("h2") is not None


def _post_fork(arbiter: Any, worker: Any) -> None:
    die_with_parent(worker.ppid)

"""The names of gunicorn that are relied upon although its documentation does not promise them: where, and why.

:func:`check` looks for each at start, because gunicorn changes such names in minor versions: a method of ours that
overrides nothing any more is never called, and a bound on headers or a drain would be gone without a word. A test holds
that the table is complete. Whoever raises the version in ``setup.cfg`` reads what gunicorn changed in these places,
runs the tests of the frontend, and sets :data:`CHECKED`.
"""

from __future__ import annotations

import dis
import importlib
import logging
from dataclasses import dataclass
from types import FunctionType
from typing import Final

from engine.errors import StartError

CHECKED: Final = (27, 0)  # the minor version this was written against, as in setup.cfg

log = logging.getLogger("stageline.frontend")


@dataclass(frozen=True)
class Name:
    """``owner`` is ``module:Class`` or ``module``; ``used`` the file of this package."""

    owner: str
    name: str
    used: str
    why: str

    def __str__(self) -> str:
        return f"{self.owner.replace(':', '.')}.{self.name}"


_ARBITER: Final = "gunicorn.arbiter:Arbiter"
_LOGGER: Final = "gunicorn.glogging:Logger"
_WORKER: Final = "gunicorn.workers.gasgi:ASGIWorker"
_PROTOCOL: Final = "gunicorn.asgi.protocol:ASGIProtocol"
_HTTP2: Final = "gunicorn.http2.async_connection:AsyncHTTP2Connection"
_STREAM: Final = "gunicorn.http2.stream:HTTP2Stream"
_RECEIVER: Final = "gunicorn.asgi.protocol:BodyReceiver"
_PARSER: Final = "gunicorn.asgi.parser:PythonProtocol"

NAMES: Final = (
    # --- the master ---
    Name(_ARBITER, "WORKER_BOOT_ERROR", "process", "exit status by which the master gives up"),
    Name(_ARBITER, "APP_LOAD_ERROR", "master", "the other one"),
    Name(_ARBITER, "handle_int", "master", "overridden: Ctrl-C drains, as SIGTERM does, by raising StopIteration"),
    Name(_ARBITER, "handle_hup", "master", "overridden: reads the deployment again, then has the workers replaced"),
    Name(_ARBITER, "reap_workers", "master", "overridden: a stop ends a reload, which looks for old workers by it"),
    Name(_ARBITER, "handle_usr2", "master", "overridden: the supervisor replaces this process"),
    Name(_ARBITER, "signal", "master", "overridden: notes at once that it is told to stop"),
    Name(_ARBITER, "spawn_worker", "master", "overridden: holds signals back around the fork; StopIteration ends it"),
    Name(_ARBITER, "murder_workers", "master", "extended: what hangs is found by looking at it"),
    Name(_ARBITER, "wait_for_signals", "master", "shortened: so often that is done"),
    Name(_ARBITER, "stop", "master", "extended: the supervisor is told that no beats follow"),
    Name(_ARBITER, "kill_worker", "master", "ends a worker process that hangs"),
    Name(_ARBITER, "SIG_QUEUE", "master", "what was told in the midst of a reload is taken from it"),
    Name(_ARBITER, "WORKERS", "master", "the worker processes, each with the time it has shown itself last"),
    Name(_ARBITER, "pid", "master", "tells the master from a child"),
    Name("gunicorn.util", "_setproctitle", "master", "replaced: processes have titles of their own"),
    Name(_LOGGER, "setup", "master", "overridden: no handlers of its own"),
    Name(_LOGGER, "error_log", "master", "the logger whose records go where ours go"),
    Name(_LOGGER, "access_log", "master", "the same"),
    Name(_LOGGER, "_access_log_enabled", "master", "off: requests are not logged"),
    # --- a worker process ---
    Name(_WORKER, "_serve", "process", "overridden: the whole life of a worker process in its event loop"),
    Name(_WORKER, "_quick_shutdown", "process", "a second Ctrl-C, passed on by the master: do not drain"),
    Name(_WORKER, "_get_ssl_context", "process", "gunicorn's way to our TLS context"),
    Name(_WORKER, "init_signals", "process", "overridden: a terminal's Ctrl-C is the master's alone"),
    Name(_WORKER, "handle_exit_signal", "process", "overridden: a stop wakes the loop at once"),
    Name(_WORKER, "handle_quit_signal", "process", "overridden: the same"),
    Name(_WORKER, "alive", "process", "False: stopping; each answer then says connection: close"),
    Name(_WORKER, "asgi", "process", "the application, for its lifespan"),
    Name(_WORKER, "state", "process", "what the lifespan's scope carries"),
    Name(_WORKER, "notify", "process", "the heartbeat without which the master kills"),
    Name("gunicorn.asgi.lifespan:LifespanManager", "startup", "process", "starts the client in its event loop"),
    Name("gunicorn.asgi.lifespan:LifespanManager", "shutdown", "process", "closes it after the last answer"),
    # --- a connection: its life ---
    Name(_PROTOCOL, "_closed", "connection", "nothing more is read or written here"),
    Name(_PROTOCOL, "_close_transport", "connection", "overridden: closes by halves while a body is unread"),
    Name(_PROTOCOL, "_keepalive", "connection", "seconds, ours"),
    Name(_PROTOCOL, "_resume_reading", "connection", "overridden: not while enough is there to be served"),
    Name(_PROTOCOL, "_request_ready", "connection", "what the connection's task waits for between requests"),
    # --- a connection: what comes in advance ---
    Name("gunicorn.asgi.parser", "PythonProtocol", "connection", "the parser, of which ours is made"),
    Name(_PROTOCOL, "_setup_callback_parser", "connection", "overridden: it is ours"),
    Name(_PROTOCOL, "_callback_parser", "connection", "where it is kept"),
    Name(_PROTOCOL, "_on_body", "connection", "whom it tells of a piece of a body"),
    Name(_PROTOCOL, "_on_message_complete", "connection", "and of the end of one"),
    Name(_PROTOCOL, "_http1_buffered", "connection", "overridden: what waits in ours"),
    Name(_PROTOCOL, "_is_buffer_full", "connection", "whether that is too much to read on"),
    Name(_PROTOCOL, "_max_buffer_size", "connection", "how much that is"),
    Name(_PROTOCOL, "_reading_paused", "connection", "the client is not read"),
    Name(_PROTOCOL, "_write_paused", "connection", "HTTP/2: nor is it while it does not read"),
    Name(_PARSER, "_buffer", "connection", "what has come and was not parsed"),
    Name(_PARSER, "is_complete", "connection", "a request was read, and the rest is behind it"),
    Name(_PARSER, "remaining", "connection", "overridden: gives that rest away, uncopied"),
    Name(_PARSER, "reset", "connection", "overridden: without what was given away"),
    Name(_PARSER, "feed", "connection", "overridden: takes it back, uncopied"),
    Name(_PARSER, "_parse_chunked_body", "connection", "overridden: all there are as one piece, with bounds on them"),
    Name(_PARSER, "_on_body", "connection", "whom it tells of each chunk"),
    Name(_PARSER, "_on_message_complete", "connection", "and of the end of all"),
    Name(_PARSER, "_chunk_size", "connection", "the size of the last one"),
    Name(_PARSER, "_chunk_state", "connection", "whether the next bytes are of a chunk that has begun"),
    Name("gunicorn.asgi.parser", "InvalidChunkSize", "connection", "raised where it is too large: 400"),
    # --- a connection: is something under way ---
    Name(_PROTOCOL, "_awaiting_request", "connection", "HTTP/1: between two requests"),
    Name(_PROTOCOL, "_finishing_calls", "connection", "HTTP/1: answered, the application still runs"),
    Name(_PROTOCOL, "_h2_tasks", "connection", "HTTP/2: streams being served"),
    Name(_PROTOCOL, "_h2c_buffer", "connection", "not None: HTTP/1 or HTTP/2 is not decided yet"),
    Name(_PROTOCOL, "_h2c_start", "connection", "overridden: HTTP/2 it is, the time limit for headers ends"),
    Name(_PROTOCOL, "_h2c_upgrade_ok", "connection", "False: HTTP/2 by prior knowledge only"),
    Name(_PROTOCOL, "_start_http1", "connection", "overridden: HTTP/1 it is, upgrading is off"),
    # --- HTTP/2 ---
    Name("gunicorn.http2.async_connection", "AsyncHTTP2Connection", "http2", "replaced: gunicorn makes ours"),
    Name(_HTTP2, "reader", "http2", "where it reads: by turns"),
    Name(_HTTP2, "receive_data", "http2", "reads from there, once a call"),
    Name(_HTTP2, "_handle_request_received", "http2", "overridden: counts requests that are dropped"),
    Name(_HTTP2, "_handle_data_received", "http2", "extended: a body behind which an answer has begun is dropped"),
    Name(_HTTP2, "send_error", "http2", "overridden: in the words of our table"),
    Name(_HTTP2, "h2_conn", "http2", "whose configuration says that heads are Latin-1"),
    Name(_HTTP2, "send_data", "http2", "overridden: in pieces, which are not copied for each frame"),
    Name(_STREAM, "response_started", "http2", "whether its answer has begun"),
    Name(_STREAM, "response_complete", "http2", "and whether it has ended"),
    Name(_STREAM, "request_headers", "http2", "what its head holds"),
    Name(_STREAM, "_body_chunks", "http2", "what has come of its body"),
    Name(_STREAM, "_acknowledge", "http2", "gives its client window for what was dropped"),
    Name(_STREAM, "unacked_size", "http2", "how much that is"),
    Name(_HTTP2, "close", "http2", "the end, with a reason"),
    Name(_HTTP2, "abort_streams_nowait", "http2", "extended: the connection has gone"),
    Name(_HTTP2, "streams", "http2", "by number, to end one whose client does not take its answer"),
    Name(_STREAM, "reset", "http2", "that end, for whoever serves it"),
    Name(_HTTP2, "_reset_quietly", "http2", "and for the client"),
    Name(_HTTP2, "_write_pending_nowait", "http2", "sends it"),
    Name(_HTTP2, "send_response_headers", "http2", "headers before a body, which do not wait"),
    Name(_HTTP2, "_drain", "http2", "what they do not wait for"),
    Name(_HTTP2, "_signal_window", "http2", "wakes what waits for the client's window"),
    Name(_HTTP2, "_closed", "http2", "the connection has ended"),
    Name("gunicorn.http2.errors:HTTP2ErrorCode", "ENHANCE_YOUR_CALM", "http2", "the reason"),
    Name("gunicorn.http2.errors:HTTP2ErrorCode", "CANCEL", "http2", "that of a stream"),
    # --- a connection: requests and answers ---
    Name(_PROTOCOL, "_current_request", "connection", "its headers are complete and it is not answered yet"),
    Name(_PROTOCOL, "_feed_callback_parser", "connection", "overridden: counts the bytes of headers, and their time"),
    Name(_PROTOCOL, "_on_headers_complete", "connection", "overridden: the bound on all headers together"),
    Name(_PROTOCOL, "_build_http_scope", "connection", "overridden: adds the way to cut an answer off"),
    Name(_PROTOCOL, "_build_http2_scope", "connection", "overridden: targets mean what they mean over HTTP/1"),
    Name("gunicorn.asgi.parser", "RFC9112_TARGET_INVALID", "connection", "which of them are none there"),
    Name("gunicorn.http2.request:HTTP2Request", "uri", "connection", "the target as it came"),
    Name(_PROTOCOL, "_is_websocket_upgrade", "connection", "overridden: a handshake is a request, and refused"),
    Name(_PROTOCOL, "_will_close", "connection", "overridden: no request follows a body that was not read"),
    Name(_PROTOCOL, "_send_response_start", "connection", "overridden: notes that an answer has begun"),
    Name(_PROTOCOL, "_send_error_response", "connection", "overridden: refusals in the words of our table"),
    Name(_PROTOCOL, "pause_writing", "connection", "extended: the time limit of a client that does not read begins"),
    Name(_PROTOCOL, "resume_writing", "connection", "extended: and ends"),
    Name(_PROTOCOL, "_flow_control", "connection", "what an answer waits at while its client does not read"),
    Name("gunicorn.asgi.protocol:FlowControl", "resume_writing", "connection", "lets it go on"),
    Name(_PROTOCOL, "_safe_write", "connection", "writes them, unless the connection has gone"),
    Name(_PROTOCOL, "_body_receiver", "connection", "the body of the current request"),
    Name(_RECEIVER, "_complete", "connection", "the body was read to its end"),
    Name(_RECEIVER, "_chunks", "connection", "what has come of it and nobody will read"),
    Name(_RECEIVER, "signal_disconnect", "connection", "ends the application's wait for more of it"),
    Name("gunicorn.asgi.protocol:CallbackRequest", "raw_path", "connection", "the size of the request line"),
    Name("gunicorn.asgi.protocol:CallbackRequest", "headers_bytes", "connection", "the size of the headers"),
    Name("gunicorn.asgi.parser", "LimitRequestHeaders", "connection", "raised where they are too large: 431"),
)  # fmt: skip


def missing() -> list[Name]:
    """Those that the installed gunicorn has not got."""
    return [name for name in NAMES if not _has(name)]


def check() -> None:
    """StartError when the installed gunicorn is not one that this can work with. Imports what the frontend needs of it
    anyway."""
    try:
        gunicorn = importlib.import_module("gunicorn")
    except ImportError as error:
        raise StartError(f"gunicorn cannot be imported: {error}") from error
    tried = ".".join(map(str, CHECKED))
    later = f"{CHECKED[0]}.{CHECKED[1] + 1}"
    have: str = gunicorn.__version__
    advice = f'this release was checked with {tried}: pip install "gunicorn>={tried},<{later}"'
    if gone := missing():
        first = gone[0]
        raise StartError(
            f"gunicorn {have} is installed and has no {first} ({first.why}); "
            + (f"{len(gone) - 1} more names are missing; " if len(gone) > 1 else "")
            + advice
        )
    if tuple(gunicorn.version_info[:2]) != CHECKED:
        log.warning("gunicorn %s is installed; %s", have, advice)


def _has(wanted: Name) -> bool:
    module, _, cls = wanted.owner.partition(":")
    try:
        owner: object = importlib.import_module(module)
    except ImportError:
        return False
    if cls:
        owner = getattr(owner, cls, None)
    return hasattr(owner, wanted.name) or (isinstance(owner, type) and _is_set_by(owner, wanted.name))


def _is_set_by(cls: type, name: str) -> bool:
    """Whether a method of the class sets such an attribute of something, mostly of its instance: all that can be known
    without making one."""
    members = [member for base in cls.__mro__ for member in vars(base).values()]
    functions = [member.__func__ if isinstance(member, classmethod) else member for member in members]
    return any(
        step.opname == "STORE_ATTR" and step.argval == name
        for function in functions
        if isinstance(function, FunctionType) and name in function.__code__.co_names
        for step in dis.get_instructions(function)
    )

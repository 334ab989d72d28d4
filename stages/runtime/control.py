"""The control thread: owns the control socket and the signals, so that a worker is heard while ``forward`` runs.

It decides nothing: :mod:`stages.runtime.membership` does. Signals reach it through Python's wake-up descriptor,
written by the C-level handler: also when the main thread is deep inside C code that lets other threads run.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Container
from typing import Final

import zmq

from engine import transport
from engine.clock import now
from engine.core import wire
from engine.core.messages import (
    AnyMessage,
    Bye,
    CancelItems,
    Dismiss,
    Granted,
    Hello,
    Pulse,
    Refused,
    Revoke,
    Welcome,
    WorkerBeat,
)
from engine.errors import ProtocolError
from engine.exitcodes import ExitCode
from engine.log import get_logger
from stages.runtime.membership import Membership
from stages.runtime.shared import Dismissed, Finish, Joined, Phase, Shared, Stop, ToMain, Turned, Warm
from stages.runtime.window import Windows
from stages.shm import open_store

LINGER_MS: Final = 500  # for the goodbye to leave
PASS: Final = 100  # messages handled before beats and commands get their turn
UNLOAD_S: Final = 2.0  # from a signal while loading to leaving without the main thread's consent
STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})


class Control(threading.Thread):
    """Started by the main thread once; ends after Finish, or with the process."""

    def __init__(
        self,
        ctx: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        hello: Hello,
        shared: Shared,
        windows: Windows,
        *,
        signals_fd: int,
        grace_s: float,
        families: Callable[[], bytes],
        refused: Callable[[str], None],
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._ctx = ctx
        self._endpoint = endpoint
        self._shared = shared
        self._windows = windows
        self._signals_fd = signals_fd
        self._grace_s = grace_s
        self._families = families
        self._refused = refused
        self._member = Membership(hello)
        self._sock: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._told_families = b""
        self._stopping = False
        self._unload_at: float | None = None
        self._finished = False

    def run(self) -> None:
        try:
            self._open()
            self._poller.register(self._shared.to_control.wake.fd, zmq.POLLIN)
            self._poller.register(self._signals_fd, zmq.POLLIN)
            while not self._finished:
                ready = self._poll()
                if self._signals_fd in ready:
                    self._take_signals()
                if self._shared.to_control.wake.fd in ready:
                    self._take_commands()
                self._receive()
                self._send()
                self._check()
            self._close(goodbye=True)
        except BaseException:
            # Without this thread the broker gives the worker up and nobody can stop it: better a new process.
            get_logger().exception("the control thread failed")
            exit_now(ExitCode.FAILED)

    # --- one pass ----------------------------------------------------------------------------------------------------

    def _poll(self) -> Container[object]:
        """Sleep until there is something to do; what is readable then."""
        wake_at = self._member.wake_at(now())
        if self._unload_at is not None:
            wake_at = min(wake_at, self._unload_at)
        return dict(self._poller.poll(int(max(0.0, wake_at - now()) * 1000) + 1))

    def _take_signals(self) -> None:
        try:
            numbers = os.read(self._signals_fd, 256)
        except BlockingIOError:
            return
        for number in numbers:
            if number not in STOP_SIGNALS:
                continue  # the watchdog's
            if self._stopping:
                get_logger().warning("stopped at once by a second signal")
                exit_now(ExitCode.FAILED)
            self._stopping = True
            if self._shared.phase is Phase.LOADING:
                self._unload_at = now() + UNLOAD_S
            self._shared.to_main.put(Stop(now() + self._grace_s))
            self._tell(self._member.leave())

    def _take_commands(self) -> None:
        self._shared.to_control.wake.clear()
        while (command := self._shared.to_control.take()) is not None:
            if isinstance(command, Warm):
                self._member.warm(command)
            elif isinstance(command, Finish):
                self._finished = True

    def _receive(self) -> None:
        assert self._sock is not None
        for _ in range(PASS):
            frames = transport.recv(self._sock)
            if frames is None:
                return
            try:
                message, _ = wire.decode(frames)
            except ProtocolError as error:
                get_logger().warning("an unreadable message from the broker: %s", error)
                continue
            self._handle(message)

    def _handle(self, message: AnyMessage) -> None:
        if isinstance(message, CancelItems):
            self._shared.cancelled.add(message.uids)
            self._windows.changed()
        elif isinstance(message, Granted):
            self._windows.granted(message.nbytes)
        elif isinstance(message, Revoke):
            self._shared.revoked.add(message.batches)
        elif not isinstance(message, Welcome | Refused | Pulse | Dismiss):
            get_logger().warning("the broker sent a %s on the control socket", type(message).__name__)
            return
        event = self._member.handle(message, now())
        if isinstance(event, Joined):
            event = Joined(event.welcome, open_store(event.welcome.memory))
            self._member.maps = event.store is not None
        self._tell(event)
        if isinstance(message, Welcome):
            self._told_families = b""  # this broker has not seen them

    def _send(self) -> None:
        assert self._sock is not None
        for message in self._member.due(now()):
            if isinstance(message, WorkerBeat) and (families := self._families()) != self._told_families:
                if not transport.send(self._sock, wire.encode(WorkerBeat(message.worker, families))):
                    return
                self._told_families = families
            elif not transport.send(self._sock, wire.encode(message)):
                return
            self._member.sent(message, now())

    def _check(self) -> None:
        if self._member.is_silent(now()):
            get_logger().debug("the broker is silent; looking for it again")
            self._close(goodbye=False)
            self._open()
            self._tell(self._member.reopened(now()))
        if self._unload_at is not None and now() >= self._unload_at:
            self._unload_at = None
            if self._shared.phase is Phase.LOADING:  # the main thread is in C code and does not see the signal
                self._close(goodbye=True)
                exit_now(ExitCode.OK)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _tell(self, event: ToMain | None) -> None:
        if event is None:
            return
        if isinstance(event, Turned):
            get_logger().error("the broker refuses this worker: %s", event.reason)
            self._refused(event.reason)
            if self._shared.phase is Phase.LOADING:  # nothing to finish, and a model may take minutes to load
                exit_now(ExitCode.START)
        elif isinstance(event, Dismissed):
            get_logger().debug("dismissed")
        self._shared.to_main.put(event)

    def _open(self) -> None:
        self._sock = transport.dealer(self._ctx, self._endpoint)
        self._poller.register(self._sock, zmq.POLLIN)

    def _close(self, *, goodbye: bool) -> None:
        assert self._sock is not None
        if goodbye and self._member.worker is not None:
            transport.send(self._sock, wire.encode(Bye(self._member.worker)))
        self._poller.unregister(self._sock)
        self._sock.close(linger=LINGER_MS if goodbye else 0)


def exit_now(code: ExitCode) -> None:
    """End the process from any thread, whatever the others do. Streams are flushed; nothing else runs."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # closed, or its reader has gone
    os._exit(code)

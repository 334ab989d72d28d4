"""The control thread: owns the control socket and the signals, so that a worker is heard while ``forward`` runs.

It decides nothing: :mod:`stages.runtime.membership` does. Signals reach it through :class:`engine.signals.Signals`,
also when the main thread is deep inside C code that lets other threads run.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Container
from typing import Final

import msgspec

from engine import transport, usage
from engine.addresses import RETRY_S, Search
from engine.clock import now
from engine.core import wire
from engine.core.introduction import Introduction, Refusal, Stranger
from engine.core.messages import (
    Bye,
    CancelItems,
    Dismiss,
    Granted,
    Pulse,
    Revoke,
    Welcome,
    WorkerBeat,
)
from engine.errors import ProtocolError
from engine.exitcodes import ExitCode
from engine.log import get_logger
from engine.signals import STOPPING, Signals
from stages.device import gpu_bytes
from stages.runtime.membership import Elsewhere, Membership
from stages.runtime.shared import Dismissed, Finish, Joined, Phase, Shared, Stop, ToMain, Turned, Warm
from stages.runtime.window import Windows
from stages.shm import open_store

LINGER_MS: Final = 500  # for the goodbye to leave
PASS: Final = 100  # messages handled before beats and commands get their turn
HELD_MOST: Final = 1024  # batches that a beat names; nobody is given so many
UNLOAD_S: Final = 0.5  # from a signal while loading to leaving without the main thread's consent


class Control:
    """Started by the main thread once; ends after Finish, or with the process.

    It has a thread and is none: names of ours in a subclass of ``Thread`` could hide some that it has, or will have.
    """

    def __init__(
        self,
        ctx: transport.Context,
        endpoints: transport.Endpoints,
        stage: int,
        who: Introduction,
        shared: Shared,
        windows: Windows,
        *,
        signals: Signals,
        grace_s: float,
        families: Callable[[], bytes],
        beating: Callable[[], object],
        refused: Callable[[str], object],
        ready: Callable[[], object],
    ) -> None:
        self._thread = threading.Thread(target=self._main, name="control", daemon=True)
        self._ctx = ctx
        self._search = Search(endpoints, shared.control_bell.ring)
        self._endpoints: transport.Endpoints | None = None  # by the address at which the broker is being reached
        self._stage = stage  # its number in this process's file, until the broker says what it is there
        self._shared = shared
        self._windows = windows
        self._signals = signals
        self._grace_s = grace_s
        self._families = families
        self._beating = beating
        self._refused = refused
        self._ready = ready
        self._member = Membership(who)
        self._sock: transport.Socket | None = None
        self._losses: transport.Losses | None = None  # of the sockets for results, once there are any
        self._poller = transport.Poller()
        self._told_families = b""
        self._stopping = False
        self._unload_at: float | None = None
        self._finished = False

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; False when it goes on."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Once the thread has ended, and the sockets are closed of whose losses it was told: where nobody listens any
        more ZeroMQ's own thread would wait, and what is still to be sent with it."""
        if self._losses is not None:
            self._losses.sock.close()

    def _main(self) -> None:
        try:
            self._open()
            self._member.opened(now())
            bell, signals = self._shared.control_bell.fileno(), self._signals.fileno()
            self._poller.register(bell, transport.READABLE)
            self._poller.register(signals, transport.READABLE)
            while not self._finished:
                ready = self._poll()
                if signals in ready:
                    self._take_signals()
                if bell in ready:
                    self._shared.control_bell.silence()
                self._take_commands()
                if self._sock is None:
                    self._connect()
                self._receive()
                self._hear_losses()
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
        wake_at = self._member.wake_at(now()) if self._sock is not None else now() + RETRY_S
        if self._unload_at is not None:
            wake_at = min(wake_at, self._unload_at)
        mailbox, bell = self._shared.to_control, self._shared.control_bell
        bell.asleep = True
        ready = self._poller.poll(0 if mailbox.letters else int(max(0.0, wake_at - now()) * 1000) + 1)
        bell.asleep = False
        return dict(ready)

    def _take_signals(self) -> None:
        for number in self._signals.read():
            if number not in STOPPING:
                continue  # the watchdog's
            if self._stopping:
                get_logger().warning("stopped at once by a second signal")
                exit_now(ExitCode.FAILED)
            self._stopping = True
            if self._shared.phase is Phase.LOADING:
                self._unload_at = now() + UNLOAD_S
            self._shared.to_main.post(Stop(now() + self._grace_s))
            self._tell(self._member.leave())

    def _take_commands(self) -> None:
        for command in self._shared.to_control.take():
            if isinstance(command, Warm):
                self._member.warm(command, now())
            elif isinstance(command, Finish):
                self._finished = True
            else:
                self._listen(command.name)

    def _receive(self) -> None:
        for _ in range(PASS):
            if self._sock is None or (frames := transport.recv(self._sock)) is None:
                return
            try:
                message, _ = wire.decode(frames)
            except ProtocolError as error:
                get_logger().warning("an unreadable message from the broker: %s", error)
                continue
            self._handle(message)

    def _handle(self, message: wire.AnyWords) -> None:
        if isinstance(message, CancelItems):
            self._shared.cancelled.add(message.uids)
            self._windows.changed()
        elif isinstance(message, Granted):
            self._windows.granted(message.nbytes)
        elif isinstance(message, Revoke):
            self._shared.revoked.add(message.batches)
        elif not isinstance(message, Welcome | Refusal | Stranger | Pulse | Dismiss):
            get_logger().warning("the broker sent a %s on the control socket", type(message).__name__)
            return
        event = self._member.handle(message, now())
        if isinstance(event, Elsewhere):
            self._stage = event.stage
            self._reopen()
            return
        if isinstance(event, Joined):
            event = Joined(event.welcome, self._endpoints, open_store(event.welcome.memory))
            self._member.maps = event.store is not None
        self._tell(event)
        if isinstance(message, Welcome):
            self._told_families = b""  # this broker has not seen them

    def _listen(self, name: str) -> None:
        if self._losses is None:
            self._losses = transport.Losses(self._ctx)
            self._poller.register(self._losses.sock, transport.READABLE)
        self._losses.hear(name)

    def _hear_losses(self) -> None:
        if self._losses is None:
            return
        lost = False
        while (frames := transport.recv(self._losses.sock)) is not None:
            lost = self._losses.lost(frames) is not None or lost
        if lost:
            get_logger().debug("a connection that results went by is lost")
            self._tell(self._member.cut(now()))

    def _send(self) -> None:
        if self._sock is None:
            return
        for message in self._member.due(now()):
            if isinstance(message, WorkerBeat):
                self._beating()
                families = self._families()
                news = families if families != self._told_families else b""
                newest, held = self._shared.held.of(message.worker)
                used = usage.whole()
                beat = msgspec.structs.replace(
                    message,
                    families=news,
                    device_bytes=gpu_bytes() or 0,
                    newest=newest,
                    held=held[:HELD_MOST],
                    resident_bytes=used.resident_bytes,
                    cpu_us=used.cpu_us,
                    descriptors=used.descriptors,
                    descriptors_most=used.descriptors_most,
                    began_s=used.began_s,
                )
                if not transport.send(self._sock, wire.encode(beat)):
                    return
                self._told_families = families
            elif not transport.send(self._sock, wire.encode(message)):
                return
            self._member.sent(message, now())

    def _check(self) -> None:
        if self._member.is_ready(now()):
            self._ready()
        if self._sock is not None and self._member.is_silent(now()):
            get_logger().debug("the broker is silent; looking for it again")
            self._reopen()
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
        self._shared.to_main.post(event)

    def _reopen(self) -> None:
        self._close(goodbye=False)
        self._open()
        self._tell(self._member.reopened(now()))

    def _open(self) -> None:
        """Connect, as soon as it is known where to."""
        self._search.begin()
        self._connect()

    def _connect(self) -> None:
        self._endpoints = self._search.result(now())
        if self._endpoints is not None:
            self._sock = transport.dealer(self._ctx, self._endpoints.control(self._stage))
            self._poller.register(self._sock, transport.READABLE)

    def _close(self, *, goodbye: bool) -> None:
        if self._sock is None:
            return
        if goodbye and self._member.worker is not None:
            transport.send(self._sock, wire.encode(Bye(self._member.worker)))
        self._poller.unregister(self._sock)
        self._sock.close(linger=LINGER_MS if goodbye else 0)
        self._sock = None


def exit_now(code: ExitCode) -> None:
    """End the process from any thread, whatever the others do. Streams are flushed; nothing else runs."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # closed, or its reader has gone
    os._exit(code)

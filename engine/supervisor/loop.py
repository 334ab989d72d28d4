"""The supervisor's event loop: turns signals, status lines and deaths into events, and actions into processes.

Single-threaded. What to do is decided by :class:`engine.core.lifecycle.Machine`; this file only looks and obeys. It
starts what it starts with SIGKILL as their parent-death signal (each child asks for that itself), so that even a
supervisor that is killed leaves nothing behind.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any, Final

from engine.clock import now
from engine.core import killings
from engine.core import processes as life
from engine.core.lifecycle import ChildState, Machine, Phase
from engine.core.liveness import LOOK_S
from engine.core.processes import Child, Kind
from engine.core.vitality import Vitals
from engine.log import TRACEBACK, get_logger
from engine.oom import OomWatch
from engine.proc import sample
from engine.process import BEAT_LINE, STOPPING_LINE, Spawned, adopt_orphans, children, signal_group, spawn
from engine.signals import STOPPING, Signals
from engine.supervisor.changes import Changes, Refused, placed
from engine.supervisor.daemons import Daemon
from engine.supervisor.development import Development
from engine.supervisor.family import Commands
from engine.supervisor.growing import Grower
from engine.supervisor.keeper import VARIABLE, Keeper, end
from engine.supervisor.orders import HEALTH, Asker, Orders
from engine.supervisor.scaling import Scaler
from engine.supervisor.screen import Screen

LINE_MAX: Final = 64 * 1024  # bytes of a status line; a child that sends longer ones is not one of ours
ORPHANS_S: Final = 0.2  # for what a worker left to be killed; what takes longer is the sweep's
REAP_S: Final = 0.02  # a death that the kernel tells two processes of at once is seen by both within this time
SWEEP_S: Final = 2.0  # for what survives the order of stop to be killed and reaped

log = get_logger()


class Loop:
    """Runs one deployment to its end. Make it and call :meth:`run` in the main thread."""

    def __init__(
        self,
        machine: Machine,
        commands: Commands,
        environments: Mapping[Child, Mapping[str, str]],
        *,
        daemons: Mapping[Child, Daemon],
        on_url: Callable[[str, str], None],
        on_serving: Callable[[], None],
        on_trial: Callable[[str], None] = lambda trial: None,
        on_stopping: Callable[[float], None] = lambda within_s: None,
        on_look: Callable[[], None] = lambda: None,
        changes: Changes | None = None,
        scaler: Scaler | None = None,
        grower: Grower | None = None,
        orders_in: Path | None = None,
        screen: Screen | None = None,
        development: Development | None = None,
    ) -> None:
        """``changes`` says how the deployment can be changed while it runs, ``scaler`` when its demand asks for that,
        and ``grower`` when its brokers do; ``orders_in`` is the folder of the socket on which others do. ``screen``
        shows what happens, and ``development`` sees to it that what is edited is served."""
        self._machine = machine
        self._commands = commands
        self._environments = environments
        self._daemons = dict(daemons)
        self._on_url = on_url
        self._on_serving = on_serving
        self._on_stopping = on_stopping
        self._on_look = on_look
        self._on_trial = on_trial
        self._selector = selectors.DefaultSelector()
        self._events: deque[life.Event] = deque()
        self._running: dict[int, tuple[Child, Spawned]] = {}  # by pid
        self._pids: dict[Child, int] = {}
        self._lines: dict[int, bytes] = {}  # unfinished status lines, by pid; no entry: the pipe is closed
        self._vitals: dict[int, Vitals] = {}  # by pid
        self._oom = OomWatch()
        self._look_at = 0.0
        self._reap_at = inf
        self._token = secrets.token_hex(16)
        self._spawned = 0
        self._marks: dict[int, str] = {}  # by pid: what whatever a worker starts inherits
        self._mourned: set[Child] = set()  # daemons whose death has been told
        self._untold: set[Child] = set()  # who are starting while there is another configuration to read
        self._foreign: set[int] = set()  # children of this process that are somebody else's business
        self._changes = changes
        self._scaler = scaler
        self._grower = grower
        self._orders_in = orders_in
        self._screen = screen
        self._development = development
        self._askers: list[Asker] = []  # who wait for the present change
        # A hang-up is the end of the terminal that this was started on; where there is none, it asks for a reload.
        self._reloads = changes is not None and changes.can_reload and not _has_terminal()

    def run(self, signals: Signals) -> None:
        """Until the machine says STOPPED. No process of the deployment is left then, also if this raises."""
        was_reaper = adopt_orphans()
        self._foreign = children()
        self._keeper = Keeper(self._token)
        self._selector.register(signals, selectors.EVENT_READ, lambda: self._read_signals(signals))
        orders = None if self._orders_in is None else Orders(self._orders_in, self._change)
        if orders is not None:
            self._selector.register(orders, selectors.EVENT_READ, lambda: self._accept(orders))
        try:
            self._post(life.Begin())
            self._reap()  # a daemon that was running already may have ended before anybody listened
            while self._machine.phase is not Phase.STOPPED:
                wake_at = min(self._look_at, self._reap_at)
                if (due := self._machine.wake_at) is not None:
                    wake_at = min(wake_at, due)
                if self._screen is not None:
                    wake_at = min(wake_at, self._screen.wake_at)
                if self._development is not None:
                    wake_at = min(wake_at, self._development.wake_at)
                for key, _ in self._selector.select(max(0.0, wake_at - now())):
                    key.data()
                if now() >= self._reap_at:
                    self._reap()
                if now() >= self._look_at:
                    self._look()
                if self._screen is not None and now() >= self._screen.wake_at:
                    self._screen.look(self._pids)
                if self._development is not None and now() >= self._development.wake_at:
                    self._develop(self._development)
                self._post(life.Tick())
        finally:
            self._sweep()
            if orders is not None:
                orders.close()
            self._selector.close()
            adopt_orphans(was_reaper)

    # --- events in

    def _post(self, event: life.Event) -> None:
        """Let the machine handle an event, and those that carrying out its actions gives rise to."""
        self._events.append(event)
        while self._events:
            event = self._events.popleft()
            self._show(event)
            for action in self._machine.handle(event, now()):
                self._show(action)
                self._carry_out(action)

    def _show(self, what: life.Event | life.Action) -> None:
        if self._screen is not None:
            self._screen.note(what)

    def _read_signals(self, signals: Signals) -> None:
        died = False
        for number in signals.read():
            if number == signal.SIGHUP and self._reloads:
                self._change({"do": "reload"}, None)
            elif number in STOPPING:
                if self._development is not None:
                    self._development.starts_again = False
                self._post(life.StopAsked(number))
            died = died or number == signal.SIGCHLD
        if died:  # while it serves, its broker is to see how a worker ended, which nobody can once it is reaped
            wait_s = REAP_S if self._machine.phase is Phase.SERVING else 0.0
            self._reap_at = min(self._reap_at, now() + wait_s)

    def _reap(self) -> None:
        """Collect every process that has ended: children, daemons, and orphans that were left to us (as to PID 1)."""
        self._reap_at = inf
        for pid in _ended(self._running, self._daemons.values()):
            if pid in self._running:
                self._bury(pid)
            elif pid == self._keeper.pid:
                self._keeper.renew()
            elif all(daemon.pid != pid for daemon in self._daemons.values()):
                os.waitpid(pid, os.WNOHANG)
        for child, daemon in self._daemons.items():
            if child not in self._mourned and daemon.pid and (code := daemon.exit_code()) is not None:
                self._mourned.add(child)
                self._events.append(life.Died(child, code))
        if self._events:
            self._post(life.Tick())

    def _look(self) -> None:
        """See from outside whether everybody lives."""
        for pid, vitals in self._vitals.items():
            child = self._running[pid][0]
            seen = sample(pid, threads=vitals.is_doubtful)
            how = "" if seen is None else vitals.look(seen, now())
            if how and self._pids.get(child) == pid:  # else it was left behind as unkillable
                self._events.append(life.Hung(child, how))
        self._oom.look(self._running)
        self._on_look()
        self._look_at = now() + LOOK_S

    def _bury(self, pid: int) -> None:
        """Note the death of a child that is still a zombie, so that its pid and its group cannot be anybody else's."""
        child, spawned = self._running.pop(pid)
        self._vitals.pop(pid, None)
        self._read_status(child, spawned)  # its last words say why
        self._forget_status(spawned)
        signal_group(pid, signal.SIGKILL)  # what it started and did not stop
        if (mark := self._marks.pop(pid, "")) and child.kind is Kind.WORKER:
            end(mark, ORPHANS_S)  # what had left its group
        code = spawned.process.wait()
        reason = killings.TEXT if code in killings.CODES and self._oom.killed(pid) else ""
        if self._pids.get(child) == pid:  # else it had been given up as unkillable
            del self._pids[child]
            self._untold.discard(child)
            if self._scaler is not None:
                self._scaler.forget(child)
            self._events.append(life.Died(child, code, reason))

    def _read_status(self, child: Child, spawned: Spawned) -> None:
        while spawned.pid in self._lines:
            try:
                data = os.read(spawned.status_fd, LINE_MAX)
            except BlockingIOError:
                return
            if not data:
                self._forget_status(spawned)
                return
            *lines, rest = (self._lines[spawned.pid] + data).split(b"\n")
            self._lines[spawned.pid] = rest[-LINE_MAX:]
            for line in lines:
                if line in (BEAT_LINE, STOPPING_LINE):
                    if (vitals := self._vitals.get(spawned.pid)) is not None:  # else these are its last words
                        (vitals.beat if line == BEAT_LINE else vitals.rest)()
                else:
                    self._read_line(child, line)

    def _read_line(self, child: Child, line: bytes) -> None:
        try:
            told = json.loads(line)
            if told["event"] == "imported":
                if self._development is not None:
                    self._development.imported(child.stage, list(map(str, told["files"])))
                return
            if told["event"] == "full":
                self._hear_full(child)
                return
            demand = _demand(told)
            event = None if demand is not None else _event(child, told)
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("%s sent an unreadable status line: %r", child.name, line[:200])
            return
        if event is None:
            self._hear_demand(child, demand or {})
            return
        if child.kind is Kind.FRONTEND and isinstance(event, life.Ready) and "url" in told:
            self._on_url(str(told["url"]), str(told.get("on", "")))
        if child.kind is Kind.WORKER and isinstance(event, life.Ready) and "trial" in told:
            self._on_trial(str(told["trial"]))
        if isinstance(event, life.Ready) and child in self._untold:
            self._untold.discard(child)
            self._send(child, signal.SIGHUP)
        self._post(event)
        if isinstance(event, life.Waiting):
            self._rescale(event.left_s)

    def _hear_demand(self, broker: Child, figures: Mapping[str, float]) -> None:
        if self._scaler is not None:
            self._scaler.hear(broker, figures, now())
            self._rescale()

    def _hear_full(self, broker: Child) -> None:
        if self._grower is not None and (event := self._grower.hear(broker, now())) is not None:
            self._post(event)

    def _rescale(self, asked: Collection[str] = ()) -> None:
        """More workers, or fewer, if the demand has it so."""
        if self._scaler is None:
            return
        brokers = [child for child in self._pids if child.kind is Kind.BROKER]
        if (event := self._scaler.look(brokers, asked, now())) is not None:
            self._tell(Kind.BROKER)
            self._post(event)
            if self._changes is not None:
                self._changes.keep(self._machine.children)

    def _tell(self, *kinds: Kind) -> None:
        """That there is another configuration to read. One that is starting would die of the signal, and may have read
        the former one already: it is told when it is ready."""
        for child in self._pids:
            if child.kind in kinds:
                if (state := self._machine.state(child)) is ChildState.READY:
                    self._send(child, signal.SIGHUP)
                elif state is ChildState.STARTING:
                    self._untold.add(child)

    def _forget_status(self, spawned: Spawned) -> None:
        if self._lines.pop(spawned.pid, None) is not None:
            self._selector.unregister(spawned.status_fd)
            os.close(spawned.status_fd)

    # --- orders

    def _accept(self, orders: Orders) -> None:
        asker = orders.accept()
        if asker is not None:
            self._selector.register(asker, selectors.EVENT_READ, lambda: self._hear(orders, asker))

    def _hear(self, orders: Orders, asker: Asker) -> None:
        """One order, and nothing more, from one connection."""
        fd = asker.fileno()
        if not orders.read(asker):
            self._selector.unregister(fd)

    def _change(self, order: Mapping[str, Any], asker: Asker | None) -> None:
        """Change the deployment, if that can be done; ``asker`` is told, and the log. Or say how it is."""
        if order == HEALTH and asker is not None:
            asker.end(self._machine.unwell)
            return
        try:
            event = self._event_of(order)
        except Refused as error:
            log.error("not changed: %s", error)
            if asker is not None:
                asker.end(str(error))
            return
        if asker is not None:
            self._askers.append(asker)
        self._post(event)

    def _event_of(self, order: Mapping[str, Any]) -> life.Replace:
        if self._changes is None:
            raise Refused("this cannot be changed while it runs")
        match order:
            case {"do": "reload"}:
                return self._changes.reload()
            case {"do": "scale", "nums": dict(nums)} if all(type(num) is int for num in nums.values()):
                return self._changes.scale(nums)
            case _:
                raise Refused("there is no such order")

    def _develop(self, development: Development) -> None:
        """Serve what has been edited, if something has."""
        assert self._changes is not None
        event = development.look(self._changes, serving=self._machine.phase is Phase.SERVING)
        if event is not None:
            if self._screen is not None:
                self._screen.hush(True)
            self._post(event)
        elif development.starts_again and self._machine.phase is Phase.SERVING:
            self._post(life.StopAsked(signal.SIGTERM))

    def _commit(self) -> None:
        assert self._changes is not None
        self._tell(*self._changes.commit())

    def _replaced(self, error: str) -> None:
        assert self._changes is not None
        self._changes.end()
        self._changes.keep(self._machine.children)
        if self._scaler is not None:
            self._scaler.settle()
        if self._grower is not None:
            self._grower.settle(error, now())
        if self._development is not None and self._development.is_under_way:
            if self._screen is not None:
                self._screen.hush(False)
            self._development.over(error, stopping=self._machine.phase is not Phase.SERVING)
        else:
            log.log(logging.ERROR if error else logging.INFO, "not changed: %s" if error else "changed%s", error)
        pids = [pid for child, pid in self._pids.items() if child.kind is Kind.WORKER]
        for asker in self._askers:
            asker.end(error, pids)
        self._askers.clear()

    # --- actions out

    def _carry_out(self, action: life.Action) -> None:
        match action:
            case life.Spawn(child):
                self._spawn(child)
            case life.Terminate(child):
                self._send(child, signal.SIGTERM)
            case life.Kill(child):
                self._send(child, signal.SIGKILL)
            case life.Say(text, level, child, trace):
                log.log(level.value, text, extra={**_fields(child), **({TRACEBACK: trace} if trace else {})})
                for asker in self._askers:
                    asker.say(f"{text}\n{trace}" if trace else text)
            case life.Committed():
                self._commit()
            case life.Replaced(error):
                self._replaced(error)
            case life.Serving(took_s):
                log.info("every process is ready after %.1f s", took_s)
                self._on_serving()
            case life.Stopping(within_s):
                self._on_stopping(within_s + SWEEP_S)

    def _spawn(self, child: Child) -> None:
        if child.kind is Kind.DAEMON:
            self._start_daemon(child)
            return
        self._spawned += 1
        mark = f"{self._token}/{self._spawned}/"
        env = {**self._environments.get(placed(child), {}), VARIABLE: mark}
        if self._development is not None and child.kind is Kind.WORKER:
            env.update(self._development.environment)
        try:
            spawned = spawn(lambda status_fd: self._commands(child, status_fd), env=env)
        except OSError as error:  # out of processes or memory; it is tried again if it ever ran
            self._events.append(life.Died(child, None, f"could not be run: {error}"))
            return
        self._running[spawned.pid] = child, spawned
        self._vitals[spawned.pid] = Vitals(now())
        self._marks[spawned.pid] = mark
        self._pids[child] = spawned.pid
        self._lines[spawned.pid] = b""
        self._oom.look(self._running)
        self._selector.register(spawned.status_fd, selectors.EVENT_READ, lambda: self._read_status(child, spawned))

    def _start_daemon(self, child: Child) -> None:
        before = children()
        try:
            self._daemons[child].start()
        except Exception as error:  # user code: its own words, once, and the deployment does not start
            log.exception("%s cannot be started", child.name)
            self._events.append(life.Died(child, None, f"could not be started: {error}"))
            return
        self._foreign |= children() - before  # multiprocessing's helpers are its own to end
        self._events.append(life.Ready(child))

    def _send(self, child: Child, number: int) -> None:
        if child in self._daemons:
            self._daemons[child].send(number)
        elif (pid := self._pids.get(child)) is not None:
            # Not Popen.send_signal: that reaps, and a death is noted in one place only. The pid cannot be anybody
            # else's before it is reaped.
            os.kill(pid, number)
            if number == signal.SIGKILL:
                signal_group(pid, number)

    # --- the end

    def _sweep(self) -> None:
        """Nothing outlives its supervisor: kill and reap what is left, orphans of our children included."""
        for pid in self._running:
            signal_group(pid, signal.SIGKILL)
        for daemon in self._daemons.values():
            daemon.kill()
        self._keeper.close()
        deadline = now() + SWEEP_S
        # Killing an orphan can orphan its children in turn, which then become ours.
        while (left := (children() - self._foreign) | set(self._running)) and now() < deadline:
            for pid in left:
                self._end(pid)
            time.sleep(0.005)  # nothing else is to be done; deaths come within a scheduler tick
        for _, spawned in self._running.values():
            self._forget_status(spawned)

    def _end(self, pid: int) -> None:
        if pid in self._running:
            spawned = self._running[pid][1]
            if spawned.process.poll() is not None:
                del self._running[pid]
                self._forget_status(spawned)
            return
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
        except (ProcessLookupError, ChildProcessError):
            pass  # it ended and was reaped in between


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _ended(running: Mapping[int, tuple[Child, Spawned]], daemons: Iterable[Daemon]) -> Iterator[int]:
    """Pids of children that are zombies; the caller reaps each before it asks for the next."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13: no looking without reaping, so only known ones
        yield from [pid for pid, (_, spawned) in running.items() if spawned.process.poll() is not None]
        return
    last = 0
    while True:
        for daemon in daemons:
            daemon.exit_code()  # reaps, if it has ended
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        if found.si_pid == last:  # its owner's object did not reap it
            os.waitpid(last, os.WNOHANG)
        else:
            last = found.si_pid
            yield last


def _demand(told: dict[str, Any]) -> dict[str, float] | None:
    """How many workers stages need, if that is what is told."""
    if told["event"] != "demand":
        return None
    return {str(stage): float(figure) for stage, figure in told["workers"].items()}


def _event(child: Child, told: dict[str, Any]) -> life.Event:
    match told["event"]:
        case "loading":
            return life.Loading(child)
        case "warming":
            return life.Warming(child, int(told["done"]), int(told["of"]))
        case "ready":
            return life.Ready(child)
        case "waiting":
            return life.Waiting({str(stage): float(left_s) for stage, left_s in told["left_s"].items()})
        case "worn":
            return life.Worn(child, str(told["reason"]))
        case "failed":
            return life.Failed(child, str(told["reason"]), str(told.get("trace", "")))
        case other:
            raise ValueError(f"no such event: {other!r}")


def _fields(child: Child | None) -> dict[str, Any]:
    if child is None or child.kind is not Kind.WORKER:
        return {}
    return {"stage": child.stage, "worker": child.slot}

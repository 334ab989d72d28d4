"""The supervisor: starts the processes of a deployment, restarts what dies, stops them in order.

    family    who they are, and by which command each starts      rundir    the private directory and its lock
    loop      the event loop; obeys engine.core.lifecycle         address   the HTTP port and how it is shown
    daemons   processes that a script wants beside its own        changes   another configuration while it runs
    orders    the socket on which that is asked for               keeper    ends what dead processes leave behind
    parts     which of all these run on this host                 screen    how a terminal shows it all
    scaling   numbers of workers that follow the demand           logfile   where the log goes then
    growing   more brokers where those that there are are full    sources   which files have been edited
    systemd   what it is told, where it runs a deployment         development  serves what has

Imports neither zmq, Falcon, torch nor user code: it must not be able to die of any of them, and it must start in a
blink.
"""

from __future__ import annotations

import dataclasses
import select
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from engine import descriptors
from engine.config import Deployment, dump, run_dir
from engine.core.backoff import DEFAULT, Backoff
from engine.core.demand import USUAL, Windows
from engine.core.growth import Growth
from engine.core.lifecycle import STARTS_LEAST, Machine, Outcome
from engine.core.processes import Child, Kind
from engine.cpus import available_cpus
from engine.errors import ConfigError, StartError
from engine.exitcodes import ExitCode
from engine.log import get_logger
from engine.signals import STOPPING, Signals
from engine.supervisor import family
from engine.supervisor.address import banner, check_port, part_banner
from engine.supervisor.changes import Changes
from engine.supervisor.daemons import Daemons, named
from engine.supervisor.development import LOOK_S, Development
from engine.supervisor.family import Commands
from engine.supervisor.growing import Grower
from engine.supervisor.loop import Loop
from engine.supervisor.parts import FRONTEND, WHOLE, Parts
from engine.supervisor.rundir import Busy, Withdrawn, claim, make_private, mark_stopping, write_snapshot
from engine.supervisor.scaling import Scaler
from engine.supervisor.screen import opened, to_stdout, usable
from engine.supervisor.systemd import Systemd

__all__ = ["Busy", "claim", "develop", "make_private", "run", "run_workers"]

# A process that fails to start with one of these says more than "could not start": pass it on.
_PASSED_ON: Final = frozenset({ExitCode.CONFIG, ExitCode.BUSY})

log = get_logger()


def run(
    deployment: Deployment,
    *,
    daemons: Daemons = (),
    commands: Commands | None = None,
    policy: Backoff = DEFAULT,
    reread: Callable[[], Deployment] | None = None,
    parts: Parts = WHOLE,
    windows: Windows = USUAL,
    development: Development | None = None,
    systemd: Systemd | None = None,
    growth: Growth | None = None,
) -> ExitCode:
    """Run the deployment, or these parts of it, in the foreground until it is stopped or fails; its exit code.

    SIGTERM and SIGINT drain and stop it within about ``grace`` plus 8 seconds, and so does the SIGHUP of a terminal
    that is closed; a SIGINT while it stops ends it at once. With ``reread``, which reads the file once more, it can be
    changed while it runs (:mod:`engine.supervisor.changes`), and a SIGHUP where there is no terminal asks for that.
    ``daemons`` are processes that are started with it, are stopped with it, and whose end ends it:
    ``multiprocessing.Process`` or ``subprocess.Popen`` objects, or a mapping of names to such. ``commands`` replaces
    how children are started, ``windows`` for how long a demand has to hold, ``growth`` when there are more brokers.
    With ``development`` what is edited is served (:func:`develop`). ``systemd``, if it has been asked already whom to
    tell. A predecessor of this name that is stopping is waited for. Main thread only. Says on stdout, as its last
    lines, where the deployment listens, or which parts are ready.
    """
    held = named(daemons)
    systemd = systemd or Systemd()
    on_screen = usable()  # as it is now: once it is shown there, stderr is a file
    reading = _Reading(parts, on_screen=on_screen)
    deployment = reading.settled(deployment)
    again = None if reread is None else lambda: reading.settled(reread())
    descriptors.allow_many()
    try:
        with Signals() as signals, claim(run_dir(deployment), deployment.engine.name, _pause(signals)) as folder:
            if parts.has(FRONTEND):
                check_port(deployment.frontend.address, deployment.frontend.port, _pause(signals))
            write_snapshot(folder, dump(deployment))
            members = family.of(deployment, parts)
            environments = family.environments(deployment, members)
            changes = Changes(
                deployment,
                folder,
                again,
                environments,
                lambda found: family.of(found, parts),
                parts.scaled,
                reading.recounted,
            )
            keepers = {Child(Kind.DAEMON, daemon.name): daemon for daemon in held}
            machine = Machine(
                [*members, *keepers],
                grace_s=deployment.engine.grace,
                delay_s=deployment.frontend.drain_delay,
                policy=policy,
                starts_most=_starts_most(),
            )
            with opened(deployment, folder, environments, list(keepers)) as screen:
                listening = _Listening(changes, folder, parts, to_stdout if screen is None else screen.say, systemd)

                def handle_stopping(within_s: float) -> None:
                    begins_anew = development is not None and (
                        development.starts_again or machine.outcome is Outcome.NOT_STARTED
                    )
                    listening.handle_stopping(within_s, ends=not begins_anew)

                loop = Loop(
                    machine,
                    commands or family.command_line(changes.snapshot),
                    environments,
                    daemons=keepers,
                    on_url=listening.handle_url,
                    on_serving=listening.handle_serving,
                    on_trial=listening.handle_trial,
                    on_stopping=handle_stopping,
                    on_look=systemd.alive,
                    changes=changes,
                    scaler=Scaler(changes, machine, windows),
                    grower=Grower(changes, parts, growth) if development is None else None,
                    orders_in=folder,
                    screen=screen,
                    development=development,
                )
                loop.run(signals)
                code = _ended(machine, deployment.engine.name)
                if screen is not None and code is not ExitCode.OK:
                    screen.say_place()
                return code
    except Withdrawn:
        log.info("%s: stopped before it started", deployment.engine.name)
        return ExitCode.OK
    except Busy as error:
        log.error("%s", error)
        return ExitCode.BUSY
    except StartError as error:
        log.error("%s did not start: %s", deployment.engine.name, error)
        return ExitCode.START
    finally:
        for daemon in held:  # one that was already running when the start was refused
            daemon.kill()


def develop(deployment: Deployment, reread: Callable[[], Deployment], parts: Parts = WHOLE) -> ExitCode:
    """:func:`run`, and what is edited is served: workers are replaced, and what takes another start gets one. One that
    could not start is tried again when something has changed."""
    systemd = Systemd()  # once: for whoever asks later nothing is left in the environment
    try:
        return _develop(deployment, reread, parts, systemd)
    finally:
        systemd.stopping()


def _develop(deployment: Deployment, reread: Callable[[], Deployment], parts: Parts, systemd: Systemd) -> ExitCode:
    while True:
        development = Development(deployment.file)
        code = run(deployment, reread=reread, parts=parts, development=development, systemd=systemd)
        if code is ExitCode.OK and not development.starts_again:
            return code
        if code not in (ExitCode.OK, ExitCode.START):
            return code
        try:
            with Signals() as signals:
                if code is ExitCode.START:
                    _wait_edit(development, signals, systemd)
                deployment = _reread(development, reread, signals, systemd)
        except Withdrawn:
            return code


def _reread(
    development: Development, reread: Callable[[], Deployment], signals: Signals, systemd: Systemd
) -> Deployment:
    """What the file says, once there is nothing wrong with it. Raises Withdrawn."""
    while True:
        try:
            return reread()
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", problem)
        _wait_edit(development, signals, systemd)


def _wait_edit(development: Development, signals: Signals, systemd: Systemd) -> None:
    """Raises Withdrawn."""
    development.fail()
    log.info("waiting for a change of its files  (stop with Ctrl-C)")
    pause = _pause(signals)
    while not development.has_settled():
        systemd.alive()
        if not pause(LOOK_S):
            raise Withdrawn


def run_workers(
    deployment: Deployment,
    stage: str,
    num: int | None = None,
    *,
    commands: Commands | None = None,
    policy: Backoff = DEFAULT,
    reread: Callable[[], Deployment] | None = None,
) -> ExitCode:
    """Run ``num`` workers of one stage (None: as many as the file says), for a broker that somebody else runs;
    otherwise as :func:`run`, down to the SIGHUP that replaces them one by one by what ``reread`` gives.

    Takes no lock and makes no run directory: there may be any number of these, on any host.
    """

    def group(whole: Deployment) -> Deployment:
        """All of those that are asked for in so many words are to work: none is a spare."""
        stages = [
            dataclasses.replace(spec, num=num or spec.num, spare=0) if spec.name == stage else spec
            for spec in whole.stages
        ]
        return dataclasses.replace(whole, stages=tuple(stages))

    def members(whole: Deployment) -> list[Child]:
        return [family.worker(whole, stage, slot) for slot in range(1, whole.stage(stage).num + 1)]

    deployment = group(deployment)
    workers = members(deployment)
    name = f"{len(workers)} worker{'s' if len(workers) > 1 else ''} of {stage}"
    descriptors.allow_many()
    try:
        with Signals() as signals, tempfile.TemporaryDirectory(prefix="stageline-") as made:
            folder = Path(made)
            write_snapshot(folder, dump(deployment))
            environments = family.environments(deployment, workers)
            again = None if reread is None else lambda: group(reread())
            changes = Changes(deployment, folder, again, environments, members)
            machine = Machine(workers, grace_s=deployment.engine.grace, policy=policy, starts_most=_starts_most())
            loop = Loop(
                machine,
                commands or family.command_line(changes.snapshot),
                environments,
                daemons={},
                on_url=lambda url, on: None,
                on_serving=lambda: None,
                changes=changes,
            )
            loop.run(signals)
            return _ended(machine, name)
    except StartError as error:
        log.error("%s did not start: %s", name, error)
        return ExitCode.START


def _starts_most() -> int:
    """Processes that start at once: enough to keep every CPU busy while some of them read from a disk."""
    return max(STARTS_LEAST, 2 * len(available_cpus()))


def _pause(signals: Signals) -> Callable[[float], bool]:
    """Waits, unless told to stop."""

    def pause(seconds: float) -> bool:
        select.select([signals], [], [], seconds)
        return not any(number in STOPPING for number in signals.read())

    return pause


def _ended(machine: Machine, name: str) -> ExitCode:
    if machine.outcome is Outcome.STOPPED:
        log.info("%s stopped", name)
        return ExitCode.OK
    if machine.outcome is Outcome.FAILED:
        log.error("%s stopped: %s", name, machine.reason)
        return ExitCode.FAILED
    log.error("%s did not start", name)  # the reason was told when it was met
    return next((code for code in _PASSED_ON if code == machine.failed_code), ExitCode.START)


class _Reading:
    """Makes of what a file says what these parts of it are here, as its supervisor needs it; and remembers what it has
    left to the machine."""

    def __init__(self, parts: Parts, *, on_screen: bool) -> None:
        self._parts = parts
        self._on_screen = on_screen
        self._counts = False  # the processes of the frontend are

    def settled(self, deployment: Deployment) -> Deployment:
        self._counts = deployment.frontend.workers == "auto"
        return family.settled(deployment, self._parts, on_screen=self._on_screen)

    def recounted(self, deployment: Deployment) -> Deployment:
        """The same with other cells."""
        if not self._counts:
            return deployment
        frontend = dataclasses.replace(deployment.frontend, workers="auto")
        return family.with_frontends(dataclasses.replace(deployment, frontend=frontend), self._parts)


class _Listening:
    """Where the frontend listens: remembered for its restarts, told to the user once. And who else is told how it is:
    systemd, and the next supervisor of this name."""

    def __init__(
        self, changes: Changes, folder: Path, parts: Parts, say: Callable[[str], None], systemd: Systemd
    ) -> None:
        self._changes = changes
        self._say = say
        self._systemd = systemd
        self._parts = parts
        self._folder = folder
        self._url = ""
        self._on = ""  # and where it listens besides
        self._trial: str | None = None

    def handle_url(self, url: str, on: str) -> None:
        first, self._url, self._on = not self._url, url, on
        port = urlsplit(url).port
        deployment = self._changes.deployment
        if first and port and deployment.frontend.port == 0:
            # A frontend that is restarted must come back where its clients know it.
            frontend = dataclasses.replace(deployment.frontend, port=port)
            self._changes.deployment = dataclasses.replace(deployment, frontend=frontend)
            write_snapshot(self._folder, dump(self._changes.deployment))

    def handle_trial(self, trial: str) -> None:
        self._trial = trial

    def handle_serving(self) -> None:
        deployment = self._changes.deployment
        self._systemd.ready()
        if not self._parts.has(FRONTEND):
            self._say(part_banner(deployment, self._parts))
            return
        self._say(banner(deployment, self._url or _configured(deployment), self._trial, self._on))

    def handle_stopping(self, within_s: float, *, ends: bool) -> None:
        """``ends``: with it this process does."""
        if ends:
            self._systemd.stopping()
        mark_stopping(self._folder, within_s)


def _configured(deployment: Deployment) -> str:
    host, port = deployment.frontend.address, deployment.frontend.port
    scheme = "https" if deployment.frontend.certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

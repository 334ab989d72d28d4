"""The broker process: makes a broker, waits for a signal, drains it, ends."""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Callable
from itertools import zip_longest
from time import process_time
from typing import Final

from engine import descriptors, usage
from engine.broker.service import JOIN_S, Broker
from engine.clock import now as clock
from engine.config import Deployment
from engine.core.ebb import Ebb
from engine.core.fullness import Fullness
from engine.core.liveness import BEAT_S
from engine.cpus import usable_cpus
from engine.errors import ConfigError, StartError
from engine.exitcodes import ExitCode
from engine.process import Notifier, give_back, stay_around, tune_garbage_collection
from engine.signals import STOPPING, Signals

log: Final = logging.getLogger("stageline.broker")


def serve(
    deployment: Deployment,
    notify: Notifier,
    cell: int = 0,
    *,
    parent: int = 0,
    stopping: Callable[[float], None] = lambda within_s: None,
    reread: Callable[[], Deployment] | None = None,
) -> int:
    """Run the broker of a cell until SIGTERM or SIGINT. Returns the exit code of the process. ``parent``: the
    supervisor that has started it; 0: nobody has. ``stopping`` is told how
    many seconds the stop may take, once it begins. With ``reread``, SIGHUP asks for the deployment anew; else it stops
    it too."""
    descriptors.allow_many()
    os.umask(0o077)  # ipc sockets are for this user alone
    with Signals(STOPPING) as signals:  # before "ready": a stop may follow it at once
        try:
            stay_around()
            broker = Broker(deployment, cell, parent)
            broker.start()
        except StartError as error:
            log.error("the broker cannot start: %s", error)
            notify.send("failed", reason=str(error))
            return ExitCode.BUSY if "in use" in str(error) else ExitCode.START
        tune_garbage_collection()
        log.info(
            "broker ready",
            extra={"endpoint": broker.endpoints.front, "epoch": broker.epoch, "threads": broker.threads},
        )
        workers = sum(stage.num for stage in deployment.stages)
        needs = descriptors.broker_needs(workers, len(deployment.stages), deployment.frontend.processes)
        if needs > descriptors.limit():
            log.warning(
                "the broker may run out of descriptors: raise the hard limit (ulimit -Hn)",
                extra={"workers": workers, "needs": needs, "limit": descriptors.limit()},
            )
        if deployment.engine.is_open:
            log.warning(
                "insecure: whoever reaches the broker's ports can read and answer requests, and stop the service; name "
                "a key (`engine keys new`), or leave bind out for private sockets",
                extra={"bind": deployment.engine.bind},
            )
        notify.send("ready")
        usage.version()  # not when a thread that serves is first asked for it
        ebb, fullness = Ebb(), Fullness()
        while True:
            _beat(notify, broker, signals, ebb, fullness)
            if broker.failed.is_set():
                break
            if broker.is_outdated():
                log.warning("the key file has another first line: all connections begin anew, with that")
                broker.stop()
                try:
                    broker = broker.renewed(deployment)
                    broker.start()
                except StartError as error:
                    log.error("the broker cannot begin anew: %s", error)
                    return ExitCode.FAILED  # whoever started it starts another
            arrived = set(signals.read())
            if reread is not None and signal.SIGHUP in arrived:
                arrived.discard(signal.SIGHUP)
                deployment = _change(broker, deployment, reread)
            if arrived.intersection(STOPPING):
                break
        notify.send("stopping")
    stopping(deployment.engine.grace + JOIN_S)
    drained = False
    if not broker.failed.is_set():
        drained = broker.drain(deployment.engine.grace)
    broker.stop()
    if broker.failed.is_set():
        return ExitCode.FAILED
    if not drained:
        log.warning("stopped with requests unanswered: the grace time was over")
    log.info("broker stopped")
    return ExitCode.OK


def _change(broker: Broker, former: Deployment, reread: Callable[[], Deployment]) -> Deployment:
    """Which deployment counts now."""
    try:
        deployment = reread()
        broker.change(deployment)
    except (ConfigError, ValueError) as error:  # it was checked by whoever wrote it
        log.error("the changed deployment cannot be taken over: %s", error)
        return former
    log.info("changed")
    return deployment


def _beat(notify: Notifier, broker: Broker, signals: Signals, ebb: Ebb, fullness: Fullness) -> None:
    """Until there is something to do: show whoever watches that every thread goes round, say for whom requests wait,
    and when one of them is full, and give memory back."""
    told = [-1]
    while not select.select([signals.fileno(), broker.fileno()], [], [], BEAT_S / 2)[0]:
        if broker.is_outdated():
            return
        if ebb.is_over(broker.held, clock()):
            give_back()
        threads = broker.cpu_s
        used, most = [*threads, process_time()], [*[1.0] * len(threads), usable_cpus()]
        # A supervisor says it, and does what can be done.
        if fullness.is_full(used, most, clock()) and not notify.send("full") and fullness.is_news(clock()):
            log.warning(
                "the broker is full: it computes all the time, and more workers or frontends bring nothing; several "
                "brokers carry more ([engine] cells)"
            )
        passes = broker.passes
        if all(now != then for now, then in zip_longest(passes, told)):
            told = passes
            notify.send("beat")
        if demand := broker.demand():
            notify.send("demand", workers=demand)
        if waiting := broker.waiting(clock()):
            notify.send("waiting", left_s=waiting)

"""The worker process: :func:`serve`.

Threads, and what each owns:

* *main*: user code, the watchdog's timers, the lane and the outlets (``loop``, ``outlets``);
* *control*: the control socket, heartbeats, signals (``control``, deciding by the pure ``membership``);
* *watchdog*: nothing; it sends the main thread a signal (:mod:`stages.watchdog`);
* *aside*: the lane while the main thread lends it, where batches of a long ``forward`` follow each other (``aside``).

They meet in ``shared``. ``parcels`` (pure) turns batches into items and outcomes into results.

Order of starting, with its reasons: signals first, so that a stop is never lost; then CPUs and thread counts, which
libraries read when they are loaded; then the control thread, so that the broker knows of this worker while its
model loads; then user code. Order of stopping: Leave, what is in flight, Dismiss, ``teardown``, Bye, sockets,
context.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Final

from engine import transport
from engine.config import Deployment, run_dir
from engine.core.messages import PROTOCOL, Hello
from engine.errors import ConfigError, StartError
from engine.exitcodes import ExitCode
from engine.loader import load_class, stand_in
from engine.log import get_logger
from engine.process import Notifier, settle
from stages.base import Worker
from stages.build import create, is_first, is_last, warm_up
from stages.mixin.typed import check_types
from stages.runtime.control import STOP_SIGNALS, Control
from stages.runtime.loop import Loop
from stages.runtime.outlets import Outlets
from stages.runtime.parcels import Plan
from stages.runtime.shared import Finish, Phase, Shared, Warm
from stages.runtime.user_metrics import UserMetrics
from stages.runtime.window import Windows
from stages.schema import describe
from stages.stream import check_place, flow_of
from stages.watchdog import Watchdog

GOODBYE_S: Final = 2.0  # for the control thread to end


def serve(deployment: Deployment, stage: str, slot: int, notify: Notifier) -> int:
    """Run worker ``slot`` (1..num) of ``stage`` until it is dismissed. Returns the exit code; the main thread only.

    OK after a stop; START when the worker could not start or the broker refuses it, with the reason and the user's own
    traceback in the log. A broker that is away is waited for.
    """
    shared = Shared()
    windows = Windows()
    signals = _Signals(shared)
    try:
        try:
            placement = settle(deployment, stage, slot)
        except StartError as error:
            return _failed(notify, error)
        return _serve(deployment, stage, slot, placement.device, notify, shared, windows, signals.fd)
    except SystemExit as end:
        # A stop while loading, or user code that wants its process to end: the code is its own.
        return end.code if isinstance(end.code, int) else ExitCode.FAILED if end.code else ExitCode.OK
    finally:
        signals.close()
        shared.close()
        windows.close()


def _serve(
    deployment: Deployment,
    stage: str,
    slot: int,
    device: str,
    notify: Notifier,
    shared: Shared,
    windows: Windows,
    signals_fd: int,
) -> int:
    topology = deployment.topology
    index = topology.stages.index(stage)
    endpoints = transport.Endpoints(deployment.engine.bind or str(run_dir(deployment)), topology.stages)
    ctx = transport.context()
    control = Control(
        ctx,
        endpoints.control(index),
        Hello(PROTOCOL, topology.fingerprint, stage, slot, os.getpid(), transport.host_token()),
        shared,
        windows,
        signals_fd=signals_fd,
        grace_s=deployment.engine.grace,
        families=UserMetrics(),
        refused=lambda reason: notify.send("failed", reason=reason),
    )
    control.start()
    outlets: Outlets | None = None
    try:
        try:
            worker, warm = _load(deployment, stage, slot, device, notify)
        except Exception as error:  # whatever user code raises: it is shown whole
            return _failed(notify, error)
        spec = deployment.stage(stage)
        plan = Plan(topology, index)
        outlets = Outlets(ctx, endpoints, plan.hops, shared.to_main.wake)
        watchdog = Watchdog(spec.timeout, spec.kill_after)
        watchdog.start()
        loop = Loop(
            worker,
            isolate=spec.idempotent if spec.isolate is None else spec.isolate,
            plan=plan,
            outlets=outlets,
            shared=shared,
            windows=windows,
            watchdog=watchdog,
        )
        # In this order: once the broker may send batches, a stop must wait for them.
        shared.phase = Phase.SERVING
        shared.to_control.put(warm)
        notify.send("ready")
        code = loop.run()
        shared.phase = Phase.ENDING
        watchdog.stop()
        _tear_down(worker)
        return code
    finally:
        shared.phase = Phase.ENDING
        shared.to_control.put(Finish())
        control.join(timeout=GOODBYE_S)
        if outlets is not None:
            outlets.close()
        if not control.is_alive():  # else its socket would hold the context for ever
            ctx.term()


def _load(deployment: Deployment, stage: str, slot: int, device: str, notify: Notifier) -> tuple[Worker, Warm]:
    """User code from import to warm-up. Raises whatever it raises."""
    spec = deployment.stage(stage)
    began = time.monotonic()
    notify.send("loading")
    stand_in(deployment.argv, deployment.path)
    cls = load_class(spec.worker, deployment.file.parent)
    worker = create(
        cls,
        stage=stage,
        worker_id=slot,
        max_batch_size=spec.max_batch_size,
        device=device,
        args=spec.args,
    )
    check_place(worker, is_last=is_last(deployment, stage))
    first = is_first(deployment, stage)
    if first:
        check_types(worker)
    about = describe(worker, first=first, last=any(route.stages[-1] == stage for route in deployment.routes))
    warming = time.monotonic()
    warm_up(worker, lambda done, of: notify.send("warming", done=done, of=of))
    took_ms = int((time.monotonic() - warming) * 1000)
    get_logger().info(
        "worker is warm",
        extra={"device": device, "load_s": round(warming - began, 3), "warmup_s": took_ms / 1000},
    )
    return worker, Warm(worker.resp_mime_type, took_ms, flow=int(flow_of(worker)), about=about)


def _failed(notify: Notifier, error: Exception) -> ExitCode:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, StartError | ConfigError):  # ours: the message says it all
        reason = " ".join(str(error).split())
        get_logger().error("the worker cannot start: %s", reason)
    else:
        get_logger().error("the worker cannot start", exc_info=error)
    notify.send("failed", reason=reason[:1000])
    return ExitCode.START


def _tear_down(worker: Worker) -> None:
    try:
        worker.teardown()
    except Exception:  # the user's; the process ends all the same, and its batches are done
        get_logger().exception("teardown failed")


class _Signals:
    """SIGTERM and SIGINT wake the control thread; while loading they also end user code by SystemExit."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.fd, self._writing = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._writing, False)
        assert threading.current_thread() is threading.main_thread()
        self._former: dict[int, Any] = {number: signal.signal(number, self._handle) for number in sorted(STOP_SIGNALS)}
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        if not faulthandler.is_enabled():
            try:
                faulthandler.enable()  # native code that crashes says where
            except (AttributeError, ValueError, OSError, RuntimeError) as error:  # stderr is closed or no file
                get_logger().debug("no tracebacks for crashes of native code: %s", error)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._shared.phase is Phase.LOADING:
            raise SystemExit(ExitCode.OK)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for number, former in self._former.items():
            signal.signal(number, former)
        os.close(self.fd)
        os.close(self._writing)

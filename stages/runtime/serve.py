"""The worker process: :func:`serve`.

Order of starting, with its reasons: signals first, so that a stop is never lost; then CPUs and thread counts, which
libraries read when they are loaded; then the control thread, so that the broker knows of this worker while its
model loads; then user code. Order of stopping: Leave, what is in flight, Dismiss, ``teardown``, Bye, sockets,
context. A worker that is of no more use says Bye first.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from engine import transport
from engine.clock import now
from engine.config import Deployment
from engine.config.schema import OIP
from engine.config.units import warm_up_s, wear_limits
from engine.core.cells import cell_of
from engine.core.introduction import WORKER, introduce
from engine.errors import StartError
from engine.exitcodes import ExitCode
from engine.keyfile import keyring_of
from engine.loader import load_class, stand_in
from engine.log import TRACEBACK, get_logger, stream
from engine.process import Notifier, readers_on, settle
from engine.signals import STOPPING, Signals
from engine.tracing import begin
from stages import blame, buffers
from stages.base import Worker
from stages.build import create, examples, is_first, is_last, lasts, most_afar, most_between, reads_bodies, speak
from stages.costing import by_cost, coster_of
from stages.mixin.typed import check_types
from stages.near import Lender, Reader
from stages.runtime.control import Control
from stages.runtime.fit import Fit
from stages.runtime.imported import Imported
from stages.runtime.lately import Lately
from stages.runtime.loop import Loop
from stages.runtime.outlets import Outlets
from stages.runtime.shared import Finish, Opened, Phase, Shared, Warm
from stages.runtime.streams import Streams
from stages.runtime.user_metrics import UserMetrics
from stages.runtime.wear import Wear
from stages.runtime.window import Windows
from stages.schema import describe
from stages.shm import SharedMemory
from stages.stream import check_place, flow_of, whole_mime_of
from stages.trial import example_body, tensors_trial, trial
from stages.warming import WarmUp, nbytes_of, values_of, warm_up
from stages.watchdog import Watchdog

if TYPE_CHECKING:
    from stages.runtime.tracing import Traces

GOODBYE_S: Final = 2.0  # for the control thread to end
TEAR_DOWN_S: Final = 10.0  # for `teardown` of a worker that leaves by itself; the kernel ends it then
SWITCH_MAX_S: Final = 0.05  # ten times the interpreter's default


def serve(deployment: Deployment, stage: str, slot: int, notify: Notifier) -> int:
    """Run worker ``slot`` (1..num) of ``stage`` until it is dismissed. Returns the exit code; the main thread only.

    OK after a stop; START when the worker could not start or the broker refuses it, with the reason and the user's own
    traceback in the log. A broker that is away is waited for.
    """
    shared = Shared()
    windows = Windows()
    try:
        with Signals(STOPPING, interrupt=lambda number: _interrupt(shared)) as signals:
            _trace_crashes()
            try:
                placement = settle(deployment, stage, slot)
            except StartError as error:
                return _failed(notify, error)
            return _serve(deployment, stage, slot, placement.device, notify, shared, windows, signals)
    except _Stopped:
        return ExitCode.OK
    except SystemExit as end:  # out of `forward`: its number says nothing to whoever reads ours, its words may
        get_logger().error("%s", blame.line(end), extra={TRACEBACK: blame.traceback(end)})
        return ExitCode.FAILED
    finally:
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
    signals: Signals,
) -> int:
    topology = deployment.topology
    endpoints = transport.reaching(deployment, cell_of(slot, deployment.brokers))
    memory = _memory(deployment, stage, slot, device, endpoints.handles)
    ctx = transport.context(keyring_of(deployment))
    metrics = UserMetrics(stage, deployment.engine.namespace)
    to_try: dict[str, str] = {}  # told with "ready"
    wear, imported = Wear(wear_limits(deployment.stage(stage).recycle_after), shared, notify), Imported(notify)

    def beating() -> None:
        wear()
        imported()

    control = Control(
        ctx,
        endpoints,
        topology.stages.index(stage),
        introduce(
            WORKER,
            topology,
            deployment=deployment.engine.name,
            instance=secrets.token_hex(16),
            host=transport.host_token(),
            pid=os.getpid(),
            stage=stage,
            slot=slot,
        ),
        shared,
        windows,
        signals=signals,
        grace_s=deployment.engine.grace,
        families=metrics,
        beating=beating,
        refused=lambda reason: notify.send("failed", reason=reason),
        ready=lambda: notify.send("ready", **to_try),
    )
    control.start()
    doing: list[str] = []
    outlets: Outlets | None = None
    traces: Traces | None = None
    try:
        try:
            worker, warm, fit, lately = _load(deployment, stage, slot, device, notify, imported, doing)
        except _Stopped:
            raise
        except BaseException as error:  # whatever user code raises; `sys.exit` while it loads is a failed start too
            imported.failed(error)
            return _failed(notify, error, doing)
        spec = deployment.stage(stage)
        outlets = Outlets(ctx, shared.to_main, shared.main_bell, lambda name: shared.to_control.post(Opened(name)))
        watchdog = Watchdog(spec.timeout, spec.kill_after)
        watchdog.start()
        _restore(signals, watchdog)  # what user code has set up while it loaded must not keep a stop from us
        if (tracing := begin(deployment.engine.name, "worker", **{"stageline.stage": stage})) is not None:
            from stages.runtime.tracing import Traces

            traces = Traces(tracing, stage, slot)
        streams = Streams(
            worker,
            outlets=outlets,
            cancelled=shared.cancelled,
            windows=windows,
            watchdog=watchdog,
            most=deployment.frontend.max_response_size,
        )
        loop = Loop(
            worker,
            isolate=spec.idempotent if spec.isolate is None else spec.isolate,
            replays=spec.idempotent,
            most=deployment.frontend.max_response_size,
            most_between=most_between(deployment, stage),
            most_afar=most_afar(deployment, stage),
            outlets=outlets,
            shared=shared,
            streams=streams,
            watchdog=watchdog,
            memory=memory,
            fit=fit,
            lately=lately,
            restore=lambda: _restore(signals, watchdog),
            traces=traces,
        )
        metrics.loop = loop
        to_try.update(_to_try(deployment, stage, slot, worker))
        # In this order: once the broker may send batches, a stop must wait for them.
        shared.phase = Phase.SERVING
        shared.to_control.post(warm)
        code = loop.run()
        shared.phase = Phase.ENDING
        watchdog.stop()
        if code is ExitCode.FAILED:  # nobody has asked for it: others must have its batches before all else
            shared.to_control.post(Finish())
            control.join(GOODBYE_S)
            signal.setitimer(signal.ITIMER_REAL, TEAR_DOWN_S)  # a device that is lost may keep it for ever
        _tear_down(worker)
        if traces is not None:
            traces.close()
        return code
    finally:
        shared.phase = Phase.ENDING
        shared.to_control.post(Finish())
        ended = control.join(GOODBYE_S)
        if outlets is not None:
            outlets.close()
        if ended:  # else its socket would hold the context for ever
            control.close()
            ctx.term()


def _memory(deployment: Deployment, stage: str, slot: int, device: str, handles: str | None) -> SharedMemory:
    """What this worker shares with others of its host: on a GPU, tensors too. (Called before user code, which may show
    itself other GPUs.)"""
    if device == "cpu" or handles is None:
        return SharedMemory()
    reader = Reader(handles, device)
    buffers.read_by(reader)
    readers = readers_on(deployment, stage, slot)
    return SharedMemory(Lender(handles, device, readers) if readers else None, reader)


def _load(
    deployment: Deployment, stage: str, slot: int, device: str, notify: Notifier, imported: Imported, doing: list[str]
) -> tuple[Worker, Warm, Fit, Lately]:
    """User code from import to warm-up. Raises whatever it raises; ``doing`` says then what was done, if that does not
    go without saying."""
    spec = deployment.stage(stage)
    began = time.perf_counter()
    notify.send("loading")
    stand_in(deployment.argv, deployment.path)
    cls = load_class(spec.worker, deployment.file.parent)
    imported()
    worker = create(
        cls,
        stage=stage,
        worker_id=slot,
        max_batch_size=spec.max_batch_size,
        batch_sizes=spec.batch_sizes,
        max_batch_cost=spec.max_batch_cost,
        is_cached=bool(spec.cache),
        device=device,
        args=spec.args,
    )
    worker._is_open = deployment.engine.is_open
    check_place(worker, is_last=is_last(deployment, stage))
    reads = reads_bodies(deployment, stage)
    if reads:
        check_types(worker)
    speak(deployment, worker)
    about = describe(
        worker,
        first=reads,
        last=True in lasts(deployment, stage),
        example=example_body(worker) if reads else None,
    )
    warming = time.perf_counter()
    plan = WarmUp(spec.max_batch_size, spec.batch_sizes)
    try:
        found = examples(worker)
        if spec.batch_sizes and not found:
            get_logger().warning("%s has no example: none of its batch_sizes is computed before requests", spec.worker)
        warm_up(
            worker,
            plan,
            found,
            asked_s=warm_up_s(spec.warm_up),
            began=began,
            progress=lambda done, of: notify.send("warming", done=done, of=of),
            lasts=lasts(deployment, stage),
        )
    except BaseException:
        doing.append(f"while {plan.doing}")
        raise
    took_ms = int((time.perf_counter() - warming) * 1000)
    fit = Fit(spec.max_batch_size, spec.batch_sizes)
    if plan.exhausted:
        fit.exhausted(plan.exhausted, plan.fitted, now())
        get_logger().warning(
            "forward ran out of memory while it warmed up",
            extra={"values": plan.exhausted, "fitted": plan.fitted, "from_now_on": fit.most},
        )
    get_logger().info(
        "worker is warm",
        extra={"device": device, "load_s": round(warming - began, 3), "warmup_s": took_ms / 1000, **plan.told()},
    )
    times_s, coster = plan.times_s, coster_of(worker)
    by_bytes: dict[int, float] = {}
    if coster is not None:
        values = values_of(worker, found)
        costs = coster.examples(values)
        times_s = by_cost(times_s, costs)
        if costs and not is_first(deployment, stage):  # a body is longer than what is made of it
            by_bytes = {nbytes_of(value): cost for value, cost in zip(values, costs, strict=True)}
    lately = Lately({size: round(seconds * 1e6) for size, seconds in times_s.items()})
    warm = Warm(
        whole_mime_of(worker),
        took_ms,
        int(flow_of(worker)),
        about,
        lately.times_us,
        tells_cost=coster is not None,
        costs=by_bytes,
        most=spec.max_batch_size,
        device=device,
        node=os.uname().nodename,
        may_rest=spec.spare > 0,
    )
    return worker, warm, fit, lately


def _to_try(deployment: Deployment, stage: str, slot: int, worker: Worker) -> dict[str, str]:
    """What the first worker of all tells besides: a request for the last line of the start."""
    if slot > 1 or stage != deployment.routes[0].stages[0]:
        return {}
    line = tensors_trial(worker) if deployment.routes[0].protocol == OIP else trial(worker)
    return {} if line is None else {"trial": line}


def _failed(notify: Notifier, error: BaseException, doing: Sequence[str] = ()) -> ExitCode:
    """Tell why this worker cannot start: the supervisor, which tells what many have met once; else the log."""
    reason, trace = blame.line(error), blame.traceback(error)
    if doing and not isinstance(error, StartError):  # which is a sentence already
        reason += f" {doing[-1]}"
    if not notify.send("failed", reason=reason, trace=trace):
        get_logger().error("the worker cannot start: %s", reason, extra={TRACEBACK: trace})
    return ExitCode.START


def _restore(signals: Signals, watchdog: Watchdog) -> None:
    """What user code may have taken from us, to keep for good or for a while: an event loop's signal handlers, say."""
    signals.renew()
    watchdog.renew()
    if sys.getswitchinterval() > SWITCH_MAX_S:  # or the control thread is not heard while `forward` computes
        sys.setswitchinterval(SWITCH_MAX_S)


def _tear_down(worker: Worker) -> None:
    try:
        worker.teardown()
    except BaseException:  # the user's; the process ends all the same, and its batches are done
        get_logger().exception("teardown failed")


def _interrupt(shared: Shared) -> None:
    """Between two lines of the main thread: end user code that loads. Once it serves, the control thread decides."""
    if shared.phase is Phase.LOADING:
        raise _Stopped(ExitCode.OK)


class _Stopped(SystemExit):
    """A signal's, while loading. Told apart from a ``sys.exit`` of the user's."""


def _trace_crashes() -> None:
    if faulthandler.is_enabled():
        return
    try:
        faulthandler.enable(stream())  # native code that crashes says where
    except (AttributeError, ValueError, OSError, RuntimeError) as error:  # stderr is closed or no file
        get_logger().debug("no tracebacks for crashes of native code: %s", error)

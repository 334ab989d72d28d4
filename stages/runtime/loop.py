"""The main loop: a batch from the lane, computed, its results to whoever comes next; until dismissed.

The main thread runs it, because signals - the watchdog's - interrupt only that one. Between two batches it handles
what the control thread left in its mailbox, so a new lane or a stop never waits for more than one batch.

While batches follow each other without a pause and ``forward`` takes long enough to be worth it, a thread beside it
fetches the next ones (:mod:`stages.runtime.aside`), where that helps (:mod:`stages.runtime.help`).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.clock import now
from engine.core import wire
from engine.core.messages import Batch, Welcome
from engine.core.routing import Topology
from engine.errors import ProtocolError, WorkerBroken
from engine.exitcodes import ExitCode
from engine.log import TRACEBACK, get_logger
from engine.memory import Gone
from stages import blame
from stages.base import Worker
from stages.build import examples, forward_example, fresh
from stages.compute import OK, SKIPPED, Codec, Outcome, Run, decode_together
from stages.context import ItemIn
from stages.costing import coster_of
from stages.runtime.aside import Aside
from stages.runtime.fit import Fit
from stages.runtime.help import Help
from stages.runtime.lately import Lately
from stages.runtime.outlets import Outlets
from stages.runtime.parcels import NOWHERE, Origin, Parcel, Plan
from stages.runtime.shared import Dismissed, Joined, Shared, ToMain, Turned
from stages.runtime.streams import Streams
from stages.runtime.tray import Tray, part_of
from stages.runtime.trust import Step, Trust
from stages.shm import Lease, SharedMemory
from stages.stream import whole_mime_of
from stages.watchdog import Watchdog

if TYPE_CHECKING:
    from stages.runtime.tracing import Spans, Traces

FLUSH_S: Final = 2.0  # for results that still wait for a connection when the broker has dismissed us

# Shorter than this, `forward` is over before a thread beside it has had its turn: waking it costs about 0.1 ms.
ASIDE_MIN_S: Final = 0.001
FORWARD_SMOOTHING: Final = 0.2  # weight of the newest batch in the running mean of how long forward takes


@dataclass(slots=True)
class Taken:
    """A batch off the lane. ``welcome``: under which it came, and its results go. ``runs``: it, or the several that
    it is."""

    batch: Batch
    runs: list[Run]
    welcome: Welcome
    since_ns: int  # when the broker released it
    received_ns: int


class Loop:
    """Serves one warm worker. ``run`` returns when the worker may go. ``replays``: what it leaves unanswered is
    computed by others. ``most``, ``most_between``, ``most_afar``: see :class:`stages.compute.Codec`. ``memory``: shared
    with others. ``fit``: what a device's memory takes, as far as the warm-up has shown. ``restore`` puts back what user
    code may have taken from us, signals for instance."""

    def __init__(
        self,
        worker: Worker,
        *,
        isolate: bool,
        replays: bool,
        most: int = sys.maxsize,
        most_between: int = sys.maxsize,
        most_afar: int = sys.maxsize,
        outlets: Outlets,
        shared: Shared,
        streams: Streams,
        watchdog: Watchdog,
        memory: SharedMemory | None = None,
        fit: Fit | None = None,
        lately: Lately | None = None,
        restore: Callable[[], object] = lambda: None,
        traces: Traces | None = None,
    ) -> None:
        self._worker = worker
        self._restore = restore
        self._traces = traces
        self._spans: Spans | None = None  # of the batch that is computed, if any of its requests is sampled
        self._codec = Codec(worker, most=most, most_between=most_between, most_afar=most_afar)
        self._coster = coster_of(worker)
        self._isolate = isolate
        self._replays = replays
        self._max_batch_size = worker.max_batch_size
        self._examples = examples(worker)
        self._trust = Trust(has_example=bool(self._examples))
        self.fit = fit or Fit(worker.max_batch_size, worker._sizes)  # the control thread looks at it, and at:
        self._lately = lately or Lately()
        self.padding = 0  # values that were computed beside the items
        self._plan = NOWHERE  # until the broker has said how it counts
        self._outlets = outlets
        self._shared = shared
        self._streams = streams
        self._codec.has_begun = streams.has_begun
        self._mime = whole_mime_of(worker)
        self._watchdog = watchdog
        self._memory = memory or SharedMemory()
        self._tray = Tray(outlets, self._memory, whole_mime_of(worker))
        self._welcome: Welcome | None = None
        self._stop_at: float | None = None
        self._code: ExitCode | None = None
        self._forward_ns = 0  # when the first forward of the batch began
        self._compute_ns = 0  # in forward, over all its calls
        self._aside: Aside[Taken] = Aside(self._fetch)
        self._help = Help()
        self._busy = False  # batches follow each other
        self._began = 0.0  # when the newest did, and how many items it has
        self._size = 0
        self._forward_s = 0.0  # running mean
        self._ahead: deque[Taken] = deque()  # fetched while another one was computed
        self._sent: list[int] = []  # batches whose results may wait for a connection
        worker._gone = shared.cancelled

    def run(self) -> ExitCode:
        """Compute until dismissed, refused, out of time after a Stop, or of no more use (FAILED)."""
        try:
            while (code := self._turn()) is None:
                pass
            return code
        except WorkerBroken as error:
            cause = error.__cause__ or error
            trace = blame.traceback(cause) if blame.begins_theirs(cause) else ""
            get_logger().error("this worker can compute no more and is replaced: %s", error, extra={TRACEBACK: trace})
            self._flush()
            return ExitCode.FAILED
        finally:
            self._aside.stop()
            self._tray.stop()

    def _turn(self) -> ExitCode | None:
        """At most one batch."""
        if self._shared.to_main.letters:
            for event in self._shared.to_main.take():
                self._handle(event)
        if self._code is not None:
            self._aside.take_back()  # waiting looks at the lane as well
            self._flush()
            return self._code
        if self._stop_at is not None and now() >= self._stop_at:
            get_logger().warning("not dismissed within the grace; leaving")
            return ExitCode.OK
        if self._aside.lent and not self._ahead:
            self._ahead += self._aside.take()
            if not self._ahead:
                return None  # whatever ended the loan may have left word
        if self._ahead:
            self._outlets.flush()
            self._serve(self._ahead.popleft())
        elif (taken := self._receive()) is not None:
            self._serve(taken)
        return None

    def _receive(self) -> Taken | None:
        """A batch off the lane; where there is none, one that comes within a wait."""
        self._outlets.flush()
        frames = self._outlets.receive()
        if frames is None:
            self._busy = False
            if self._outlets.wait(None if self._stop_at is None else self._stop_at - now()):
                frames = self._outlets.receive()
        return None if frames is None else self._read(frames)

    # --- events ------------------------------------------------------------------------------------------------------

    def _handle(self, event: ToMain) -> None:
        if isinstance(event, Joined):
            welcome, endpoints = event.welcome, event.endpoints
            assert endpoints is not None  # the control thread has seen to that
            try:
                lane = endpoints.told_lane(welcome.lane)
                topology = Topology.of(welcome.stages, welcome.routes, welcome.after, welcome.splits, welcome.cached)
                self._plan = Plan(topology, welcome.stage, protocol=welcome.protocol)
            except (ValueError, ProtocolError) as error:
                get_logger().error("the broker's welcome makes no sense: %s", error)
                self._code = ExitCode.FAILED
                return
            former, self._welcome = self._welcome, welcome
            self._tray.plan = self._plan
            # Within one epoch the broker still knows what the results are about; a new one has admitted the requests
            # anew, and its numbers mean others.
            forget = former is not None and former.epoch != welcome.epoch
            self._aside.take_back()
            self._shared.held.begin(welcome.worker)
            self._sent.clear()
            self._ahead.clear()  # of the former lane: the broker has given it to others
            self._outlets.switch(endpoints, lane, self._plan.targets, forget=forget)
            self._streams.origin = Origin(welcome.stage, welcome.worker)
            self._memory.switch(event.store)
            has_store = event.store is not None
            self._codec.put = self._memory.put if has_store else None
            self._codec.put_tensor = self._memory.put_tensor if has_store else None
        elif isinstance(event, Dismissed):
            self._code = ExitCode.OK
        elif isinstance(event, Turned):
            self._code = ExitCode.START
        else:
            self._stop_at = event.at

    def _flush(self) -> None:
        until = now() + FLUSH_S
        if self._stop_at is not None:
            until = min(until, self._stop_at)
        while not self._outlets.flush() and (left := until - now()) > 0:
            self._outlets.wait(left)

    # --- batches -----------------------------------------------------------------------------------------------------

    def _read(self, frames: list[wire.Buffer]) -> Taken | None:
        """The batch in a parcel; None when it cannot be computed."""
        received_ns = time.monotonic_ns()
        welcome = self._welcome
        assert welcome is not None  # the lane came with it
        try:
            message, payloads = wire.decode(frames)
            if not isinstance(message, Batch):
                raise ProtocolError(f"a {type(message).__name__} on a lane")
            lease = self._memory.lease(message, payloads)
            since_ns = message.sent_ns if welcome.same_host else received_ns
            items = self._plan.items(message, payloads, since_ns)
            self._shared.held.add(message.batch)
        except Gone as error:  # with the broker that sent it, or it has given this worker up: nobody waits for it
            get_logger().warning("a batch was dropped: %s", error)
            return None
        except OSError:  # out of descriptors or memory: others may do better, and so may a new process
            get_logger().exception("shared memory cannot be mapped")
            self._code = ExitCode.FAILED
            return None
        except ProtocolError as error:  # the broker is mistaken; its own deadlines answer these requests
            get_logger().error("a batch that cannot be read was dropped: %s", error)
            return None
        size = self._max_batch_size
        if len(items) <= size:
            runs = [self._made(items, lease)]
        else:
            runs = [self._made(items[at : at + size], lease) for at in range(0, len(items), size)]
            decode_together(runs)
        return Taken(message, runs, welcome, since_ns, received_ns)

    def _made(self, items: list[ItemIn], lease: Lease) -> Run:
        return Run(
            self._worker,
            items,
            self._codec,
            max_batch_size=self._max_batch_size,
            isolate=self._isolate,
            expired=self._expired,
            begun=self._streams.has_begun,
            call=self._timed,
            lease=lease,
            most=self.fit.most,
            sizes=self._worker._sizes,
            coster=self._coster,
            forked=self._plan.is_forked,
            splits=self._plan.splits,
            gathers=self._plan.gathers,
            gives_back=self._replays,
        )

    def _serve(self, taken: Taken) -> None:
        """Compute a batch and send its results; where that takes long, and it helps, have the next ones fetched
        meanwhile."""
        began = now()
        if self._busy:
            if self._forward_s >= ASIDE_MIN_S:
                self._help.note(began - self._began, self._size)
                if self._help.wanted:
                    self._aside.lend()
            if self._aside.lent and not self._help.wanted:
                self._ahead += self._aside.take_back()
        self._busy, self._began, self._size = True, began, len(taken.batch.uids)
        self._compute(taken)

    def _fetch(self, recall: int) -> Taken | None:
        """The next batch, decoded as far as that can be done here: in the thread beside the main one."""
        while self._code is None:
            frames = self._outlets.receive()
            if frames is not None:
                taken = self._read(frames)
                if taken is not None:
                    for run in taken.runs:
                        run.fresh = False
                        if not run.ahead:
                            run.decode_aside()
                    return taken
            elif not self._outlets.wait_lane(recall):
                break
        return None

    def _compute(self, taken: Taken) -> None:
        message, runs = taken.batch, taken.runs
        step = Step.GO_ON
        if message.batch in self._shared.revoked:
            self._shared.revoked.discard([message.batch])
            self._shared.batches += 1
            self._forward_ns = self._compute_ns = 0
            outcomes = [SKIPPED] * len(message.uids)
        elif len(runs) > 1:
            outcomes = []
            step = self._compute_several(taken)
        else:
            outcomes, step = self._compute_one(taken, runs[0])
        runs[-1].end()
        if outcomes:
            self._tray.post(self._results(taken, runs[0], outcomes))
        else:
            self._tray.end()
        self._sent.append(message.batch)
        if self._outlets.flush():
            held = self._shared.held.numbers
            for number in self._sent:
                held.pop(number, None)
            self._sent.clear()
        if step is not Step.GO_ON:
            self._show(step)
        self._restore()

    def _compute_several(self, taken: Taken) -> Step:
        """Batches that came as one, each as if it had come alone; what is to be done after the last of them."""
        step, uids, at, tray = Step.GO_ON, taken.batch.uids, 0, self._tray
        tray.begin(taken.batch, Origin(self._plan.stage, taken.welcome.worker))
        for run in taken.runs:
            if step is not Step.GO_ON:
                tray.send()
                self._show(step)
            run.fresh = run.fresh and not tray.was_late
            end = at + len(run.items)
            try:
                outcomes, step = self._compute_one(taken, run)
            except WorkerBroken:  # what was computed before is as good as ever
                tray.end()
                raise
            run.end()
            outcomes = self._streams.end(uids[at:end], outcomes)
            self._shared.cancelled.discard(uids[at:end])
            tray.add(outcomes, self._batch_us(taken), self._compute_ns // 1000, run.costs, run.targets)
            at = end
        return step

    def _compute_one(self, taken: Taken, run: Run) -> tuple[list[Outcome], Step]:
        step = Step.GO_ON
        self._shared.batches += 1
        self._forward_ns = self._compute_ns = 0
        self._watchdog.begin()
        self._streams.batch = taken.batch.batch
        outcomes = run.compute().outcomes if self._traces is None else self._traced(self._traces, taken, run)
        if self._watchdog.struck or self._trust.doubted:
            step = self._judge(outcomes)
        self.padding += run.padding
        if run.exhausted or self.fit.is_reduced:
            self._note_memory(run)
        self._forward_s += (self._compute_ns / 1e9 - self._forward_s) * FORWARD_SMOOTHING
        if outcomes[0].status == OK:  # enough of them are: a batch that fails takes another time
            self._note_time(len(outcomes), run.costs)
        return outcomes, step

    def _results(self, taken: Taken, run: Run, outcomes: list[Outcome]) -> list[Parcel]:
        """Of all of a batch."""
        message = taken.batch
        outcomes = self._streams.end(message.uids, outcomes)
        self._shared.cancelled.discard(message.uids)
        return self._plan.results(
            Origin(self._plan.stage, taken.welcome.worker),
            message,
            outcomes,
            mime=self._mime,
            batch_us=self._batch_us(taken),
            compute_us=self._compute_ns // 1000,
            costs=run.costs,
            targets=run.targets,
        )

    def _batch_us(self, taken: Taken) -> int:
        """From a batch's release to the first call of ``forward``."""
        return ((self._forward_ns or taken.received_ns) - taken.since_ns) // 1000

    def _traced(self, traces: Traces, taken: Taken, run: Run) -> list[Outcome]:
        """What is computed, with spans of it."""
        batch = taken.batch
        if len(taken.runs) > 1:
            batch = part_of(batch, batch.uids.index(run.items[0].uid), len(run.items))
        spans = self._spans = traces.begin(batch, run.items, taken.since_ns)
        if spans is None:
            return run.compute().outcomes
        run.failed = spans.failed
        try:
            outcomes = run.compute().outcomes
            spans.end(outcomes)
            return outcomes
        except BaseException as error:
            spans.broken(error)
            raise
        finally:
            self._spans = run.failed = None  # they hold the batch's items

    def _note_time(self, count: int, costs: Mapping[int, float]) -> None:
        """How long a batch of so many items took, or of what they cost."""
        if self._coster is None:
            self._lately.note(count, self._compute_ns // 1000)
        elif costs:
            self._lately.note_cost(max(costs.values()) * count, self._compute_ns // 1000)

    def _judge(self, outcomes: list[Outcome]) -> Step:
        """After an interrupt, or since one. Raises WorkerBroken where these outcomes are for nobody."""
        step = self._trust.after(outcomes, interrupted=self._watchdog.struck)
        if step is Step.DISOWN and self._replays:
            raise WorkerBroken("forward was interrupted for its time limit, and has failed since")
        return step

    def _show(self, step: Step) -> None:
        """With an example: that the process computes as it should. Without: leave."""
        if step is not Step.SHOW:
            raise WorkerBroken("forward was interrupted for its time limit, and has not succeeded since")
        self._watchdog.begin()
        example = self._examples[0]
        if self.fit.is_reduced and self._max_batch_size > 1:
            example = example[: self.fit.most]
        try:
            self._watchdog.call(lambda value: forward_example(self._worker, value), fresh(self._worker, example))
        except BaseException as error:  # whatever user code raises
            raise WorkerBroken(
                f"forward was interrupted for its time limit, and fails on its example since: {blame.line(error)}"
            ) from error
        get_logger().debug("forward was interrupted, and computes its example as before")

    def _note_memory(self, run: Run) -> None:
        if run.exhausted:
            self.fit.exhausted(run.exhausted, run.fitted, now())
            get_logger().warning(
                "forward ran out of memory",
                extra={"values": run.exhausted, "fitted": run.fitted, "from_now_on": self.fit.most},
            )
        elif self.fit.worked(run.fitted, now()):
            get_logger().info("trying larger batches again", extra={"values": self.fit.most})

    def _timed(self, function: Callable[[Any], Any], argument: Any) -> Any:
        began = time.monotonic_ns()
        if not self._forward_ns:
            self._forward_ns = began
        try:
            if self._spans is None:
                return self._watchdog.call(function, argument)
            with self._spans.current(self._worker._items):
                return self._watchdog.call(function, argument)
        finally:
            self._compute_ns += time.monotonic_ns() - began

    def _expired(self, items: Sequence[ItemIn]) -> Container[int]:
        moment, cancelled = time.monotonic_ns(), self._shared.cancelled.known
        return {item.uid for item in items if item.deadline_ns <= moment or item.uid in cancelled}

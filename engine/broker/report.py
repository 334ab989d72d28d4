"""What the machines counted, as status (for people) and as metrics (for Prometheus).

Each stage tells its own side and posts it to the front, which puts them together: nobody reads what another part of
the broker is changing. Connection labels are worker slots, which stay the same over restarts, so label sets stay
bounded.

To look must not break: who makes a report (:func:`stage_part`, :func:`answer`) is ready for any exception, logs it and
sends what says so (None for a stage's part, :func:`untold` for the whole), for requests matter more than reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from platform import python_version
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from engine.broker import lately
from engine.broker.lately import Lately, WorkerLately
from engine.broker.why import StageWhy, stage_why, why
from engine.core.about import pack_all as pack_abouts
from engine.core.costqueue import CostQueue
from engine.core.costs import counted
from engine.core.deaths import Death
from engine.core.ends import EXPIRED
from engine.core.front import FrontMachine
from engine.core.member import Member
from engine.core.messages import Ask
from engine.core.stage import StageMachine
from engine.core.stats import Histogram
from engine.core.wire import MICROS
from engine.core.worker_states import SERVING, WorkerState
from engine.metrics import (
    PER_PROCESS,
    Family,
    Sample,
    Sources,
    counter,
    gauge,
    histogram,
    lost_lines_family,
    merge,
    pack,
    pack_sources,
)

QUESTIONS: Final = ("status", "metrics", "about", "why")
SPARE: Final = "spare"  # the state of a worker that is held back
UNTOLD: Final = "not told: the broker's log says why"


class WorkerStatus(msgspec.Struct, frozen=True):
    """One worker in ``engine status``: without its key, which is between it and the broker."""

    slot: int
    pid: int
    state: str
    batches: int
    items: int
    in_flight: int
    warmup_ms: int
    here: bool = True  # its process is one of the broker's host
    device_bytes: int = 0  # of GPUs, that its tensors hold
    node: str = ""  # the name of its host
    device: str = ""
    most: int = 0  # values that it is given at once, at most
    deaths: int = 0  # of those in its place, since the broker began
    up_s: float = 0.0  # for so long it has been ready
    resident_bytes: int = 0  # of its process, as it says
    lately: WorkerLately = WorkerLately()


class LearnedStatus(msgspec.Struct, frozen=True):
    """How long a stage's batches take, as it has learned: what a plan can be made of. ``ms``: of computing, by size, of
    the sizes that came; ``overhead_ms``: what a batch takes beside that, on its way and back; ``noise``: by how much
    its own predictions are off, as a share."""

    ms: dict[str, float] = {}
    overhead_ms: float = 0.0
    noise: float = 0.0


class CostStatus(msgspec.Struct, frozen=True):
    """What was computed cost, in what the stage's class counts. ``padded`` is what ``items`` would have cost if all of
    a batch did as much as its costliest, ``mean`` that of one of the ``batches``, ``waste`` the share that is padding,
    and ``most`` what one may. ``by``: whose word it is, of the ``workers`` or of the payloads' ``bytes``."""

    by: str
    most: float
    batches: int
    items: float
    padded: float
    mean: float
    waste: float


class StageStatus(msgspec.Struct, frozen=True):
    """One stage in ``engine status``."""

    name: str
    wanted: int
    ready: int
    starting: int
    queued: int
    in_flight: int
    queued_bytes: int
    oldest_ms: float
    replayed: int
    deaths: int
    mean_batch: float
    batches_by_reason: dict[str, int]
    workers: list[WorkerStatus]
    deaths_by_cause: dict[str, int] = {}
    refused: dict[str, int] = {}  # items, by why
    not_fed: str = ""  # why nothing is given to the stage; empty while it is
    arrived: int = 0  # items, so far
    learned: LearnedStatus = LearnedStatus()
    cost: CostStatus | None = None  # where items cost unlike much
    demand_workers: float = 0.0  # how many would be needed
    lately: Lately = Lately()
    bounds: tuple[int, int] | None = None  # between which its workers follow that


@dataclass(frozen=True)
class StageFamilies:
    """One stage's part of ``/metrics``: the broker's own families, and what the users' code counted."""

    own: list[Family]
    workers: list[tuple[str, int, bytes]]
    retired: list[Family]


Part: TypeAlias = "StageStatus | StageFamilies | StageWhy | bytes"  # what a stage says to a question


def stage_part(machine: StageMachine, ask: Ask, retired: Sequence[Family], now: float, namespace: str) -> Part:
    """One stage's part of the answer to one of QUESTIONS."""
    if ask.what == "status":
        return stage_status(machine, now)
    if ask.what == "about":
        return machine.about
    if ask.what == "why":
        return stage_why(machine, ask, now)
    return stage_families(machine, retired, now, namespace)


class BrokerStatus(msgspec.Struct, frozen=True):
    """The broker's own process. ``endpoint``: where frontends and workers find it; ``log``: where it, and whatever the
    same supervisor has started, says what happens."""

    pid: int = 0
    node: str = ""
    version: str = ""
    endpoint: str = ""
    log: str = ""
    threads: str = ""  # what carries it: "stage" or "one"
    uptime_s: float = 0.0
    resident_bytes: int = 0
    cpu: float = 0.0  # CPUs that it kept busy lately


@dataclass(frozen=True)
class Deployed:
    """What the front's report says beside its machine. ``shared``: arenas, and bytes held in them."""

    name: str
    namespace: str
    broker: BrokerStatus
    shared: tuple[int, int]
    retired: Sequence[Family]
    processes: Sequence[tuple[str, Process]] = ()  # that the broker has looked at itself


class Process(Protocol):
    """Of :class:`engine.usage.Process`, or of a process that tells it with its beats."""

    @property
    def resident_bytes(self) -> int: ...
    @property
    def cpu_us(self) -> int: ...
    @property
    def descriptors(self) -> int: ...
    @property
    def descriptors_most(self) -> int: ...
    @property
    def began_s(self) -> float: ...


def answer(machine: FrontMachine, ask: Ask, parts: Sequence[Part | None], deployed: Deployed, now: float) -> bytes:
    """The answer to a question, from the parts of all stages in their order (None: a stage could not make its own)."""
    if ask.what == "status":
        return status(machine, parts, deployed, now)
    if ask.what == "about":
        return about(machine, parts)
    if ask.what == "why":
        return why(machine, ask, [part if isinstance(part, StageWhy) else None for part in parts], deployed.name, now)
    return metrics(machine, parts, deployed)


def untold(what: str, name: str) -> bytes:
    """The answer when not even :func:`answer` could be made: as empty as the asker can read."""
    if what in ("status", "why"):
        return msgspec.json.encode({"name": name, "error": UNTOLD, "stages": []})
    return pack_abouts({}) if what == "about" else pack_sources(Sources())


def stage_status(machine: StageMachine, now: float) -> StageStatus:
    state = machine.state()
    oldest = machine.queue.backlog(dues=False).oldest
    workers = {key: lately.of_worker(worker, now) for key, worker in machine.workers.items()}
    serving = [workers[key] for key, worker in machine.workers.items() if worker.state in SERVING and not worker.spare]
    sizes = [lane.batch_size for lane in machine.stats.lanes.values()]
    batches = sum(size.count for size in sizes)
    return StageStatus(
        name=state.name,
        wanted=state.wanted,
        ready=state.ready,
        starting=state.starting,
        queued=state.queued,
        in_flight=state.in_flight,
        queued_bytes=machine.queue.nbytes,
        oldest_ms=round(max(0.0, now - oldest) * 1000, 3) if len(machine.queue) else 0.0,
        replayed=machine.stats.replayed,
        deaths=machine.stats.deaths.total(),
        mean_batch=round(sum(size.total for size in sizes) / batches, 2) if batches else 0.0,
        batches_by_reason=dict(machine.stats.releases),
        workers=[
            WorkerStatus(
                slot=worker.slot,
                pid=worker.pid,
                state=_state(worker),
                batches=worker.done_batches,
                items=worker.done_items,
                in_flight=worker.in_flight,
                warmup_ms=worker.warmup_ms,
                device_bytes=worker.device_bytes,
                here=worker.local,
                node=worker.node,
                device=worker.device,
                most=worker.most,
                deaths=worker.lane.deaths,
                up_s=round(now - worker.ready_at, 3) if worker.ready_at else 0.0,
                resident_bytes=worker.resident_bytes,
                lately=workers[key],
            )
            for key, worker in machine.workers.items()
        ],
        deaths_by_cause={death.value: count for death, count in machine.stats.deaths.items()},
        refused=dict(machine.stats.refused),
        not_fed="" if machine.fate.is_sound else machine.fate.breaker.reason,
        arrived=machine.stats.arrived,
        learned=_learned(machine),
        cost=_cost(machine),
        demand_workers=_figure(machine.demand_workers),
        lately=lately.of_stage(machine, serving, now),
        bounds=machine.spec.bounds,
    )


def _figure(number: float) -> float:
    """Three digits of it: what is little is not nothing, and keeps a worker."""
    return float(f"{number:.3g}")


def _cost(machine: StageMachine) -> CostStatus | None:
    queue, stats = machine.queue, machine.stats
    if not isinstance(queue, CostQueue):
        return None
    batches = stats.priced_batches
    return CostStatus(
        by="bytes" if queue.costs.by_bytes else "workers",
        most=queue.costs.most,
        batches=batches,
        items=round(stats.cost, 3),
        padded=round(stats.padded_cost, 3),
        mean=round(stats.padded_cost / batches, 3) if batches else 0.0,
        waste=round(1.0 - stats.cost / stats.padded_cost, 4) if stats.padded_cost else 0.0,
    )


def _learned(machine: StageMachine) -> LearnedStatus:
    times, queue = machine.foresight.times, machine.queue
    if not times.known:
        return LearnedStatus()
    slowness = machine.crew.slowness
    if queue.by_cost:  # of so many items as they come lately
        most = min(times.seen_sizes[-1], queue.top) / queue.each
        counts = [1 << exponent for exponent in range(max(int(most), 1).bit_length())]
        sizes = {n: counted(n * queue.each) for n in counts}
    else:
        sizes = {n: n for n in times.seen_sizes}
    return LearnedStatus(
        ms={str(n): round(times.shape[size] * slowness * 1000, 4) for n, size in sizes.items()},
        overhead_ms=round(times.overhead_s * 1000, 4),
        noise=round(times.error, 4),
    )


def status(machine: FrontMachine, parts: Sequence[Part | None], deployed: Deployed, now: float) -> bytes:
    """The whole deployment as JSON."""
    stages = zip(machine.topology.stages, parts, strict=True)
    whole: dict[str, Any] = {
        "name": deployed.name,
        "epoch": machine.epoch,
        "uptime_s": deployed.broker.uptime_s,
        "threads": deployed.broker.threads,
        "draining": machine.door.draining,
        "admitted": machine.ledger.inside,
        "capacity": machine.spec.capacity,
        "admitted_bytes": machine.ledger.nbytes,
        "goals": _goal_status(machine),
        "refused": machine.stats.rejected | ({EXPIRED: machine.stats.expired} if machine.stats.expired else {}),
        "stages": [part if part is not None else {"name": name, "error": UNTOLD} for name, part in stages],
        "demand": {part.name: part.demand_workers for part in parts if isinstance(part, StageStatus)},
        "frontends": lately.frontends(machine, now),
        "rates": lately.rates(machine, now),
        "routes": lately.routes(machine, deployed.namespace, deployed.retired, now),
        "parts": _parts_status(machine),
        "failed": lately.failed(machine),
        "errors": lately.errors(machine, now),
        "brokers": [deployed.broker],
    }
    return msgspec.json.encode(whole)


def _parts_status(machine: FrontMachine) -> list[dict[str, Any]]:
    """How many elements lists had lately that were taken apart, in the mean, by route and by whose they were."""
    topology = machine.topology
    return [
        {"route": topology.routes[route].path, "stage": topology.stages[stage], "mean": round(mean, 3)}
        for (route, stage), mean in machine.door.parts.items()
        if (split := topology.split(route, stage)) is not None and not split.names
    ]


def _goal_status(machine: FrontMachine) -> list[dict[str, Any]]:
    """Of the routes that have one. ``least_s``: what one request takes alone; ``within``: results in their time;
    ``late``: other answers."""
    goals, counts = machine.door.goals, machine.stats.goals
    return [
        {
            "route": route.path,
            "slo_s": slo_s,
            "least_s": round(goals.least_s[number], 6),
            "unmet": goals.unmet[number],
            "within": counts[number, True],
            "late": counts[number, False],
        }
        for number, (route, slo_s) in enumerate(zip(machine.topology.routes, goals.slos_s, strict=True))
        if slo_s
    ]


def about(machine: FrontMachine, parts: Sequence[Part | None]) -> bytes:
    """What each stage says about itself, by its name."""
    stages = zip(machine.topology.stages, parts, strict=True)
    return pack_abouts({name: part for name, part in stages if isinstance(part, bytes)})


# --- metrics ---------------------------------------------------------------------------------------------------------


def stage_families(machine: StageMachine, retired: Sequence[Family], now: float, namespace: str) -> StageFamilies:
    """Families of one stage, named with ``namespace``."""
    stats, state, name = machine.stats, machine.state(), machine.spec.name
    here = {"stage": name}

    def lanes(pick: str) -> list[tuple[dict[str, str], Histogram]]:
        return [({**here, "connection": str(slot)}, getattr(lane, pick)) for slot, lane in sorted(stats.lanes.items())]

    oldest = machine.queue.backlog(dues=False).oldest
    own = [
        histogram(f"{namespace}_batch_size", "Items of a batch.", lanes("batch_size")),
        histogram(
            f"{namespace}_batch_duration_second",
            "Seconds from the first item's arrival at the stage to the release of its batch.",
            lanes("batch_wait"),
        ),
        histogram(
            f"{namespace}_process_duration_second",
            "Seconds from the release of a batch until the next stage, or the front, has its results.",
            lanes("process"),
        ),
        counter(
            f"{namespace}_batch_releases",
            "Batches by the reason for which they left the queue.",
            [({**here, "reason": reason}, count) for reason, count in sorted(stats.releases.items())],
        ),
        counter(
            f"{namespace}_worker_busy_seconds",
            "Seconds that workers computed; its rate over the number of workers is the busy fraction.",
            [({**here, "connection": str(slot)}, lane.compute_s) for slot, lane in sorted(stats.lanes.items())],
        ),
        counter(
            f"{namespace}_worker_forward_seconds",
            "Seconds that workers spent in forward, by their own clocks.",
            [({**here, "connection": str(slot)}, lane.forward_s) for slot, lane in sorted(stats.lanes.items())],
        ),
        counter(
            f"{namespace}_host_busy_seconds",
            "Of the busy seconds of workers those of each host; of many hosts the later ones together.",
            [({**here, "host": node}, host.compute_s) for node, host in sorted(stats.hosts.items())],
        ),
        _workers_by_host(f"{namespace}_host_workers", machine, here),
        counter(f"{namespace}_stage_items", "Items that arrived at a stage.", [(here, stats.arrived)]),
        counter(
            f"{namespace}_stage_dropped",
            "Items not computed, or results not used: closed, late or duplicate.",
            [(here, stats.dropped)],
        ),
        counter(
            f"{namespace}_stage_hopeless",
            "Of the dropped ones: admitted, and refused here because they would have been late.",
            [(here, stats.hopeless)],
        ),
        counter(
            f"{namespace}_stage_refusals",
            "Admitted requests that were refused at a stage, by reason.",
            [({**here, "reason": reason}, count) for reason, count in sorted(stats.refused.items())],
        ),
        counter(
            f"{namespace}_stage_failed", "Items that ended at a stage by the broker's word.", [(here, stats.failed)]
        ),
        counter(f"{namespace}_replays", "Items given out again after a worker died.", [(here, stats.replayed)]),
        counter(
            f"{namespace}_worker_deaths",
            "Workers that vanished without leave, by cause; oom: the kernel killed them for want of memory.",
            [({**here, "reason": death.value}, stats.deaths[death]) for death in Death if death is not Death.CUT],
        ),
        counter(
            f"{namespace}_worker_connections_lost",
            "Workers that were given up because the connection to them was lost, or said so themselves.",
            [(here, stats.cuts)],
        ),
        counter(
            f"{namespace}_batches_resent",
            "Batches that were lost between the broker and a worker, while the connection lived.",
            [(here, stats.resent)],
        ),
        counter(f"{namespace}_batches_suspect", "Batches that were taken for stuck.", [(here, stats.slow)]),
        counter(f"{namespace}_hedges", "Items of them that were given to another worker too.", [(here, stats.hedged)]),
        counter(
            f"{namespace}_narrowed",
            "Items that reached the time limit together and were tried apart.",
            [(here, stats.narrowed)],
        ),
        counter(f"{namespace}_poisoned", "Items that were found to kill workers.", [(here, stats.poisoned)]),
        counter(
            f"{namespace}_workers_replaced",
            "Workers that failed everything while their neighbours did not.",
            [(here, stats.replaced)],
        ),
        counter(
            f"{namespace}_breaker_trips",
            "Times that a stage was not fed any more.",
            [(here, machine.fate.breaker.trips)],
        ),
        _messages_dropped(namespace, stats.messages_dropped, here),
        counter(f"{namespace}_worker_starts", "Workers that became ready.", [(here, stats.starts)]),
        counter(
            f"{namespace}_transport_bytes",
            "Payload bytes by direction, seen from the broker, and by what carried them.",
            [
                ({**here, "direction": "in", "transport": "socket"}, stats.bytes_in),
                ({**here, "direction": "in", "transport": "shm"}, stats.shared_in),
                ({**here, "direction": "out", "transport": "socket"}, stats.bytes_out),
                ({**here, "direction": "out", "transport": "shm"}, stats.shared_out),
            ],
        ),
        gauge(f"{namespace}_queue_depth", "Items waiting at a stage.", state.queued, here),
        gauge(f"{namespace}_queue_bytes", "Payload bytes waiting at a stage.", machine.queue.nbytes, here),
        gauge(
            f"{namespace}_queue_age_second",
            "Seconds that the oldest waiting item has been at a stage.",
            max(0.0, now - oldest) if len(machine.queue) else 0.0,
            here,
        ),
        gauge(f"{namespace}_in_flight", "Items at a stage's workers.", state.in_flight, here),
        gauge(f"{namespace}_workers_wanted", "Workers the file asks for.", state.wanted, here),
        gauge(
            f"{namespace}_stage_demand_workers",
            "Workers that what comes and waits would keep busy, over the last 30 s: what to scale a stage by.",
            machine.demand_workers,
            here,
        ),
        _workers_by_state(f"{namespace}_workers", machine, here),
        *processes(
            namespace,
            [
                ({**here, "process": "worker", "connection": str(worker.slot)}, worker)
                for worker in machine.workers.values()
            ],
        ),
    ]
    on_device = f"{namespace}_device_memory_bytes"
    held = [
        Sample(on_device, {**here, "connection": str(worker.slot)}, worker.device_bytes)
        for worker in machine.workers.values()
        if worker.device_bytes
    ]
    own.append(Family(on_device, "gauge", "Memory of GPUs that a worker's tensors hold.", held))
    if machine.queue.by_cost:
        own.append(
            counter(
                f"{namespace}_stage_cost",
                "What items cost that were computed, in what the stage's class counts.",
                [(here, stats.cost)],
            )
        )
        own.append(
            counter(
                f"{namespace}_stage_cost_padded",
                "The same with all of a batch as costly as its costliest: what is beyond stage_cost is padding.",
                [(here, stats.padded_cost)],
            )
        )
    workers = [(name, worker.slot, worker.families) for worker in machine.workers.values() if worker.families]
    return StageFamilies(own, workers, list(retired))


def processes(namespace: str, told: Sequence[tuple[dict[str, str], Process]]) -> list[Family]:
    """What processes use; what nobody knows of one is left out. ``told`` with their labels: who they are, and never
    which process it is just now."""
    of = f"{namespace}_{PER_PROCESS}"

    def those(name: str, pick: Callable[[Process], float]) -> list[Sample]:
        return [Sample(name, labels, value) for labels, one in told if (value := pick(one))]

    def one(name: str, doc: str, pick: Callable[[Process], float]) -> Family:
        return Family(f"{of}{name}", "gauge", doc, those(f"{of}{name}", pick))

    cpu = those(f"{of}cpu_seconds_total", lambda one: one.cpu_us / MICROS)
    return [
        Family(f"{of}cpu_seconds", "counter", "CPU time of a process.", cpu),
        one("resident_memory_bytes", "Memory that a process holds, shared or not.", lambda p: p.resident_bytes),
        one("open_fds", "Descriptors that a process has open.", lambda p: p.descriptors),
        one("max_fds", "Descriptors that a process may have open.", lambda p: p.descriptors_most),
        one("start_time_seconds", "When a process began, in seconds of the epoch.", lambda p: p.began_s),
    ]


def _workers_by_state(name: str, machine: StageMachine, here: dict[str, str]) -> Family:
    counts = {state.value: 0 for state in WorkerState if state is not WorkerState.GONE} | {SPARE: 0}
    for worker in machine.workers.values():
        counts[_state(worker)] += 1
    samples = [Sample(name, {**here, "state": state}, count) for state, count in counts.items()]
    return Family(name, "gauge", "Workers by state.", samples)


def _workers_by_host(name: str, machine: StageMachine, here: dict[str, str]) -> Family:
    counts = dict.fromkeys(machine.stats.hosts, 0)
    for worker in machine.workers.values():
        if worker.state in SERVING:
            counts[worker.node] += 1
    samples = [Sample(name, {**here, "host": node}, count) for node, count in sorted(counts.items())]
    return Family(name, "gauge", "Workers that serve, by host.", samples)


def _state(worker: Member) -> str:
    """As people see it: whoever is held back is ready, and yet not at work."""
    return SPARE if worker.spare and worker.state is WorkerState.READY else worker.state.value


def _messages_dropped(namespace: str, counts: dict[str, int], here: dict[str, str]) -> Family:
    return counter(
        f"{namespace}_messages_dropped",
        "Messages of frontends and workers that were not taken, by reason; those of one stage's workers with its name.",
        [({**here, "reason": reason}, count) for reason, count in sorted(counts.items())],
    )


def _goals(machine: FrontMachine, namespace: str) -> list[Family]:
    """Of the routes that have one."""
    goals, paths = machine.door.goals, [route.path for route in machine.topology.routes]
    routes = [(number, path, goals.slos_s[number]) for number, path in enumerate(paths) if goals.slos_s[number]]
    if not routes and not machine.stats.goals:
        return []
    name, unmet = f"{namespace}_slo_second", f"{namespace}_slo_unmet"
    return [
        Family(
            name, "gauge", "Goal of a route.", [Sample(name, {"endpoint": path}, slo_s) for _, path, slo_s in routes]
        ),
        Family(
            unmet,
            "gauge",
            "1 while a route's goal counts for nothing: one request alone takes longer.",
            [Sample(unmet, {"endpoint": path}, int(goals.unmet[number])) for number, path, _ in routes],
        ),
        counter(
            f"{namespace}_slo_answers",
            "Answers to admitted requests that had a goal, by whether the broker had a result within it; what was "
            "refused later, or was too late, had not.",
            [
                ({"endpoint": paths[route], "within": str(within).lower()}, count)
                for (route, within), count in sorted(machine.stats.goals.items())
            ],
        ),
    ]


def _in_parts(machine: FrontMachine, namespace: str) -> list[Family]:
    """Where there are routes on which requests go on in parts."""
    if not any(route.splits for route in machine.topology.routes):
        return []
    stats, names = machine.stats, machine.topology.stages
    waiting = f"{namespace}_gathering_bytes"
    gathers = sorted({split.gather for _, _, split in machine.topology.splits()})
    return [
        counter(f"{namespace}_split", "Requests that went on in parts.", [({}, stats.split)]),
        counter(f"{namespace}_parts", "Parts of requests.", [({}, stats.parts)]),
        counter(f"{namespace}_holes", "Parts that failed, and were left out.", [({}, stats.holes)]),
        gauge(f"{namespace}_remaining_parts", "Parts under way.", len(machine.ledger.gatherings)),
        Family(
            waiting,
            "gauge",
            "Bytes of parts that are done and wait for others, by the stage that gathers them.",
            [Sample(waiting, {"stage": names[one]}, machine.ledger.gatherings.nbytes.get(one, 0)) for one in gathers],
        ),
    ]


def _caches(machine: FrontMachine, namespace: str) -> list[Family]:
    """Of the stages that have one."""
    names = machine.topology.stages
    tallies = [({"stage": names[stage]}, tally) for stage, tally in sorted(machine.ledger.memo.tallies.items())]
    if not tallies:
        return []

    entries, size = f"{namespace}_cache_entries", f"{namespace}_cache_bytes"
    return [
        counter(
            f"{namespace}_cache_hits",
            "Values that a stage's cache knew the result of.",
            [(labels, one.hits) for labels, one in tallies],
        ),
        counter(
            f"{namespace}_cache_joined",
            "Values whose result was being computed for another, and was waited for.",
            [(labels, one.joined) for labels, one in tallies],
        ),
        counter(
            f"{namespace}_cache_misses", "Values that were computed.", [(labels, one.misses) for labels, one in tallies]
        ),
        counter(
            f"{namespace}_cache_evictions",
            "Results that were let go for want of room.",
            [(labels, one.evicted) for labels, one in tallies],
        ),
        Family(
            entries,
            "gauge",
            "Results that are kept.",
            [Sample(entries, labels, one.entries) for labels, one in tallies],
        ),
        Family(size, "gauge", "Bytes that these take.", [Sample(size, labels, one.nbytes) for labels, one in tallies]),
    ]


def metrics(machine: FrontMachine, parts: Sequence[Part | None], deployed: Deployed) -> bytes:
    """All the broker knows, as packed :class:`engine.metrics.Sources`."""
    stages = [part for part in parts if isinstance(part, StageFamilies)]
    stats, namespace, shared = machine.stats, deployed.namespace, deployed.shared
    own = [
        counter(f"{namespace}_admitted", "Requests admitted.", [({}, stats.admitted)]),
        counter(
            f"{namespace}_rejections",
            "Requests answered at the door, by reason.",
            [({"reason": reason}, count) for reason, count in sorted(stats.rejected.items())],
        ),
        counter(
            f"{namespace}_expired", "Admitted requests that were not answered in their time.", [({}, stats.expired)]
        ),
        counter(
            f"{namespace}_predictions_compared",
            "Admitted requests whose finish was predicted, and compared: one of some while requests have to wait.",
            [({}, machine.foretold.compared)],
        ),
        counter(
            f"{namespace}_predictions_within_20_percent",
            "Of these: those that were done in the predicted time, give or take a fifth of it.",
            [({}, machine.foretold.near)],
        ),
        counter(f"{namespace}_cancelled", "Requests whose client left.", [({}, stats.cancelled)]),
        counter(f"{namespace}_duplicates", "Results that came for answered requests.", [({}, stats.duplicates)]),
        counter(
            f"{namespace}_idempotency_joined",
            "Requests that waited for the answer to another with their Idempotency-Key.",
            [({}, stats.joined)],
        ),
        counter(
            f"{namespace}_idempotency_replayed",
            "Requests that were given the answer to an earlier one with their Idempotency-Key.",
            [({}, stats.replayed)],
        ),
        gauge(f"{namespace}_idempotency_kept", "Answers that are kept for such requests.", len(machine.tries.keys)),
        gauge(f"{namespace}_idempotency_kept_bytes", "Bytes that these take.", machine.tries.keys.nbytes),
        gauge(f"{namespace}_remaining_task", "Requests admitted and not answered yet.", machine.ledger.inside),
        gauge(f"{namespace}_remaining_bytes", "Bytes of their bodies.", machine.ledger.nbytes),
        gauge(f"{namespace}_draining", "1 while nothing new is admitted.", int(machine.door.draining)),
        gauge(f"{namespace}_shared_memory_arenas", "Processes that have shared memory to fill.", shared[0]),
        gauge(f"{namespace}_shared_memory_bytes", "Bytes in shared memory that may still be read.", shared[1]),
        counter(
            f"{namespace}_reports_untold",
            "Reports, or stages' parts of them, that could not be made: a fault of ours.",
            [({}, stats.untold)],
        ),
        counter(
            f"{namespace}_broker_descriptors_spent",
            "Looks of the broker, one a second, at which it had no descriptor left.",
            [({}, stats.descriptors_spent)],
        ),
        *_in_parts(machine, namespace),
        *_caches(machine, namespace),
        _messages_dropped(namespace, stats.messages_dropped, {}),
        counter(
            f"{namespace}_connections_refused",
            "Connections to the broker's ports that were refused for want of the right key, by reason.",
            [({"reason": reason}, count) for reason, count in sorted(stats.connections_refused.items())],
        ),
        lost_lines_family(namespace, "broker"),
        *_goals(machine, namespace),
        gauge(f"{namespace}_frontends", "Frontend processes connected.", len(machine.frontends)),
        *processes(
            namespace,
            [
                *(({"process": name}, found) for name, found in deployed.processes),
                *(
                    ({"process": "frontend", "connection": str(frontend.slot)}, frontend)
                    for frontend in machine.frontends.values()
                ),
            ],
        ),
        Family(
            f"{namespace}_build",
            "info",
            "What the broker is.",
            [Sample(f"{namespace}_build_info", {"version": deployed.broker.version, "python": python_version()}, 1)],
        ),
    ]
    return pack_sources(
        Sources(
            broker=pack(merge([own, *(stage.own for stage in stages)])),
            frontends=[(one.who.name, one.families) for one in machine.frontends.values() if one.families],
            workers=[worker for stage in stages for worker in stage.workers],
            retired=pack(merge([deployed.retired, *(stage.retired for stage in stages)])),
        )
    )

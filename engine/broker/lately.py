"""How quickly a stage, its workers and the routes went lately, and how long things took: the part of a status that is
about the last seconds. Read off what the machines keep anyway (:mod:`engine.core.window`, :mod:`engine.core.trace`).

Of the routes only the frontends know how long answers took. What they have counted comes with their beats, as bytes
that nobody reads until somebody asks, and then once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from math import inf
from typing import Annotated, Any, Final, TypeVar

import msgspec

from engine.core.front import Frontend, FrontMachine, Said
from engine.core.member import Member
from engine.core.released import Released
from engine.core.stage import StageMachine
from engine.core.trace import Releases, by_reason
from engine.core.window import LEAST_S, WINDOW_S, of_buckets, quantiles
from engine.core.wire import UNREADABLE
from engine.metrics import MAX_BYTES, MAX_FAMILIES, Family, Sample

SHARES: Final = (0.5, 0.99)
ENOUGH: Final = 20  # batches; where those of the window are fewer, older ones count as well
OLD_S: Final = 300.0
SAMPLE: Final = 200  # of batches whose times are looked at: whoever asks holds up the broker, by some 0.3 ms a stage

Key = TypeVar("Key")


class Latency(msgspec.Struct, frozen=True):
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class Lately(msgspec.Struct, frozen=True):
    """Of a stage in the last seconds. ``arrived_s``, ``items_s``, ``batches_s``: items that came, items and batches
    that left, a second. ``queue``: how long the first item of a batch waited, of the last ``batches``, which left for
    these ``reasons``; ``compute``: how long ``forward`` took. ``busy``: the share of the time in which its workers
    computed, in the mean."""

    arrived_s: float = 0.0
    items_s: float = 0.0
    batches_s: float = 0.0
    failed_s: float = 0.0
    mean_batch: float = 0.0
    busy: float = 0.0
    batches: int = 0
    reasons: dict[str, int] = {}
    queue: Latency = Latency()
    compute: Latency = Latency()


class WorkerLately(msgspec.Struct, frozen=True):
    """Of a worker, likewise. ``cpu``: CPUs that its process kept busy, by its own word."""

    items_s: float = 0.0
    batches_s: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0


def of_worker(worker: Member, now: float) -> WorkerLately:
    batches, items, busy, cpu = worker.window.rates(now, worker.counts(now))
    return WorkerLately(round(items, 2), round(batches, 2), round(min(busy, 1.0), 4), round(cpu, 3))


def of_stage(machine: StageMachine, workers: Sequence[WorkerLately], now: float) -> Lately:
    """``workers``: those that serve, or did so just now."""
    arrived, items, batches, failed = machine.window.rates(now, machine.counts())
    recent = _recent(machine.trace, now)
    some = recent[:: len(recent) // SAMPLE + 1]
    queue = quantiles([(entry.waited_s, entry.count) for entry in some], SHARES)
    took = [(entry.compute_us / 1e6 / entry.calls, entry.count) for entry in some if entry.compute_us]
    return Lately(
        arrived_s=round(arrived, 2),
        items_s=round(items, 2),
        batches_s=round(batches, 2),
        failed_s=round(failed, 2),
        mean_batch=round(items / batches, 2) if batches else 0.0,
        busy=round(sum(worker.busy for worker in workers) / len(workers), 4) if workers else 0.0,
        batches=sum([entry.calls for entry in recent]),
        reasons=by_reason(recent),
        queue=_latency(queue),
        compute=_latency(quantiles(took, SHARES)),
    )


def _recent(trace: Releases, now: float) -> Sequence[Released]:
    """In no order."""
    since = now - WINDOW_S
    found = [row for row in trace.rows if row is not None and row.at > since]
    if len(found) >= ENOUGH:
        return found
    return [entry for entry in trace.entries()[-ENOUGH:] if entry.at > now - OLD_S]


def _latency(seconds: Sequence[float]) -> Latency:
    return Latency(*[round(one * 1000, 3) for one in seconds])


# --- routes ----------------------------------------------------------------------------------------------------------


class RouteStatus(msgspec.Struct, frozen=True):
    """A route, and what its clients were answered, by status, since the frontends began; of the last seconds how many
    answers a second, and how long they took from the request's head on. ``edges``: of a route that branches, the steps
    that there are (:meth:`engine.core.routing.Topology.edges`); without them it is a chain."""

    path: str
    stages: list[str]
    answers: dict[str, int] = {}
    answers_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    edges: list[tuple[str, str, str]] = []


class _Light(msgspec.Struct, frozen=True, array_like=True):
    """A :class:`~engine.metrics.Family` whose samples are read only where they are wanted: a frontend tells of much."""

    name: str
    kind: str
    doc: str
    samples: msgspec.Raw


class _Sample(msgspec.Struct, frozen=True, array_like=True):
    """Of such a one; its names, which come to nobody's page, are not looked at as those for /metrics are."""

    name: str
    labels: dict[str, str]
    value: float


_lights: Final = msgspec.msgpack.Decoder(Annotated[list[_Light], msgspec.Meta(max_length=MAX_FAMILIES)])
_samples: Final = msgspec.msgpack.Decoder(list[_Sample])


class _Read:
    """What one process has counted: durations by path and bound (not cumulative), answers by path and status."""

    __slots__ = ("answers", "durations")

    def __init__(self) -> None:
        self.durations: dict[str, dict[float, int]] = {}
        self.answers: dict[str, dict[str, int]] = {}

    def add_answers(self, samples: Iterable[_Sample | Sample]) -> None:
        for sample in samples:
            by_code = self.answers.setdefault(sample.labels.get("endpoint", ""), {})
            code = sample.labels.get("code", "")
            by_code[code] = by_code.get(code, 0) + int(sample.value)

    def add_durations(self, samples: Iterable[_Sample]) -> None:
        below: dict[str, float] = {}
        for sample in samples:
            if not sample.name.endswith("_bucket"):
                continue
            path, bound = sample.labels.get("endpoint", ""), _bound(sample.labels.get("le", ""))
            self.durations.setdefault(path, {})[bound] = int(sample.value - below.get(path, 0.0))
            below[path] = sample.value


def _read(said: Said, namespace: str) -> _Read:
    """Read once, by whoever first asks: a beat a second for each frontend, which each process of them may ask about."""
    if not isinstance(said.read, _Read):
        said.read = _unpacked(said.packed, namespace)
    return said.read


def _unpacked(packed: bytes, namespace: str) -> _Read:
    read = _Read()
    if not packed or len(packed) > MAX_BYTES:
        return read
    try:
        for family in _lights.decode(packed):
            if family.name == f"{namespace}_throughput":
                read.add_answers(_samples.decode(family.samples))
            elif family.name == f"{namespace}_request_duration_second":
                read.add_durations(_samples.decode(family.samples))
    except (*UNREADABLE, ValueError, OverflowError):  # of one process, which costs only itself
        return _Read()
    return read


def routes(machine: FrontMachine, namespace: str, retired: Sequence[Family], now: float) -> list[RouteStatus]:
    """What 16 frontends say of 5 routes takes 2 ms to read, once for each time that they say it, and 0.5 ms to add up;
    of 32 and 10 routes 8 and 2 ms."""
    gone, over_s = _Read(), 0.0
    for family in retired:
        if family.name == f"{namespace}_throughput":
            gone.add_answers(family.samples)
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    durations: defaultdict[str, defaultdict[float, int]] = defaultdict(lambda: defaultdict(int))
    _add(answers, gone.answers)
    for frontend in machine.frontends.values():
        newest = _read(frontend.said, namespace)
        _add(answers, newest.answers)
        if (former := frontend.told.oldest(now)) is not None and frontend.heard - former[0] >= LEAST_S:
            _add(durations, newest.durations)
            _add(durations, _read(former[1], namespace).durations, sign=-1)
            over_s = max(over_s, frontend.heard - former[0])
    found = []
    for number, route in enumerate(machine.topology.routes):
        counts = durations[route.path]
        bounds = sorted(counts)
        p50, p99 = of_buckets([bound for bound in bounds if bound < inf], [counts[one] for one in bounds], SHARES)
        found.append(
            RouteStatus(
                route.path,
                list(machine.topology.stage_names(number)),
                {code: count for code, count in sorted(answers[route.path].items()) if count},
                round(sum(counts.values()) / over_s, 2) if over_s else 0.0,
                round(p50 * 1000, 3),
                round(p99 * 1000, 3),
                machine.topology.edges(number) if route.after else [],
            )
        )
    return found


def _add(
    sums: Mapping[str, MutableMapping[Key, int]], counts: Mapping[str, Mapping[Key, int]], *, sign: int = 1
) -> None:
    for path, each in counts.items():
        whole = sums[path]
        for key, count in each.items():
            whole[key] = whole.get(key, 0) + sign * count


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return inf


# --- processes, failures ---------------------------------------------------------------------------------------------


def frontends(machine: FrontMachine, now: float) -> list[dict[str, Any]]:
    return [_frontend(frontend, now) for frontend in machine.frontends.values()]


def _frontend(frontend: Frontend, now: float) -> dict[str, Any]:
    (cpu,) = frontend.window.rates(now, (frontend.cpu_us / 1e6,))
    return {
        "name": frontend.who.name,
        "pid": frontend.who.pid,
        "pending": len(frontend.requests),
        "url": frontend.url,
        "node": frontend.node,
        "version": frontend.version,
        "resident_bytes": frontend.resident_bytes,
        "cpu": round(cpu, 3),
    }


def errors(machine: FrontMachine, now: float) -> list[dict[str, Any]]:
    """The last failures, the newest first."""
    stages, paths = machine.topology.stages, machine.topology.routes
    return [
        {
            "age_s": round(max(0.0, now - one.at), 3),
            "stage": stages[one.stage] if 0 <= one.stage < len(stages) else "",
            "route": paths[one.route].path if 0 <= one.route < len(paths) else "",
            "status": one.status,
            "message": one.text,
            "count": one.count,
            "requests": [request for request in one.ids if request],
        }
        for one in machine.failures.entries()
    ]


def failed(machine: FrontMachine) -> dict[str, dict[str, int]]:
    """Requests that failed since the start, by stage and status."""
    stages = machine.topology.stages
    counts: dict[str, dict[str, int]] = {}
    for (stage, status), count in sorted(machine.failures.counts.items()):
        name = stages[stage] if 0 <= stage < len(stages) else ""
        counts.setdefault(name, {})[str(status)] = count
    return counts


def rates(machine: FrontMachine, now: float) -> Mapping[str, float]:
    """Requests a second: let in, answered, refused at the door, failed."""
    names = ("admitted_s", "answered_s", "refused_s", "failed_s")
    return {name: round(rate, 2) for name, rate in zip(names, machine.window.rates(now, machine.counts()), strict=True)}

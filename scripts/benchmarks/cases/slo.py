"""Goals: what is answered within them in overload, after a burst, beside who floods; and what that costs.

Workers sleep in the place of devices, so the CPUs are free for the systems and the client. Beside Mosec stands *base*,
a former commit of Stageline that gave out batches without knowing how long they take. All systems of a point are up at
the same time, idle but for one, and take turns, so that a drift of the machine hits all alike; latency is the client's,
from the time at which a request was meant to be sent. Everything that is not said is each system's default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Final

from benchmarks import goals, record, systems, wrk
from benchmarks.bench import Window, present
from benchmarks.plan import Service, Stage
from benchmarks.result import OURS, PEER, Case, Metric, Picture, Point, Row, Summary, Target, divided
from benchmarks.systems import BASE, Running

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BODY: Final = '{"x": 2}'
BATCH: Final = 32
TIMEOUT_S: Final = 3.0  # the default, as the next one
CAPACITY: Final = 1024
SEED: Final = 9
MOST_RATE: Final = 8_000.0  # what client and systems have the CPUs for, on a small machine
COMPARED: Final = "engine_predictions_compared_total"
RIGHT: Final = "engine_predictions_within_20_percent_total"
ENOUGH: Final = 150  # requests of a window, which is made longer for them ...
LONGEST: Final = 3  # ... by so many times at most


@dataclass(frozen=True)
class Device:
    """``work`` of :mod:`benchmarks.work`, at so many workers; ``full_s``: of a full batch."""

    work: str
    label: str
    full_s: float
    workers: int

    @property
    def nominal(self) -> float:
        """Requests per second."""
        return self.workers * BATCH / self.full_s

    def service(self, *slos_ms: float) -> Service:
        """A path without a goal, and one for each of these."""
        paths = ("/inference", *(f"/within{slo_ms:g}" for slo_ms in slos_ms))
        stage = Stage(self.work, num=self.workers, max_batch_size=BATCH)
        return Service((stage,), paths=paths, capacity=CAPACITY, timeout_s=TIMEOUT_S, slos_ms=(0.0, *slos_ms))

    def point(self, **more: float | str) -> dict[str, float | str]:
        return {"t(n), ms": self.label, "workers": self.workers, **more}


def accelerator(workers: int) -> Device:
    return Device("Accelerator", "5 + 0.5 n", 0.021, workers)


def flat(workers: int) -> Device:
    return Device("Flat", "20 + 0.1 n", 0.0232, workers)


def steep(workers: int) -> Device:
    return Device("Steep", "1 + 2 n", 0.065, workers)


def padded(workers: int) -> Device:
    return Device("Padded", "3 + 0.6 powers of 2", 0.0222, workers)


def window_s(rate: float, seconds: float) -> float:
    """How long to measure at a rate."""
    return min(max(seconds, ENOUGH / rate), seconds * LONGEST)


class Together:
    """Systems that are up with one service, to be asked in turns."""

    def __init__(self, bench: Bench, stack: ExitStack, service: Service, names: Sequence[str]) -> None:
        self._bench = bench
        self.systems = [system for system in names if system != BASE or bench.base is not None]
        self._running = {system: stack.enter_context(bench.started(system, service, BODY)) for system in self.systems}

    def __getitem__(self, system: str) -> Running:
        return self._running[system]

    def turns(self, *once: str) -> Iterator[tuple[int, str]]:
        """(repeat, system). ``once``: these are far off the mark, and one look at them is enough."""
        return (
            (repeat, system) for repeat, system in self._bench.turns(self.systems) if system not in once or not repeat
        )

    def warm(self, rate: float) -> None:
        """Let each see batches of all sizes."""
        for system in self.systems:
            self._bench.crowd(self[system], rate, goals.arrivals(0.6 * rate, 0.8, SEED))

    def capacity(self, workers: int, full_s: float) -> float:
        """Requests per second with as many waiting as there can be, as our workers note them."""
        running, begin_ns = self[OURS], time.monotonic_ns()
        wrk.run(
            running.url, BODY, connections=4 * workers * BATCH, seconds=max(1.0, 20 * full_s), folder=running.folder
        )
        found = [
            record.items_per_second([batch for batch in batches if batch.begin_ns > begin_ns])
            for batches in record.read(running.records).values()
        ]
        if None in found:
            raise RuntimeError("some worker computed nothing")
        return sum(rate or 0.0 for rate in found)

    def predictions(self) -> tuple[float, float]:
        """How many of ours were compared with what came, and how many of these were right, so far."""
        told = systems.metrics(self[OURS].port)
        return goals.counted(told, COMPARED), goals.counted(told, RIGHT)

    def device_ms(self, system: str, window: Window) -> float | None:
        return goals.device_ms(chain.from_iterable(self._bench.batches(self[system], window).values()))


def kinds(service: Service, path: int, number: int) -> list[int]:
    """All requests by that path."""
    return [path % len(service.paths)] * number


# --- overload --------------------------------------------------------------------------------------------------------

OVERLOADED: Final = (accelerator(1), flat(1), flat(2), steep(2), steep(4))
BURSTS: Final = 4.0  # CV
POISSON, BURSTY = "Poisson", f"CV {BURSTS:g}"
LOADS: Final = (
    (POISSON, 1.0, 1.05),
    (POISSON, 1.0, 2.0),
    (POISSON, 1.0, 5.0),
    (BURSTY, BURSTS, 2.0),
    (BURSTY, BURSTS, 5.0),
)
GOALS: Final = (2.5, 6.0)  # in full batches


def overload(bench: Bench) -> Iterator[Row]:
    for device in OVERLOADED[: 1 if bench.quick else None]:
        service = device.service(*(goal * device.full_s * 1000 for goal in GOALS))
        with ExitStack() as stack:
            together = Together(bench, stack, service, (OURS, PEER))
            rate = together.capacity(device.workers, device.full_s)
            bench.say(f"{device.label}, {device.workers} workers: {rate:.0f}/s, {rate / device.nominal:.3f} of nominal")
            for arrivals, cv, load in LOADS[1:3] if bench.quick else LOADS:
                if load * rate > MOST_RATE:
                    continue
                before, were_right = together.predictions()
                for repeat, system in together.turns(PEER):
                    for path, goal in enumerate(GOALS, start=1):
                        slo_s = goal * device.full_s
                        settle_s = slo_s + 0.3
                        if system == OURS or path == 1:  # the goal is nothing to the others
                            due = goals.arrivals(load * rate, settle_s + bench.seconds, f"{SEED} {repeat}", cv)
                            asked, _ = bench.crowd(together[system], rate, due, kinds=kinds(service, path, len(due)))
                        late = goals.settled(asked, settle_s)
                        values = goals.success(late, slo_s) | goals.latencies(late)
                        values["goodput"] = goals.good(late, slo_s) / (due[-1] - settle_s) / rate
                        yield Row(system, repeat, device.point(arrivals=arrivals, load=load, goal=goal), values)
                compared, right = together.predictions()
                if compared > before:
                    share = (right - were_right) / (compared - before)
                    yield Row(OURS, 0, device.point(arrivals=arrivals, load=load, goal="all"), {"right": share})


OVERLOAD: Final = Case(
    name="slo-overload",
    group="slo",
    title="Goals: overload",
    about=(
        f"Workers that sleep t(n), batches of {BATCH}; arrivals at multiples of the capacity (what our workers reach "
        f"here, now), Poisson or with gaps of a gamma distribution (CV {BURSTS:g}), {CAPACITY:,} requests admitted at "
        "once in both. Goodput is what was answered within the goal (`slo` of the route, in times of a full batch), by "
        "the capacity, once the load had settled."
    ),
    by=("t(n), ms", "workers", "arrivals", "load", "goal"),
    metrics=(
        Metric("goodput", "goodput, of the capacity", "higher", digits=3),
        Metric("late", "answered too late, share", digits=3),
        Metric("p99_ms", "p99 of answers, ms"),
        Metric("refused_p99_ms", "p99 of refusals, ms"),
        Metric("right", "predicted within 20 %, share", "higher", digits=3),
    ),
    run=overload,
    seconds=1.0,
    repeats=2,
    pictures=(Picture("goodput", "load", "Goodput within the goal, of the capacity", False),),
    targets=(
        *(
            Target(
                f"goodput within {goal:g} t(B), at any load",
                0.95,
                lambda summary, goal=goal: lowest(summary, "goodput", lambda point: point["goal"] == goal),  # type: ignore[misc]
                at_least=True,
                unit="",
            )
            for goal in GOALS
        ),
        Target(
            "predicted at the door within 20 % of what it took, share, on average",
            0.9,
            lambda summary: mean(summary, "right"),
            at_least=True,
            unit="",
        ),
    ),
)


def mean(summary: Summary, metric: str) -> float | None:
    """Ours, over all points that have it."""
    found = summary.ours(metric)
    return fmean(found) if found else None


def lowest(summary: Summary, metric: str, where: Callable[[Point], bool]) -> float | None:
    """Ours at the worst of these points."""
    return min(summary.ours(metric, where), default=None)


# --- below saturation ------------------------------------------------------------------------------------------------

BESIDE: Final = (accelerator(2), accelerator(4))  # also beside Mosec
ALONE: Final = (accelerator(1), flat(1), flat(4), steep(2), steep(4), padded(2), padded(4))
PERCENT: Final = (10, 30, 70)
BOTH: Final = ("p50_ms", "p99_ms")


def latency(bench: Bench) -> Iterator[Row]:
    devices = (*BESIDE, *ALONE)
    for device in devices[1:2] if bench.quick else devices:
        with ExitStack() as stack:
            names = (OURS, PEER, BASE) if device in BESIDE else (OURS, BASE)
            together = Together(bench, stack, device.service(), names)
            together.warm(device.nominal)
            points = [(POISSON, 1.0, percent) for percent in PERCENT]
            for arrivals, cv, percent in [*points, (BURSTY, BURSTS, 50)]:
                bench.say(f"{device.label}, {device.workers} workers, {arrivals}, {percent} %")
                rate = device.nominal * percent / 100
                seconds = window_s(rate, bench.seconds)
                for repeat, system in together.turns():
                    due = goals.arrivals(rate, seconds, f"{SEED} {repeat}", cv)
                    asked, window = bench.crowd(together[system], device.nominal, due)
                    values = goals.latencies(asked) | present({"device_ms": together.device_ms(system, window)})
                    yield Row(system, repeat, device.point(arrivals=arrivals, **{"load %": percent}), values)


def ratios(summary: Summary, metric: str, to: str, where: Callable[[Point], bool]) -> list[float]:
    """Of ours, at each of these points."""
    found = [summary.ratio(point, metric, to=to) for point in summary.points() if where(point)]
    return [ratio for ratio in found if ratio is not None]


def reduced(
    reduce: Callable[[list[float]], float], metrics: Sequence[str], to: str, where: Callable[[Point], bool]
) -> Callable[[Summary], float | None]:
    def measure(summary: Summary) -> float | None:
        found = [ratio for metric in metrics for ratio in ratios(summary, metric, to, where)]
        return reduce(found) if found else None

    return measure


def beside(point: Point) -> bool:
    return point["arrivals"] == POISSON and (point["t(n), ms"], point["workers"]) in {
        (device.label, device.workers) for device in BESIDE
    }


def anywhere(_point: Point) -> bool:
    return True


LATENCY: Final = Case(
    name="slo-latency",
    group="slo",
    title="Goals: below saturation",
    about=(
        f"Workers that sleep t(n), batches of {BATCH}, nothing set but their number; arrivals at a share of the "
        f"nominal capacity, Poisson or with gaps of a gamma distribution (CV {BURSTS:g}). Device time is what workers "
        "computed, for each request. *base* is the commit that is named below."
    ),
    by=("t(n), ms", "workers", "arrivals", "load %"),
    metrics=(
        Metric("mean_ms", "mean, ms"),
        Metric("p50_ms", "p50, ms"),
        Metric("p99_ms", "p99, ms"),
        Metric("device_ms", "device time, ms"),
    ),
    run=latency,
    seconds=0.7,
    repeats=2,
    targets=(
        Target("mean, of base's, at the worst point", 1.05, reduced(max, ["mean_ms"], BASE, anywhere)),
        Target("mean, of base's, on average", 0.95, reduced(fmean, ["mean_ms"], BASE, anywhere)),
        Target("p99, of base's, at the worst point", 1.05, reduced(max, ["p99_ms"], BASE, anywhere)),
        Target("p99, of base's, on average", 0.90, reduced(fmean, ["p99_ms"], BASE, anywhere)),
        Target("device time of a request, of base's, on average", 0.95, reduced(fmean, ["device_ms"], BASE, anywhere)),
        Target("p50 and p99 up to 70 %, of Mosec's, on average", 0.7, reduced(fmean, BOTH, PEER, beside)),
        Target("p50 and p99 up to 70 %, of Mosec's, at the worst point", 0.7, reduced(max, BOTH, PEER, beside)),
        Target("p50 and p99 at any rate, of Mosec's", 1, reduced(max, BOTH, PEER, anywhere)),
    ),
)


# --- a slow worker ---------------------------------------------------------------------------------------------------

UNEVEN: Final = Device("Uneven", "20 + 0.1 n", 0.0232, 4)
PACE: Final = (3 + 1 / 3) / 4  # of what four equal ones carry


def slow_worker(bench: Bench) -> Iterator[Row]:
    capacity = UNEVEN.nominal * PACE
    with ExitStack() as stack:
        together = Together(bench, stack, UNEVEN.service(), (OURS, PEER, BASE))
        together.warm(capacity)
        for percent in (80,) if bench.quick else (30, 80):
            bench.say(f"one of four is slow, {percent} %")
            for repeat, system in together.turns():
                due = goals.arrivals(capacity * percent / 100, bench.seconds, f"{SEED} {repeat}")
                asked, window = bench.crowd(together[system], capacity, due)
                values = goals.latencies(asked) | present({"device_ms": together.device_ms(system, window)})
                yield Row(system, repeat, {"load %": percent}, values)


SLOW: Final = Case(
    name="slo-slow-worker",
    group="slo",
    title="Goals: one worker three times slower",
    about=(
        f"`sleep(0.020 + 0.0001 * len(batch))`, batches of {BATCH}, four workers, one of them three times slower; "
        "Poisson arrivals."
    ),
    by=("load %",),
    metrics=LATENCY.metrics,
    run=slow_worker,
    seconds=1.0,
    repeats=2,
    targets=(Target("p99, of base's, on average", 0.6, reduced(fmean, ["p99_ms"], BASE, anywhere)),),
)


# --- a burst ---------------------------------------------------------------------------------------------------------

BURST: Final = accelerator(1)
USUAL, AT_ONCE = 0.8, 3.0  # of the capacity
BURST_AT_S, BURST_S = 1.0, 0.5
TRIES: Final = 3
WITHIN: Final = 4.0  # full batches


def burst(bench: Bench) -> Iterator[Row]:
    slo_s = WITHIN * BURST.full_s
    service = BURST.service(slo_s * 1000)
    with ExitStack() as stack:
        together = Together(bench, stack, service, (OURS, BASE) if bench.quick else (OURS, PEER, BASE))
        rate = together.capacity(BURST.workers, BURST.full_s)
        together.warm(rate)
        for repeat, system in together.turns(PEER):
            bench.say(f"a burst for {system}")
            usual = goals.arrivals(USUAL * rate, BURST_AT_S + BURST_S + bench.seconds, f"{SEED} {repeat}")
            more = goals.arrivals((AT_ONCE - USUAL) * rate, BURST_S, f"more {repeat}", begin=BURST_AT_S)
            due = sorted([*usual, *more])
            asked, _ = bench.crowd(together[system], rate, due, tries=TRIES, kinds=kinds(service, 1, len(due)))
            firsts = [one for one in asked if one.first]
            end = BURST_AT_S + BURST_S
            during = [one for one in firsts if BURST_AT_S <= one.at < end]
            values = {
                "recovered_s": goals.recovered_s(firsts, end, end + bench.seconds, rate, slo_s),
                "during": goals.good(during, slo_s) / len(during),
                "after": goals.success(goals.settled(firsts, end + bench.seconds - 1.0), slo_s)["success"],
            }
            yield Row(system, repeat, {"goal": WITHIN}, values)


BURST_CASE: Final = Case(
    name="slo-burst",
    group="slo",
    title="Goals: a burst, and clients that try again",
    about=(
        f"`sleep(0.005 + 0.0005 * len(batch))`, batches of {BATCH}, one worker; {USUAL:g} of the capacity, and for "
        f"half a second {AT_ONCE:g} times the capacity, by clients that ask again {TRIES} times, 20 ms after each. "
        "Recovered: from the end of the burst until in every half second 99 of 100 first tries are answered within the "
        "goal of 4 full batches."
    ),
    by=("goal",),
    metrics=(
        Metric("recovered_s", "recovered after, s"),
        Metric("during", "first tries in the burst, share within the goal", "higher", digits=3),
        Metric("after", "in the last second, share within the goal", "higher", digits=3),
    ),
    run=burst,
    seconds=3.5,
    repeats=2,
    targets=(
        Target("recovered", 2.0, lambda summary: summary.value(OURS, {"goal": WITHIN}, "recovered_s"), unit=" s"),
    ),
)


# --- shares and classes ----------------------------------------------------------------------------------------------

SHARED: Final = accelerator(1)
SETTLE_S: Final = 1.0
OVER: Final = 1.5  # times the capacity, all together
FLOOD: Final[Mapping[str, tuple[str, float]]] = {  # who -> more lines of its requests' heads, share of the arrivals
    "floods": ("x-api-key: flood\r\n", 0.8),
    "client b": ("x-api-key: b\r\n", 0.1),
    "client c": ("x-api-key: c\r\n", 0.1),
}
CLASSES: Final[Mapping[str, tuple[str, float]]] = {
    "normal": ("", 0.4),
    "low": ("x-priority: low\r\n", 0.6),
}


def shares(bench: Bench) -> Iterator[Row]:
    slo_s = WITHIN * SHARED.full_s
    service = SHARED.service(slo_s * 1000)
    with ExitStack() as stack:
        together = Together(bench, stack, service, (OURS,) if bench.quick else (OURS, PEER))
        rate = together.capacity(SHARED.workers, SHARED.full_s)
        together.warm(rate)
        for what, them in (("clients", FLOOD), ("classes", CLASSES)):
            bench.say(f"{what}, {OVER:g} times the capacity")
            heads = [head for head, _ in them.values()]
            for repeat, system in together.turns(PEER):
                seconds = SETTLE_S + bench.seconds
                groups = [
                    goals.arrivals(OVER * rate * share, seconds, f"{who} {repeat}") for who, (_, share) in them.items()
                ]
                due, which = goals.mixed(*groups)
                second = [len(heads) + kind for kind in which]  # by the path that has a goal
                asked, _ = bench.crowd(together[system], rate, due, heads=heads, kinds=second)
                whole = goals.settled(asked, SETTLE_S)
                for number, who in enumerate(them):
                    found = goals.settled(whole, SETTLE_S, len(heads) + number)
                    yield Row(system, repeat, {"who": who}, goals.success(found, slo_s))
                goodput = goals.good(whole, slo_s) / bench.seconds / rate
                yield Row(system, repeat, {"who": f"all {what}"}, {"goodput": goodput})


SHARES: Final = Case(
    name="slo-shares",
    group="slo",
    title="Goals: one client that floods, and classes",
    about=(
        f"`sleep(0.005 + 0.0005 * len(batch))`, batches of {BATCH}, one worker, {OVER:g} times its capacity, a goal of "
        "4 full batches. Three clients with tokens of their own send 80, 10 and 10 % of it; then 40 % are of the class "
        "`normal` and 60 % of `low`. Mosec has neither clients nor classes."
    ),
    by=("who",),
    metrics=(
        Metric("success", "answered within the goal, share", "higher", digits=3),
        Metric("goodput", "goodput, of the capacity", "higher", digits=3),
        Metric("refused", "refused, share", "neither", digits=3),
    ),
    run=shares,
    seconds=2.0,
    repeats=2,
    targets=(
        Target(
            "success of the clients beside the one that floods",
            0.99,
            lambda summary: lowest(summary, "success", lambda point: str(point["who"]).startswith("client ")),
            at_least=True,
            unit="",
        ),
        Target(
            "success of the higher class",
            0.99,
            lambda summary: summary.value(OURS, {"who": "normal"}, "success"),
            at_least=True,
            unit="",
        ),
        Target(
            "goodput of all",
            0.95,
            lambda summary: lowest(summary, "goodput", anywhere),
            at_least=True,
            unit="",
        ),
    ),
)


# --- what it costs ---------------------------------------------------------------------------------------------------

GOAL, TOKENS = "with goals", "and tokens"
SIDES: Final[Mapping[str, tuple[str, wrk.Head]]] = {  # path, head
    OURS: ("/inference", wrk.USUAL),
    GOAL: ("/within1000", wrk.USUAL),
    TOKENS: ("/within1000", wrk.Head({"x-api-key": "token"})),
}
SIZES: Final = (1, 32)
CONNECTIONS: Final = 64


def cpu(bench: Bench) -> Iterator[Row]:
    for size in SIZES:
        service = Service(
            (Stage("Echo", max_batch_size=size),), paths=("/inference", "/within1000"), slos_ms=(0.0, 1000.0)
        )
        with ExitStack() as stack:
            together = Together(bench, stack, service, (OURS, BASE))
            sides = [*SIDES, *(system for system in together.systems if system != OURS)]
            for system in together.systems:  # warm-up
                bench.closed(together[system], BODY, CONNECTIONS, seconds=1)
            for repeat, side in bench.turns(sides):
                bench.say(f"echo, batches of {size}, {side}")
                running = together[OURS if side in SIDES else side]
                path, head = SIDES.get(side, SIDES[OURS])
                report, window = bench.closed(running, BODY, CONNECTIONS, head=head, path=path)
                yield Row(
                    side, repeat, {"batch size": size}, {"rate": report.rate, **window.per_request(report.requests)}
                )


def dearer(side: str, metric: str, to: str) -> Callable[[Summary], float | None]:
    """The worst ratio of a side's to another's over the sizes of batches."""

    def measure(summary: Summary) -> float | None:
        found = [
            divided(summary.value(side, point, metric), summary.value(to, point, metric)) for point in summary.points()
        ]
        return max((ratio for ratio in found if ratio is not None), default=None)

    return measure


CPU: Final = Case(
    name="slo-cpu",
    group="slo",
    title="Goals: what they cost where nobody has to wait",
    about=(
        f"Echo, one worker, {CONNECTIONS} connections, closed loop (wrk), one service: by a route without a goal, by "
        "one with a goal, and with a token in each request; *base* beside it. In turns, all within one run."
    ),
    by=("batch size",),
    metrics=(
        Metric("cpu_us_broker", "CPU of the broker, us/request", digits=1),
        Metric("cpu_us_frontend", "CPU of the frontend, us/request", digits=1),
        Metric("rate", "requests/s", "higher", digits=0),
    ),
    run=cpu,
    seconds=1,
    targets=(
        Target("CPU of the broker with goals and tokens, of that without", 1.1, dearer(TOKENS, "cpu_us_broker", OURS)),
        Target("CPU of the broker without goals, of base's", 1.1, dearer(OURS, "cpu_us_broker", BASE)),
    ),
)

CASES: Final = (OVERLOAD, LATENCY, SLOW, BURST_CASE, SHARES, CPU)

"""One ``engine bench`` from beginning to end: what is measured, by which rule, and what is shown of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile

from engine.bench import highest, payloads, target, told, versus
from engine.bench.bar import Bar
from engine.bench.figures import Figures, figures
from engine.bench.flags import ROUND_S, SECONDS, fields_of, see_to_words
from engine.bench.http import request
from engine.bench.load import Client
from engine.bench.payloads import Payloads
from engine.bench.served import served
from engine.bench.target import Target
from engine.descriptors import allow_many
from engine.errors import ConfigError
from engine.exitcodes import ExitCode
from engine.planning.answer import arrivals_of
from engine.planning.files import write
from engine.simulation.arrivals import Arrivals

START_RATE = 16.0  # requests per second, from where the highest is looked for
LAST_TIMES = 3  # as long as a step is what confirms the result
FEWEST = 100  # requests of a step: fewer say nothing of one in a hundred
FEW = 20  # and of a round, which others are like
GOALS = 10  # as long as a step is at least: a queue that is too long by a little needs time to show it
SLOWEST_S = 30.0  # of a step, however few they are
CUT_S = 2.0  # behind the goal, in a search: who has no answer by then has missed it


@dataclass(frozen=True)
class Asked:
    """A service that is ready to be measured."""

    name: str
    client: Client
    payloads: Payloads


def run(options: argparse.Namespace) -> int:
    """The exit code: FAILED where a goal was given and is missed."""
    see_to_words(options)
    allow_many()
    arrivals = arrivals_of(options)
    bar = Bar()
    try:
        with ExitStack() as stack:
            services = [stack.enter_context(_ready(text, options, bar)) for text in options.services]
            if len(services) == 2 and services[0].name == services[1].name:
                raise ConfigError([f"both are {services[0].name}: expected two services"])
            measure = Measure(options, arrivals, bar)
            if len(services) == 2:
                found = _compared(services, measure, options)
            elif options.rate is None and options.arrivals is None:
                found = _highest(services[0], measure, options)
            else:
                found = _once(services[0], measure, options)
    finally:
        bar.close()
    if options.picture is not None:
        write(options.picture, told.picture(found))
    print(told.as_json(found) if options.json else told.table(found))
    return ExitCode.OK if found.is_met else ExitCode.FAILED


class Measure:
    """Runs, each with the same words."""

    def __init__(self, options: argparse.Namespace, arrivals: Arrivals, bar: Bar) -> None:
        self._options = options
        self._arrivals = arrivals
        self._bar = bar

    @property
    def arrivals(self) -> Arrivals:
        return self._arrivals

    def run(
        self, asked: Asked, rate: float, seconds: float, *, seed: int = 0, warm_s: float | None = None, words: str = ""
    ) -> Figures:
        options = self._options
        warm_s = options.warm_up if warm_s is None else warm_s
        arrivals = self._arrivals.at(rate)
        until = warm_s + seconds
        due = list(takewhile(lambda at: at < until, arrivals.instants(options.seed + seed)))
        if not due:  # by chance, where they are few
            due = [(warm_s + until) / 2]

        def tell(at: float, done: int) -> None:
            self._bar.show(at / until, f"{words}{min(at, until):.0f} of {until:g} s, {done} of {len(due)} answered")

        outcome = asked.client.run(due, tell)
        return figures(outcome, rate, warm_s, until, options.slo or 0.0)

    def say(self, line: str) -> None:
        self._bar.say(line)


def _once(asked: Asked, measure: Measure, options: argparse.Namespace) -> told.Found:
    seconds = options.seconds or SECONDS
    found = measure.run(asked, measure.arrivals.rate, seconds)
    is_met = not options.slo or highest.is_kept(found, options.target)
    return _told(options, [asked], measure, is_met=is_met, runs=[found])


def _highest(asked: Asked, measure: Measure, options: argparse.Namespace) -> told.Found:
    step_s = options.seconds or ROUND_S
    tries = highest.highest(START_RATE, options.target)
    runs: list[Figures] = []
    try:
        step = next(tries)
        while True:
            seconds = max(step_s, GOALS * options.slo, min(FEWEST / step.rate, SLOWEST_S))
            seconds *= LAST_TIMES if step.is_last else 1
            words = f"{step.rate:.4g}/s, "
            found = measure.run(
                asked, step.rate, seconds, seed=len(runs), warm_s=min(options.warm_up, seconds / 3), words=words
            )
            measure.say(told.step(found, options.slo, options.target, is_last=step.is_last))
            runs.append(found)
            step = tries.send(found)
    except StopIteration as end:
        result: highest.Found = end.value
    return _told(options, [asked], measure, is_met=result.figures is not None, runs=runs, highest=result)


def _compared(services: Sequence[Asked], measure: Measure, options: argparse.Namespace) -> told.Found:
    rate = measure.arrivals.rate
    seconds = options.seconds or max(ROUND_S, min(FEW / rate, SLOWEST_S))
    rounds: list[list[Figures]] = [[], []]
    for asked in services:
        measure.run(asked, rate, 0.01, warm_s=max(options.warm_up, 0.5), words="warm-up, ")
    for number in range(options.rounds):
        order = (0, 1) if number % 2 else (1, 0)
        for side in order:
            words = f"round {number + 1} of {options.rounds}, {'AB'[side]}: "
            # The same instants for both: what they are asked is no difference between them.
            rounds[side].append(
                measure.run(services[side], rate, seconds, seed=number, warm_s=min(0.3, seconds / 5), words=words)
            )
    outcome = _told(options, services, measure, is_met=True, runs=[*rounds[0], *rounds[1]])
    return replace(outcome, verdicts=versus.verdicts(*rounds), rounds=(rounds[0], rounds[1]))


def _told(
    options: argparse.Namespace,
    services: Sequence[Asked],
    measure: Measure,
    *,
    is_met: bool,
    runs: Sequence[Figures],
    highest: highest.Found | None = None,
) -> told.Found:
    return told.Found(
        services=[asked.name for asked in services],
        sends=[asked.payloads.words for asked in services],
        arrivals=measure.arrivals.words,
        slo_s=options.slo or 0.0,
        target=options.target,
        runs=runs,
        is_met=is_met,
        highest=highest,
    )


# --- before it is measured -------------------------------------------------------------------------------------------


@contextmanager
def _ready(text: str, options: argparse.Namespace, bar: Bar) -> Iterator[Asked]:
    """A service that answers, and what it is sent."""
    with ExitStack() as stack:
        if target.is_url(text):
            where = target.parse(text, verify=not options.insecure)
        else:
            where, deployment = stack.enter_context(served(text, bar.say))
            where = replace(where, path=deployment.routes[0].path)
        fields = fields_of(options)
        where, bodies = _route(where, options, fields)
        if bodies.mime and not any(name.lower() == "content-type" for name, _ in fields):
            fields.append(("content-type", bodies.mime))
        method = options.method.upper()
        requests = [request(method, where.path, where.authority, fields, body) for body in bodies.bodies]
        timeout_s = options.timeout if options.rate or not options.slo else min(options.timeout, options.slo + CUT_S)
        client = Client(where, requests, connections=options.connections, timeout_s=timeout_s, method=method)
        stack.callback(client.close)
        yield Asked(where.base + where.path, client, bodies)


def _route(where: Target, options: argparse.Namespace, fields: Sequence[tuple[str, str]]) -> tuple[Target, Payloads]:
    """With a path, and what is sent there. Raises ConfigError where nobody says what."""
    where.looked_up()  # that somebody answers is said before all else
    path = options.path or where.path
    given: Payloads | None = None
    if options.data is not None:
        given = payloads.of_file(options.data, options.type)
    elif options.body is not None:
        given = payloads.of_text(options.body, options.type)
    elif options.method.upper() in ("GET", "HEAD"):
        given = Payloads([b""], "", "nothing")
    document = {} if given is not None and path else payloads.document_of(where, fields)
    routes = payloads.routes(document)
    if path in ("", "/") and routes and given is None:
        path = routes[0]
    where = replace(where, path=path or "/")
    if given is not None:
        return where, given
    found = payloads.of_service(document, where.path.partition("?")[0])
    if found is None:
        known = f" (it has {', '.join(routes)})" if routes and where.path.partition("?")[0] not in routes else ""
        raise ConfigError(
            [f"{where.base}{where.path}: what shall be sent? The service names no example there{known}; give one with "
             "--data FILE or --body '{\"x\": 3}'"]
        )  # fmt: skip
    return where, found

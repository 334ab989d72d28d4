"""One row on one place: the load, the fault, the way back to rest, and what it came to."""

from __future__ import annotations

import time
from dataclasses import dataclass

from faults import work
from faults.client import Client
from faults.ledger import Ask, Tally
from faults.place import PAGES, Place
from faults.rows import Row
from faults.scene import Scene

REST_S = 20.0  # what a deployment may take to hold nothing for requests that have all been answered


@dataclass(frozen=True)
class Seen:
    """What a row came to; it passes if there are no ``problems``."""

    row: Row
    system: str
    seed: int
    injected: int
    tally: Tally
    problems: list[str]
    added_p99_ms: float
    log: str  # the end of it, if there are problems

    @property
    def is_broken(self) -> bool:
        """Whether it left nothing to go on with."""
        return any(problem.startswith(("stuck", "ended")) for problem in self.problems)


@dataclass(frozen=True)
class Ordinary:
    """The requests of the load: most go one way through the service, and some in parts, where it has a route for it."""

    place: Place

    def __call__(self, number: int) -> Ask:
        service = self.place.service
        path = PAGES if service.has(PAGES) and number % work.LOAD_TENTH == 0 else "/work"
        return Ask(number, {"number": number}, work.proof(number, service.through(path)), path)


def run(row: Row, place: Place, *, seed: int, late_s: float, times: int | None = None, url: str = "") -> Seen:
    """Do it: ``times`` times, or as often as the row does in a test. ``url`` is where to ask, if not at the place.

    Raises nothing for what the place does wrong: that is told.
    """
    start = place.journal_size()
    client = Client(
        url or place.url,
        Ordinary(place),
        numbers=place.numbers,
        rate=row.rate,
        deadline_s=place.service.deadline_s,
        late_s=late_s,
    )
    scene = Scene(place, client, seed)
    problems = scene.problems
    faulty_since = time.monotonic()
    client.start()
    try:
        try:
            scene.good(row.before)
            faulty_since = time.monotonic()
            for _ in range(times or row.times):
                row.fault(scene)
                if not row.ends:
                    scene.whole()
            if not row.ends:
                scene.good(row.after)
        finally:
            client.stop()
        if not row.ends:
            scene.wait("nothing to be held", lambda: place.quiet() == "", within_s=REST_S)
    except AssertionError as error:
        problems.append(f"stuck: {error}; held: {place.quiet() if place.alive() else 'it has ended'}")
    computed = [(batch.stage, number) for batch in place.journal(start) for number in batch.numbers]
    tally = client.ledger.close(computed, once=row.once)
    if not scene.injected:
        problems.append("empty: nothing was injected")
    if not row.ends and not place.alive():
        problems.append("ended: the place did not outlive it")
    added = tally.p99_ms(since=faulty_since) - tally.p99_ms(until=faulty_since)
    problems += tally.problems(row.allowed)
    log = place.tail() if problems else ""
    return Seen(row, place.system, seed, scene.injected, tally, problems, added, log)

"""How long a stage's batches take on this machine, for a plan: its class is loaded and its example computed, in batches
of the sizes of :func:`engine.simulation.profile.sizes`, each several times.

In a process of its own for each stage, as in a deployment: with the environment, the CPUs and the threads that its
first worker would have, and without the others' memory. A stage that has no example is given what the stage before it
on a route returns for its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from engine.config import Deployment, StageSection
from engine.core.routing import JOIN, Split, Topology
from engine.errors import StartError, ValidationError
from engine.simulation.profile import StageProfile, sizes
from stages.base import Worker
from stages.build import examples, forward_example, fresh, handed_on, load_offline
from stages.compute import give_room
from stages.feeding import elements, ends, frames, gathered, is_joined, whole
from stages.sizes import copied
from stages.spread import parted
from stages.verdict import Verdict, verdict
from stages.warming import VALUES_MOST, nbytes_of, values_of
from stages.ways import WrongWay, goes_to

REPEATS_LEAST: Final = 3
REPEATS_MOST: Final = 25
SIZE_S: Final = 1.0  # of each size, once it was computed REPEATS_LEAST times ...
LONG_S: Final = 4.0  # ... or once, where it takes so long
STRAY: Final = 4.0  # times the median: something hung, which is no measure of what batches take

Say = Callable[[str], object]


def profile_stage(deployment: Deployment, name: str, say: Say = lambda line: None) -> StageProfile:
    """Measure one stage; ``say`` is told how far it is. Raises StartError where there is nothing to compute, or
    whatever the user's code raises. The worker is torn down."""
    spec = deployment.stage(name)
    say(f"{name}: loading {spec.worker}")
    worker = load_offline(deployment, spec)
    try:
        found = examples(worker) or _fed(deployment, spec, worker, say)
        values = values_of(worker, found)
        if not values:
            raise StartError(
                f"nothing to measure stage {name} with: give {type(worker).__qualname__} an example, a value that "
                "forward takes (where it batches, a list of them), or one to a stage before it; or write a profile by "
                "hand and give it with --profile"
            )
        measured = _measured(worker, spec, values, say)
        return replace(measured, parts=_parts(deployment.topology, spec.name, worker, found[0]))
    finally:
        worker.teardown()


def _parts(topology: Topology, name: str, worker: Worker, example: Any) -> dict[str, tuple[float, ...]]:
    """By path of a route, into how many parts what the stage returns for its example goes there. Nothing for a result
    that goes elsewhere, or cannot be taken apart: a check tells that."""
    number = topology.stages.index(name)
    splits = [(route, split) for route, at, split in topology.splits() if at == number and not split.names]
    if not splits:
        return {}
    results = whole(forward_example(worker, fresh(worker, example)))
    found: dict[str, tuple[float, ...]] = {}
    for route, split in splits:
        with suppress(WrongWay, ValidationError):
            if counts := tuple([float(len(parted(split, result)[1])) for result in results]):
                found[topology.routes[route].path] = counts
    return found


def _fed(deployment: Deployment, spec: StageSection, worker: Worker, say: Say) -> list[Any]:
    """Examples made of what a stage before it returns; none where that has none either."""
    topology = deployment.topology
    number = topology.stages.index(spec.name)
    formers: dict[tuple[int, Split | None], int] = {}  # of the stages before, by which route its results come here
    for route in topology.hops(number):
        for former in topology.routes[route].stages:
            if number in topology.readers(route, former) and JOIN not in topology.following(route, former):
                formers.setdefault((former, topology.split(route, former)), route)
    for (former, split), route in formers.items():
        together: list[tuple[Any, int]] = []
        with _computed(deployment, former, spec, say) as (other, results):
            if split is None:  # those that take this branch, if some do
                taken = [one for one in results if goes_to(topology, route, former, one) == number]
                values = handed_on(other, worker, taken or whole(results))
            elif number in split.heads:
                values = elements(split, other, worker, whole(results))
            else:
                values = []
                together = frames(split, other, worker, whole(results))
        if split is not None and together:
            pools = [_joined(deployment, route, head, spec, worker, say) for head in split.heads]
            values = gathered(split, together, pools)
        if values:
            return [values] if worker.max_batch_size > 1 else values[:1]
    return []


def _joined(
    deployment: Deployment, route: int, head: int, spec: StageSection, worker: Worker, say: Say
) -> Sequence[Any]:
    """Results of parts that begin at ``head``, as they arrive at the stage that gathers them."""
    topology = deployment.topology
    for end in ends(topology, route, head):
        with _computed(deployment, end, spec, say) as (other, results):
            joined = [one for one in results if is_joined(topology, route, end, one)]
            if values := handed_on(other, worker, joined):
                return values
    return ()


@contextmanager
def _computed(
    deployment: Deployment, number: int, spec: StageSection, say: Say
) -> Iterator[tuple[Worker, Sequence[Any]]]:
    """A stage before, while it is loaded, and what it returns for its example; nothing where it has none either."""
    section = deployment.stages[number]
    say(f"{spec.name}: it has no example; loading {section.name}, whose results it is given")
    former = load_offline(deployment, section)
    try:
        inputs = examples(former) or _fed(deployment, section, former, say)
        yield former, forward_example(former, fresh(former, inputs[0])) if inputs else ()
    finally:
        former.teardown()


def _measured(worker: Worker, spec: StageSection, values: Sequence[Any], say: Say) -> StageProfile:
    times: dict[int, float] = {}
    ratios: list[float] = []
    wanted = sizes(spec.max_batch_size, spec.batch_sizes)
    most = VALUES_MOST / nbytes_of(values[0])
    for number, size in enumerate(wanted, start=1):
        if size > most and times:
            say(f"{spec.name}: batches of {size} and more would have more than 1 GiB of values, and are not computed")
            break
        try:
            took = _timed(worker, values, size)
        except Exception as error:
            if not times or verdict(error) is not Verdict.MEMORY:
                raise
            give_room(error)
            say(f"{spec.name}: batches of {size} and more do not fit in memory")
            break
        usual = statistics.median(took)
        kept = [min(one, STRAY * usual) for one in took]
        times[size] = statistics.fmean(kept)
        ratios += [one / times[size] for one in kept]
        say(f"{spec.name}: size {number} of {len(wanted)}: a batch of {size} takes {times[size] * 1000:.4g} ms")
    noise = statistics.pstdev(ratios, 1.0) if len(ratios) > 1 else 0.0
    return StageProfile(times, round(noise, 4), worker.device)


def _timed(worker: Worker, values: Sequence[Any], size: int) -> list[float]:
    """Seconds of each computation but the first, in which much may begin."""
    took: list[float] = []
    begun = time.perf_counter()
    is_first = True
    place = 0  # values of an example may be small and large: each has its turn, in small batches too
    while len(took) < REPEATS_MOST:
        spent_s = time.perf_counter() - begun
        if spent_s > SIZE_S and (len(took) >= max(REPEATS_LEAST, len(values) // size) or (took and spent_s > LONG_S)):
            break
        batch = [copied(values[(place + offset) % len(values)]) for offset in range(size)]
        place += size
        example = batch if worker.max_batch_size > 1 else batch[0]
        began = time.perf_counter()
        forward_example(worker, example)
        if not is_first:
            took.append(time.perf_counter() - began)
        is_first = False
    return took

"""What a stage is given that has no example of its own: what those before it return, as it would arrive.

Where a request goes on in parts, a stage of the region gets elements of the list that was split, and the one behind the
region gets all together, with what the region returned for its own examples in place of each part's result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from engine.core.routing import JOIN, Split, Topology
from engine.errors import StartError, ValidationError
from stages.base import Worker
from stages.build import handed_on
from stages.spread import parted, together
from stages.ways import Done, Skip, WrongWay, goes_to


def coming(
    number: int, topology: Topology, workers: Mapping[int, Worker], outputs: Mapping[int, Sequence[Any]]
) -> Iterator[tuple[int, list[Any]]]:
    """Stages before this one, with what of their results comes to it; the nearest first. ``outputs``: what each has
    returned."""
    for route in topology.hops(number):
        for former in _formers(topology, route, number):
            split = topology.split(route, former)
            results = outputs.get(former, ())
            if split is not None:
                values = _of_parts(number, topology, route, former, workers, outputs)
                results = [one for one in results if isinstance(one, Skip)]
            else:
                values = []
            taken = [one for one in results if goes_to(topology, route, former, one) == number]
            if values := [*values, *handed_on(workers[former], workers[number], taken)]:
                yield former, values
    for route in topology.hops(number):  # none of them takes this branch: it is tried with what takes others
        for former in _formers(topology, route, number):
            if number in topology.following(route, former) and topology.split(route, former) is None:
                yield former, handed_on(workers[former], workers[number], whole(outputs.get(former, ())))


def _formers(topology: Topology, route: int, number: int) -> Sequence[int]:
    return topology.routes[route].stages[: topology.hop(route, number)][::-1]


def _of_parts(
    number: int,
    topology: Topology,
    route: int,
    former: int,
    workers: Mapping[int, Worker],
    outputs: Mapping[int, Sequence[Any]],
) -> list[Any]:
    split = topology.split(route, former)
    assert split is not None
    results = whole(outputs.get(former, ()))
    if number in split.heads:
        return elements(split, workers[former], workers[number], results)
    if number != split.gather:
        return []
    pools = []
    for head in split.heads:
        pool: list[Any] = []
        for end in ends(topology, route, head):
            joined = [one for one in outputs.get(end, ()) if is_joined(topology, route, end, one)]
            pool += handed_on(workers[end], workers[number], joined)
        pools.append(pool)
    return gathered(split, frames(split, workers[former], workers[number], results), pools)


def check_splits(topology: Topology, stage: int, results: Sequence[Any]) -> None:
    """Raises StartError for a result that a route is to go on with in parts, and cannot."""
    for route in topology.hops(stage):
        if (split := topology.split(route, stage)) is None:
            continue
        for result in whole(results):
            try:
                parted(split, result)
            except (WrongWay, ValidationError) as error:
                raise StartError(
                    f"stage {topology.stages[stage]} returned for its example what route {topology.routes[route].path} "
                    f"cannot go on with in parts: {error}"
                ) from error


def whole(results: Sequence[Any]) -> list[Any]:
    """Those that go on as the file has it."""
    return [one for one in results if not isinstance(one, (Done, Skip))]


def ends(topology: Topology, route: int, head: int) -> list[int]:
    """The stages with which a part may end that begins at ``head``; the last one first."""
    return [one for one in (head, *topology.later(route, head)) if JOIN in topology.following(route, one)][::-1]


def is_joined(topology: Topology, route: int, end: int, result: Any) -> bool:
    """Whether a part is done with this result."""
    return isinstance(result, Done) or goes_to(topology, route, end, result) == JOIN


def elements(split: Split, former: Worker, worker: Worker, results: Sequence[Any]) -> list[Any]:
    """The parts of what the stage before a region returned, as they arrive at one of its heads. A result that cannot be
    split raises."""
    parts = [results] if split.names else [parted(split, result)[1] for result in results]
    return handed_on(former, worker, [element for some in parts for element in some])


def frames(split: Split, former: Worker, worker: Worker, results: Sequence[Any]) -> list[tuple[Any, int]]:
    """The same as it arrives behind the region: what is beside the parts, and how many there are."""
    found = []
    for result in results:
        frame, parts = parted(split, result)
        if split.field:
            (frame,) = handed_on(former, worker, [frame])
        found.append((frame, len(split.names) or len(parts)))
    return found


def gathered(split: Split, found: Sequence[tuple[Any, int]], pools: Sequence[Sequence[Any]]) -> list[Any]:
    """What the stage behind the region gets. ``pools``: by branch, results of parts; each as often as need be."""
    turns = [cycle(pool) for pool in pools]
    values = []
    for frame, count in found:
        if count and not all(pools):
            continue
        results = [next(turns[number if split.names else 0]) for number in range(count)]
        values.append(together(split, frame, results))
    return values

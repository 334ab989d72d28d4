"""Making a worker object and calling it on its examples: the same way in a worker process and in a dry run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

from engine.config import Deployment, StageSection
from engine.config.schema import OIP
from engine.core.oip import Asked
from engine.core.routing import FINAL, Topology
from engine.core.wire import payload_size
from engine.errors import EncodingError, StartError
from engine.loader import load_class
from engine.process import own_env, place
from stages.base import Worker
from stages.compute import Codec, WrongResults, as_results
from stages.context import ItemIn
from stages.contract import check_class
from stages.mixin.typed import check_types
from stages.sizes import copied, filled_up, padded
from stages.stream import check_place, entry
from stages.ways import Done, Skip, plain, unwrapped


def create(
    cls: type,
    *,
    stage: str,
    worker_id: int,
    max_batch_size: int,
    batch_sizes: Sequence[int] = (),
    max_batch_cost: int = 0,
    is_cached: bool = False,
    device: str,
    args: Mapping[str, Any],
) -> Worker:
    """An object of the user's class, set up but not warmed up.

    Raises StartError for a class that could answer no request, or whatever the user's code raises.
    """
    check_class(cls, stage, asks_cost=max_batch_cost > 0, is_cached=is_cached)
    # Before __init__, which may already choose a device by worker_id.
    worker: Worker = _called(lambda: cls.__new__(cls, **args), cls, stage, args)  # type: ignore[call-overload]  # a Worker
    worker.worker_id = worker_id
    worker.stage = stage
    worker.max_batch_size = max_batch_size
    if batch_sizes:
        worker.batch_sizes = worker._sizes = tuple(batch_sizes)
    worker.max_batch_cost = max_batch_cost
    worker.device = device
    # The second half of what calling the class does.
    _called(lambda: worker.__init__(**args), cls, stage, args)  # type: ignore[misc]
    worker.setup()
    return worker


def _called(call: Callable[[], Any], cls: type, stage: str, args: Mapping[str, Any]) -> Any:
    """What ``call`` returns. Raises StartError where the class does not take the stage's ``args``."""
    try:
        return call()
    except TypeError as error:
        trace = error.__traceback__
        if trace is None or trace.tb_next is None or trace.tb_next.tb_next is not None:
            raise  # it came from inside: the user's own
        given = ", ".join(args) or "none"
        raise StartError(
            f"{cls.__qualname__} of stage {stage} does not take its args ({given}): {error}; see args under [[stage]]"
        ) from error


def load_offline(deployment: Deployment, spec: StageSection) -> Worker:
    """Worker 1 of a stage, in this process: with the stage's environment while it is loaded, and only then."""
    device = place(deployment, [(spec.name, 1)])[spec.name, 1].device
    with _environment(own_env(spec.env, 1)):
        worker = create(
            load_class(spec.worker, deployment.file.parent),
            stage=spec.name,
            worker_id=1,
            max_batch_size=spec.max_batch_size,
            batch_sizes=spec.batch_sizes,
            max_batch_cost=spec.max_batch_cost,
            is_cached=bool(spec.cache),
            device=device,
            args=spec.args,
        )
    worker._is_open = deployment.engine.is_open
    check_place(worker, is_last=is_last(deployment, spec.name))
    if reads_bodies(deployment, spec.name):
        check_types(worker)
    speak(deployment, worker)
    return worker


def is_first(deployment: Deployment, stage: str) -> bool:
    """Whether some route begins with this stage."""
    return any(route.stages[0] == stage for route in deployment.routes)


def reads_bodies(deployment: Deployment, stage: str) -> bool:
    """Whether some route begins with this stage, and it is the one that says what its bodies are."""
    return any(route.stages[0] == stage and route.protocol != OIP for route in deployment.routes)


def speak(deployment: Deployment, worker: Worker) -> None:
    """Have a worker read and write tensors, where it is on a route that speaks the Open Inference Protocol. Raises
    StartError where its class does not say what they are."""
    topology = deployment.topology
    number = topology.stages.index(worker.stage)
    routes = [route for route in topology.hops(number) if deployment.routes[route].protocol == OIP]
    if routes:
        from stages.oip import Tensors  # numpy's, which is no requirement of others

        first = any(topology.routes[route].stages[0] == number for route in routes)
        last = any(FINAL in topology.following(route, number) for route in routes)
        worker._tensors = Tensors(worker, first=first, last=last)


def lasts(deployment: Deployment, stage: str) -> frozenset[bool]:
    """The kinds of receiver that results of the stage have on its routes: True, the client, where the stage writes the
    answer's body; False, another stage."""
    topology, number = deployment.topology, deployment.topology.stages.index(stage)
    return frozenset(
        target == FINAL
        for route in topology.hops(number)
        for target in topology.following(route, number)
        if target != FINAL or deployment.routes[route].protocol != OIP  # whose answers are tensors
    )


def is_last(deployment: Deployment, stage: str) -> bool:
    """Whether no route goes on after this stage."""
    return all(targets == (FINAL,) for targets in _nexts(deployment, stage))


def _nexts(deployment: Deployment, stage: str) -> list[tuple[int, ...]]:
    """By route what comes after this stage."""
    topology = deployment.topology
    number = topology.stages.index(stage)
    return [topology.following(route, number) for route in topology.hops(number)]


def most_between(deployment: Deployment, stage: str) -> int:
    """Bytes of a value that every stage after this one may have waiting; what none follows passes nothing on."""
    return _least_room(deployment, stage, Topology.readers)


def most_afar(deployment: Deployment, stage: str) -> int:
    """The same of all stages to which it may send something."""
    return _least_room(deployment, stage, Topology.readers, Topology.later)


def _least_room(deployment: Deployment, stage: str, *of: Callable[[Topology, int, int], Collection[int]]) -> int:
    topology = deployment.topology
    number = topology.stages.index(stage)
    found = {one for route in topology.hops(number) for which in of for one in which(topology, route, number)}
    return min((deployment.stages[one].max_queue_bytes for one in found), default=sys.maxsize)


@contextmanager
def _environment(own: Mapping[str, str]) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def examples(worker: Worker) -> list[Any]:
    """What to warm up with: ``example``, then ``multi_examples``; each a batch where the worker gets batches. Raises
    StartError for one that is larger than any batch may be."""
    found: list[Any] = [] if worker.example is None else [worker.example]
    found.extend(worker.multi_examples)
    if worker.max_batch_size == 1:
        return found
    batches = [example if _is_batch(example) else [example] for example in found]
    if worker._sizes and (most := max(map(len, batches), default=0)) > worker._sizes[-1]:
        raise StartError(
            f"an example of stage {worker.stage} has {most} values, and the largest of its batch_sizes is "
            f"{worker._sizes[-1]}"
        )
    return batches


def _is_batch(example: Any) -> bool:
    """Whether an example is a list of values and not a single one. An array is a list of its rows to many a forward."""
    try:
        len(example)
    except TypeError:  # an array of no dimensions, for instance
        return False
    return not isinstance(example, str | bytes | bytearray | memoryview | Mapping | Set)


def handed_on(former: Worker, worker: Worker, results: Sequence[Any]) -> list[Any]:
    """What ``former`` has returned as it arrives at ``worker``, the next stage of a route."""
    send, receive = Codec(former), Codec(worker)
    return [
        receive.decode(ItemIn(0, send.encode(ItemIn(0, b"", last=False), result), first=False))
        for result in plain(results)
    ]


def fresh(worker: Worker, example: Any) -> Any:
    """A copy of an example, as of a request: ``forward`` may change what it gets, and the example is used again.

    The same object twice in a batch becomes two, as two requests are.
    """
    if worker.max_batch_size > 1 and type(example) in (list, tuple):
        return [copied(value) for value in example]
    return copied(example)


def forward_example(worker: Worker, example: Any) -> list[Any]:
    """``forward`` of one (:func:`fresh`) example, padded to an allowed size; its results as a list. Any failure among
    them is raised."""
    n = len(example) if worker.max_batch_size > 1 else 1
    if n and (size := padded(n, worker._sizes)) != n:
        example = filled_up(example, size)
    returned = entry(worker)(example)
    try:
        results = as_results(returned, len(example))[:n] if worker.max_batch_size > 1 else [returned]
    except WrongResults as error:
        batching = f"; with max_batch_size {worker.max_batch_size} it gets a list, and returns as many results"
        raise StartError(f"{type(worker).__qualname__} of stage {worker.stage}: {error}{batching}") from error
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def encoded_size(worker: Worker, results: Sequence[Any], lasts: Collection[bool], *, own: bool = True) -> int:
    """Bytes of the largest result, encoded for every kind of receiver (``lasts``: is that the client?).

    Without ``own`` the user's own ``serialize`` is not called, which may look at a request's headers. Raises StartError
    for what our own encoding refuses, as it would for every request; else whatever the user's code raises.
    """
    codec = Codec(worker)
    largest = 0
    for result in results:
        for last in sorted({True} if isinstance(result, Done) else {False} if isinstance(result, Skip) else lasts):
            given = ItemIn(0, b"", last=last)
            if not own and codec.encodes_by_own(given):
                continue
            try:
                largest = max(largest, payload_size(codec.encode(given, unwrapped(result))))
            except EncodingError as error:
                if codec.encodes_by_own(given):
                    raise
                text = f"{error.__cause__}" if not last and error.__cause__ else f"{error}"
                raise StartError(
                    f"{type(worker).__qualname__}.forward of stage {worker.stage} returned for its example what "
                    f"{'an answer' if last else 'the next stage'} cannot be made of: {text}"
                ) from error
    tensors = worker._tensors
    # Where only some results are answers, which those are is not known here.
    if tensors is not None and tensors.last and False not in lasts and (own or not tensors.own_encode):
        for result in plain(results):
            try:
                answer, _ = tensors.encode(result, Asked("", 0, binary=True))
            except EncodingError as error:
                raise StartError(
                    f"{type(worker).__qualname__}.forward of stage {worker.stage} returned for its example what no "
                    f"outputs can be made of: {error}"
                ) from error
            largest = max(largest, len(answer))
    return largest

"""Making a worker object and warming it up: the same way in a worker process and in a dry run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

from engine.config import Deployment, StageSection
from engine.errors import StartError
from engine.loader import load_class
from engine.process import own_env
from stages.base import Worker
from stages.compute import as_results
from stages.device import resolve
from stages.mixin.typed import check_types
from stages.stream import check_place, entry


def create(
    cls: type, *, stage: str, worker_id: int, max_batch_size: int, device: str, args: Mapping[str, Any]
) -> Worker:
    """An object of the user's class, set up but not warmed up.

    Raises StartError, or whatever the user's code raises.
    """
    if not (isinstance(cls, type) and issubclass(cls, Worker)):
        raise StartError(f"{getattr(cls, '__qualname__', cls)} of stage {stage} is not derived from engine.Worker")
    if cls.forward is Worker.forward:
        raise StartError(f"{cls.__qualname__} of stage {stage} must define forward(self, data)")
    # Before __init__, which may already choose a device by worker_id.
    worker: Worker = cls.__new__(cls, **args)
    worker.worker_id = worker_id
    worker.stage = stage
    worker.max_batch_size = max_batch_size
    worker.device = device
    worker.__init__(**args)  # type: ignore[misc]  # the second half of what calling the class does
    worker.setup()
    return worker


def load_offline(deployment: Deployment, spec: StageSection) -> Worker:
    """Worker 1 of a stage, in this process: with the stage's environment while it is loaded, and only then."""
    with _environment(own_env(spec.env, 1)):
        worker = create(
            load_class(spec.worker, deployment.file.parent),
            stage=spec.name,
            worker_id=1,
            max_batch_size=spec.max_batch_size,
            device=resolve(spec.device),
            args=spec.args,
        )
    check_place(worker, is_last=is_last(deployment, spec.name))
    if is_first(deployment, spec.name):
        check_types(worker)
    return worker


def is_first(deployment: Deployment, stage: str) -> bool:
    """Whether some route begins with this stage."""
    return any(route.stages[0] == stage for route in deployment.routes)


def is_last(deployment: Deployment, stage: str) -> bool:
    """Whether no route goes on after this stage."""
    return all(route.stages[-1] == stage for route in deployment.routes if stage in route.stages)


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
    """What to warm up with: ``example``, then ``multi_examples``. Raises StartError for one that is not a batch."""
    found: list[Any] = [] if worker.example is None else [worker.example]
    found.extend(worker.multi_examples)
    if worker.max_batch_size > 1:
        for example in found:
            # An array is a list of its rows to many a forward.
            if not hasattr(example, "__len__") or isinstance(example, str | bytes | bytearray | Mapping | Set):
                raise StartError(
                    f"an example of stage {worker.stage} is a {type(example).__name__}; "
                    f"with max_batch_size {worker.max_batch_size} it must be a list of values"
                )
    return found


def forward_example(worker: Worker, example: Any) -> list[Any]:
    """``forward`` of one example; its results as a list. Any failure among them is raised."""
    returned = entry(worker)(example)
    results = as_results(returned, len(example)) if worker.max_batch_size > 1 else [returned]
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def warm_up(worker: Worker, progress: Callable[[int, int], None] = lambda done, of: None) -> int:
    """Call ``forward`` with every example, in order; returns how many. Any exception is a failed start."""
    found = examples(worker)
    for done, example in enumerate(found):
        progress(done, len(found))
        forward_example(worker, example)
    if found:
        progress(len(found), len(found))
    return len(found)

"""Where a worker runs: its CPUs, the size of its thread pools, its device, its own environment; and what carries the
broker. Pure.

A worker that is pinned but starts one compute thread per CPU of the machine fights its neighbours for the CPUs it has,
so a pin and the thread counts are always decided together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

# Read by OpenMP, MKL, OpenBLAS, numexpr and Accelerate when their library is loaded; torch follows the first two.
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
LEAVE_THREADS: Final = 0

FRONTENDS_MOST: Final = 4  # for these one broker is full: at some 100,000 small requests a second
MANY_CPUS: Final = 4  # with fewer, threads of the broker only take each other's and the workers' turns


@dataclass(frozen=True)
class Share:
    """One worker's part of the machine. No ``cpus``: not pinned. ``threads`` 0: pools keep their own defaults."""

    cpus: tuple[int, ...] = ()
    threads: int = LEAVE_THREADS


@dataclass(frozen=True)
class Want:
    """What one stage asks for: ``cpus`` as in the file ("auto", "all", a list, or one list per worker)."""

    cpus: Any  # the file's union of forms, validated by engine.config
    workers: int
    near: tuple[frozenset[int] | None, ...] = ()  # of each worker with a GPU the CPUs near that; None: it has none


def share_cpus(
    available: Sequence[int], wants: Sequence[Want], *, quota: float | None = None
) -> list[tuple[Share, ...]]:
    """Deal the CPUs ``available`` out to the workers of all stages; one tuple per stage, one Share per worker.

    Listed CPUs are pinned exactly and taken from what "auto" deals out. "auto" gives every worker an equal, contiguous
    run of CPUs (neighbours share caches); with more workers than CPUs nobody is pinned, since two workers bound to one
    CPU would queue behind each other while another CPU idles. A worker with a GPU is dealt CPUs near that first, and
    one of its own also where the others have to share: it launches what the GPU computes, and the GPU waits for it.

    ``quota`` is how many CPUs' worth of time there is for all workers together (None: as much as there are CPUs). It
    bounds the threads of all whose CPUs are not listed: more would be stopped, all at once, until the next period.
    """
    listed = {cpu for want in wants for cpu in _listed(want.cpus)}
    pool = [cpu for cpu in available if cpu not in listed] or list(available)
    hungry = [
        want.near[index] if want.near else None
        for want in wants
        if want.cpus == "auto"
        for index in range(want.workers)
    ]
    runs = iter(_runs(pool, hungry))
    shares = [tuple(_share(want, index, runs) for index in range(want.workers)) for want in wants]
    if quota is None:
        return shares
    unlisted = sum(want.workers for want in wants if not _listed(want.cpus))
    most = max(1, int(quota / max(1, unlisted)))
    return [
        own if _listed(want.cpus) else tuple(replace(one, threads=min(one.threads or most, most)) for one in own)
        for want, own in zip(wants, shares, strict=True)
    ]


def broker_threads(asked: str, cpus: float, *, serves_hosts: bool) -> str:
    """What carries the broker's parts, ``"stage"`` (a thread each) or ``"one"``: from the key ``[engine] threads``, how
    many CPUs' worth of time the process can get, and whether workers may be on other hosts.

    A thread each is for parts that are busy with bytes: what a frontend put into shared memory is copied for a worker
    that cannot map it. On one host there is no such worker, and threads that share the interpreter's lock only cost
    (docs/performance.md has the figures).
    """
    if asked != "auto":
        return asked
    return "stage" if serves_hosts and cpus >= MANY_CPUS else "one"


def frontend_processes(cpus: float, beside: int, brokers: int = 1) -> int:
    """How many processes serve HTTP where ``cpus`` CPUs' worth of time carry them and ``beside`` them so many brokers
    and workers: half of what those leave, for clients on the same machine and the system need some too; and no more
    than keep the deployment's ``brokers`` busy."""
    return max(1, min(FRONTENDS_MOST * brokers, int((cpus - beside) / 2)))


def kept_free(available: Sequence[int], others: int) -> int:
    """How many CPUs "auto" does not deal out, for so many processes of brokers and frontends: none of few, and of many
    at most a quarter."""
    return min(others, len(available) // 4)


def spare_share(shares: Sequence[Share]) -> Share:
    """Of a worker that may take the place of any of these, and does nothing until then: wherever they may run, with the
    threads of one of them."""
    if not all(share.cpus for share in shares):
        return Share(threads=min([share.threads for share in shares], default=LEAVE_THREADS))
    cpus = sorted({cpu for share in shares for cpu in share.cpus})
    return Share(tuple(cpus), min([share.threads for share in shares], default=LEAVE_THREADS))


def _listed(cpus: Any) -> list[int]:
    if isinstance(cpus, str):
        return []
    return [cpu for item in cpus for cpu in (item if isinstance(item, list | tuple) else (item,))]


def _runs(pool: Sequence[int], near: Sequence[frozenset[int] | None]) -> list[Share]:
    """For a worker for each of ``near``."""
    workers = len(near)
    if not workers or not pool:
        return [Share()] * workers
    each, extra = divmod(len(pool), workers)
    sizes = [each + (index < extra) for index in range(workers)]
    if each == 0:
        on_gpus = sum(one is not None for one in near)
        if not 0 < on_gpus < len(pool):
            return [Share(threads=1)] * workers
        sizes = [int(one is not None) for one in near]
    left = list(pool)
    runs: dict[int, Share] = {}
    # Whoever has something to be near to chooses first, and whoever shares takes what is left.
    for index in sorted(range(workers), key=lambda index: (not near[index], not sizes[index])):
        size, close = sizes[index], near[index] or frozenset()
        taken = sorted(sorted(left, key=lambda cpu: cpu not in close)[:size], key=pool.index) if size else left
        runs[index] = Share(tuple(taken), max(1, size))
        if size:
            left = [cpu for cpu in left if cpu not in taken]
    return [runs[index] for index in range(workers)]


def _share(want: Want, index: int, runs: Any) -> Share:
    if want.cpus == "auto":
        share: Share = next(runs)
        return share
    if want.cpus == "all" or not want.cpus:
        return Share()
    if isinstance(want.cpus[0], list | tuple):
        own = tuple(want.cpus[index % len(want.cpus)])
        return Share(own, len(own))
    return Share(tuple(want.cpus), max(1, len(want.cpus) // want.workers))


def thread_env(threads: int, already: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that size the thread pools of compute libraries, less those the user has set ``already``."""
    if threads == LEAVE_THREADS:
        return {}
    return {name: str(threads) for name in THREAD_VARIABLES if name not in (already or {})}


def assign_device(device: Any, slot: int, available_cuda: int) -> str:
    """The device of worker ``slot`` (from 1): "cpu" or "cuda:N".

    "auto" takes the GPUs in turn when there are any; "cuda" does so without falling back to the CPU; a list is dealt
    out in turn, its bare "cuda" included. Whether that GPU is there is :func:`is_there`'s to say.
    """
    if isinstance(device, list | tuple):
        return assign_device(device[(slot - 1) % len(device)], slot, available_cuda)
    if device == "auto":
        return f"cuda:{(slot - 1) % available_cuda}" if available_cuda else "cpu"
    if device == "cuda":
        return f"cuda:{(slot - 1) % max(1, available_cuda)}"
    return str(device)


def is_there(device: str, available_cuda: int) -> bool:
    """Whether a device, as :func:`assign_device` gives it, exists where so many GPUs do."""
    return device == "cpu" or gpu_number(device) < available_cuda


def gpu_number(device: str) -> int:
    """Of "cuda:1" 1, and of "cuda" 0."""
    return int(device.partition(":")[2] or 0)


def own_env(env: Any, slot: int) -> dict[str, str]:
    """The part of a stage's ``env`` (a table, or a list with one table per worker) that is worker ``slot``'s."""
    if isinstance(env, Mapping):
        return dict(env)
    return dict(env[(slot - 1) % len(env)]) if env else {}

"""Metrics as values: gathered in every process, carried to the broker, summed, and written out once.

A process keeps its numbers in :class:`~engine.core.stats.Histogram` and plain integers (or, for users' own metrics, in
a ``prometheus_client`` registry), and hands them out as :class:`Family` values, which travel as bytes inside the beats.
Whoever answers ``/metrics`` merges them: so a scrape sees the whole deployment whichever process took it, without files
shared between processes, and a process that died leaves only its sums behind (:func:`fold`).

A family is what the Prometheus text format calls one: a counter's family is named without ``_total``, its samples with
it. Bytes from other processes are checked on arrival (:func:`unpack`). What they become on the page is
:mod:`engine.metrictext`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from engine.core.stats import Histogram
from engine.core.wire import UNREADABLE
from engine.errors import ProtocolError
from engine.log import lost_lines
from engine.metrictext import number, render

MAX_BYTES: Final = 8 << 20  # of one process's families: some 100,000 samples, past what Prometheus likes to scrape
MAX_FAMILIES: Final = 4096  # of one process

_METRIC_NAME: Final = r"^[a-zA-Z_:][a-zA-Z0-9_:]*\Z"  # the text format's own grammar
_LABEL_NAME: Final = r"^[a-zA-Z_][a-zA-Z0-9_]*\Z"
_metric_name = re.compile(_METRIC_NAME)
_label_name = re.compile(_LABEL_NAME)

Kind: TypeAlias = Literal["counter", "gauge", "histogram", "summary", "gaugehistogram", "unknown", "info", "stateset"]
PER_PROCESS: Final = "process_"  # what names of metrics about processes begin with, behind the namespace
MONOTONIC: Final = frozenset({"counter", "histogram", "summary"})  # kinds whose samples may be summed and kept

# The metrics prometheus_client makes of the interpreter it runs in. By name, not by prefix: a user's
# ``process_images_total`` is none of them.
_INTERPRETER: Final = frozenset(
    {
        "python_info",
        "python_gc_objects_collected",
        "python_gc_objects_uncollectable",
        "python_gc_collections",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_cpu_seconds",
        "process_open_fds",
        "process_max_fds",
    }
)


class Exemplar(msgspec.Struct, frozen=True, array_like=True):
    """One of those that a sample counts: who it was, and its own number; ``at``: in seconds of the epoch, if known."""

    labels: dict[Annotated[str, msgspec.Meta(pattern=_LABEL_NAME, max_length=256)], str]
    value: float
    at: float | None = None


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One number of a family; ``name`` carries the suffix (``_total``, ``_bucket``, ``_sum``, ``_count``)."""

    name: Annotated[str, msgspec.Meta(pattern=_METRIC_NAME, max_length=512)]
    labels: dict[Annotated[str, msgspec.Meta(pattern=_LABEL_NAME, max_length=256)], str]
    value: float
    exemplar: Exemplar | None = None


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric with all its samples."""

    name: Annotated[str, msgspec.Meta(pattern=_METRIC_NAME, max_length=512)]
    kind: Kind
    doc: str
    samples: list[Sample]


_Families = Annotated[list[Family], msgspec.Meta(max_length=MAX_FAMILIES)]
_encoder = msgspec.msgpack.Encoder()
_families_decoder: msgspec.msgpack.Decoder[list[Family]] = msgspec.msgpack.Decoder(_Families)


def collect(registry: Any) -> list[Family]:
    """Families of a ``prometheus_client`` registry, without those about the interpreter itself.

    Times of creation are left out (summed over processes they mean nothing), and so are names outside the classic
    grammar, which a registry admits only when told to.
    """
    families = []
    for metric in registry.collect():
        if metric.name in _INTERPRETER or not _metric_name.match(metric.name):
            continue
        samples = [
            Sample(sample.name, dict(sample.labels), float(sample.value), _exemplar(sample.exemplar))
            for sample in metric.samples
            if not sample.name.endswith("_created") and all(map(_label_name.match, sample.labels))
        ]
        families.append(Family(metric.name, metric.type, metric.documentation, samples))
    return families


def _exemplar(theirs: Any) -> Exemplar | None:
    if theirs is None:
        return None
    return Exemplar(dict(theirs.labels), float(theirs.value), theirs.timestamp and float(theirs.timestamp))


def pack(families: Sequence[Family]) -> bytes:
    """Families as bytes for a beat."""
    return _encoder.encode(families)


def unpack(data: bytes | bytearray | memoryview) -> list[Family]:
    """Inverse of :func:`pack`; no bytes are no families. Raises ProtocolError for malformed or oversize bytes."""
    if not data:
        return []
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"metrics of {len(data)} bytes")
    try:
        return _families_decoder.decode(data)
    except UNREADABLE as error:
        raise ProtocolError(f"unreadable metrics: {error}") from error


# --- arithmetic ------------------------------------------------------------------------------------------------------


def add_labels(families: Iterable[Family], **labels: str) -> list[Family]:
    """The families with ``labels`` on every sample. A label of the same name that was there before is kept as
    ``exported_NAME``, Prometheus' own rule for such a conflict."""
    return [
        Family(
            family.name,
            family.kind,
            family.doc,
            [
                Sample(
                    sample.name,
                    {(f"exported_{key}" if key in labels else key): text for key, text in sample.labels.items()}
                    | labels,
                    sample.value,
                    sample.exemplar,
                )
                for sample in family.samples
            ],
        )
        for family in families
    ]


def merge(groups: Iterable[Iterable[Family]]) -> list[Family]:
    """One family per name; samples with equal name and labels are summed, and keep the first exemplar.

    Where two families share a name and not a kind, the first is kept: both together would make the page unreadable
    to Prometheus.
    """
    kept: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    examples: dict[tuple[str, tuple[tuple[str, str], ...]], Exemplar] = {}
    for group in groups:
        for family in group:
            known = kept.setdefault(family.name, family)
            if known.kind != family.kind:
                continue
            values = sums.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                values[key] = values.get(key, 0.0) + sample.value
                if sample.exemplar is not None:
                    examples.setdefault(key, sample.exemplar)
    return [
        Family(
            name,
            family.kind,
            family.doc,
            [Sample(key[0], dict(key[1]), value, examples.get(key)) for key, value in sums[name].items()],
        )
        for name, family in kept.items()
    ]


def merge_workers(workers: Iterable[tuple[str, int, Sequence[Family]]]) -> list[Family]:
    """Users' metrics of all workers, given as (stage, slot, families): sums over all of them for what only grows,
    a sample of each worker's own, labelled ``stage`` and ``worker``, for what goes up and down."""
    groups: list[list[Family]] = []
    for stage, slot, families in workers:
        groups.append([family for family in families if family.kind in MONOTONIC])
        own = [family for family in families if family.kind not in MONOTONIC]
        groups.append(add_labels(own, stage=stage, worker=str(slot)))
    return merge(groups)


def fold(retired: Iterable[Family], last: Iterable[Family]) -> list[Family]:
    """What is kept of a process that has gone: its ``last`` families that only grow, added to ``retired``, so that the
    deployment's sums never go back. Gauges go with their process."""
    return merge([retired, [family for family in last if family.kind in MONOTONIC]])


# --- all processes' --------------------------------------------------------------------------------------------------


class Sources(msgspec.Struct, frozen=True, array_like=True):
    """All the broker knows, for one scrape; each ``bytes`` is :func:`pack` of that process's families.

    ``frontends`` by name, ``workers`` by stage and slot, ``retired`` the folded sums of those that have gone.
    """

    broker: bytes = b""
    frontends: list[tuple[str, bytes]] = []
    workers: list[tuple[str, int, bytes]] = []
    retired: bytes = b""


_sources_decoder = msgspec.msgpack.Decoder(Sources)


def pack_sources(sources: Sources) -> bytes:
    return _encoder.encode(sources)


def unpack_sources(data: bytes | bytearray | memoryview) -> Sources:
    """Inverse of :func:`pack_sources`. Raises ProtocolError."""
    try:
        return _sources_decoder.decode(data)
    except UNREADABLE as error:
        raise ProtocolError(f"unreadable metrics sources: {error}") from error


def exposition(
    sources: Sources | None,
    own_name: str,
    own_families: Sequence[Family],
    namespace: str,
    written: Callable[[Iterable[Family]], bytes] = render,
) -> bytes:
    """The page of a scrape: ``sources`` (None: the broker did not answer) and this process's fresh families, as
    :mod:`engine.metrictext` writes them.

    ``own_name`` is this frontend's name in ``sources``: what the broker has of it is older and left out. Unreadable
    families of one process cost only themselves, and are counted.
    """
    unreadable = 0

    def read(data: bytes) -> list[Family]:
        nonlocal unreadable
        try:
            return unpack(data)
        except ProtocolError:
            unreadable += 1
            return []

    groups: list[list[Family]] = [list(own_families)]
    if sources is not None:
        groups.append(read(sources.broker))
        groups.extend(read(data) for name, data in sources.frontends if name != own_name)
        groups.append(merge_workers([(stage, slot, read(data)) for stage, slot, data in sources.workers]))
        groups.append(read(sources.retired))
    about = [
        gauge(f"{namespace}_broker_up", "1 while the broker answers", int(sources is not None)),
        gauge(f"{namespace}_unreadable_sources", "processes whose metrics could not be read", unreadable),
    ]
    return written(merge([*groups, about]))


# --- families of our own processes -----------------------------------------------------------------------------------


def histogram_samples(one: Histogram, name: str, labels: Mapping[str, str]) -> list[Sample]:
    """Cumulative buckets, sum and count of one histogram under the family ``name``."""
    total = 0
    samples = []
    examples = one.examples or [None] * len(one.counts)
    for bound, count, example in zip((*one.buckets, float("inf")), one.counts, examples, strict=True):
        total += count
        exemplar = Exemplar(dict([example[0]]), example[1]) if example is not None else None
        samples.append(Sample(f"{name}_bucket", {**labels, "le": number(bound)}, total, exemplar))
    samples.append(Sample(f"{name}_count", dict(labels), total))
    samples.append(Sample(f"{name}_sum", dict(labels), one.total))
    return samples


def histogram(name: str, doc: str, series: Iterable[tuple[Mapping[str, str], Histogram]]) -> Family:
    """A family of histograms, one per set of labels."""
    samples = [sample for labels, one in series for sample in histogram_samples(one, name, labels)]
    return Family(name, "histogram", doc, samples)


def counter(name: str, doc: str, series: Iterable[tuple[Mapping[str, str], float]]) -> Family:
    """A family of counters named ``name`` (exposed as ``name_total``), one per set of labels."""
    samples = [Sample(f"{name}_total", dict(labels), value) for labels, value in series]
    return Family(name, "counter", doc, samples)


def gauge(name: str, doc: str, value: float, labels: Mapping[str, str] | None = None) -> Family:
    """A family of one gauge."""
    return Family(name, "gauge", doc, [Sample(name, dict(labels or {}), value)])


def lost_lines_family(namespace: str, process: str, more: int = 0) -> Family:
    """How many lines of its log, and ``more`` of others, this process could not write: what an alarm for a full disk
    looks at."""
    return counter(
        f"{namespace}_log_lines_lost",
        "Lines of the log that could not be written: the disk is full, or nobody reads them.",
        [({"process": process}, lost_lines() + more)],
    )

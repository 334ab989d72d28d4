"""Families as a page for Prometheus, in its text format or as OpenMetrics: pure values to bytes.

Not ``prometheus_client``'s writers: they print every number as a float (``3.0``, ``1e+06``), where here a whole number
is printed whole, as scripts that came from Mosec expect (only the sums of histograms and summaries keep their point).
And a page is written in the event loop that serves: measured, for 40,000 samples, in 0.12 s here, in 0.36 s there, and
in 0.54 s as OpenMetrics. What is written is held against their parsers.

The formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from engine.metrics import Exemplar, Family, Sample

_EXACT: Final = 2.0**53  # above it a float is no longer every whole number
_TYPES: Final = {"info": "gauge", "stateset": "gauge", "gaugehistogram": "histogram", "unknown": "untyped"}
_SUFFIXES: Final = {"counter": "_total", "info": "_info"}
_SUMMED: Final = frozenset({"histogram", "summary", "gaugehistogram"})
_APART: Final = ("_gsum", "_gcount")  # of a gauge histogram: the classic format knows these as gauges only
_EXEMPLAR_MOST: Final = 128  # characters of an exemplar's labels, in OpenMetrics


def render(families: Iterable[Family]) -> bytes:
    """The page of these families, in their order."""
    lines: list[str] = []
    for family in families:
        kind = _TYPES.get(family.kind, family.kind)
        _head(lines, family.name + _SUFFIXES.get(family.kind, ""), kind, _escaped_doc(family.doc))
        sums = f"{family.name}_sum" if family.kind in _SUMMED else ""
        apart: dict[str, list[Sample]] = {}
        for sample in family.samples:
            if sample.name.removeprefix(family.name) in _APART:
                apart.setdefault(sample.name, []).append(sample)
            else:
                lines.append(_line(sample, point=sample.name == sums) + "\n")
        for name, samples in sorted(apart.items()):
            _head(lines, name, "gauge", _escaped_doc(family.doc))
            lines.extend(_line(sample, point=False) + "\n" for sample in samples)
    return "".join(lines).encode("utf-8", "replace")


def render_open(families: Iterable[Family]) -> bytes:
    """The same as OpenMetrics, with exemplars. A family whose samples are not named as its kind demands is left out:
    it would cost the whole page."""
    lines: list[str] = []
    taken: set[str] = set()
    for family in families:
        names = {family.name + suffix for suffix in _OPEN_SUFFIXES[family.kind]}
        if not {sample.name for sample in family.samples} <= names or not taken.isdisjoint({*names, family.name}):
            continue
        taken |= {*names, family.name}
        _head(lines, family.name, family.kind, _escaped(family.doc))
        sums = (f"{family.name}_sum", f"{family.name}_gsum") if family.kind in _SUMMED else ()
        for sample in family.samples:
            line = _line(sample, point=sample.name in sums)
            if sample.exemplar is not None and sample.name.endswith(("_bucket", "_total")):
                line += _said(sample.exemplar)
            lines.append(line + "\n")
    lines.append("# EOF\n")
    return "".join(lines).encode("utf-8", "replace")


Format: TypeAlias = tuple[str, Callable[[Iterable["Family"]], bytes]]  # its content type, and who writes it

CLASSIC: Final[Format] = ("text/plain; version=0.0.4; charset=utf-8", render)  # the registered parameters
OPEN: Final[Format] = ("application/openmetrics-text; version=1.0.0; charset=utf-8", render_open)

_OPEN_SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "counter": ("_total", "_created"),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "summary": ("", "_count", "_sum", "_created"),
    "gaugehistogram": ("_bucket", "_gcount", "_gsum"),
    "unknown": ("",),
    "info": ("_info",),
    "stateset": ("",),
}


def number(value: float) -> str:
    """A float as the format writes it: ``0.001``, ``1.0``, ``+Inf``, ``NaN``."""
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _head(lines: list[str], name: str, kind: str, doc: str) -> None:
    lines.append(f"# HELP {name} {doc}\n# TYPE {name} {kind}\n")


def _line(sample: Sample, *, point: bool) -> str:
    value = sample.value
    whole = not point and abs(value) < _EXACT and value == int(value)
    return f"{sample.name}{_labels(sample.labels)} {int(value) if whole else number(value)}"


def _said(exemplar: Exemplar) -> str:
    """Empty where it says more than may be said."""
    if sum(len(name) + len(text) for name, text in exemplar.labels.items()) > _EXEMPLAR_MOST:
        return ""
    at = f" {exemplar.at:.3f}" if exemplar.at is not None else ""
    return f" # {_labels(exemplar.labels) or '{}'} {number(exemplar.value)}{at}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in sorted(labels.items())) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escaped_doc(text: str) -> str:
    """The classic format leaves quotes in a HELP as they are."""
    return text.replace("\\", r"\\").replace("\n", r"\n")

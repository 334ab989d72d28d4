"""Families as a page in the Prometheus text format 0.0.4: pure values to bytes.

Not ``prometheus_client``'s writer, because that prints every number as a float (``3.0``, ``1e+06``). Here a whole
number is printed whole, as scripts that came from Mosec expect; only the sums of histograms and summaries keep their
point. The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.metrics import Family, Sample

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # the text format's registered parameters

_EXACT: Final = 2.0**53  # above it a float is no longer every whole number
_TYPES: Final = {"info": "gauge", "stateset": "gauge", "gaugehistogram": "histogram", "unknown": "untyped"}
_SUFFIXES: Final = {"counter": "_total", "info": "_info"}
_SUMMED: Final = frozenset({"histogram", "summary", "gaugehistogram"})
_APART: Final = ("_gsum", "_gcount")  # of a gauge histogram: the classic format knows these as gauges only


def render(families: Iterable[Family]) -> bytes:
    """The page of these families, in their order."""
    lines: list[str] = []
    for family in families:
        kind = _TYPES.get(family.kind, family.kind)
        _head(lines, family.name + _SUFFIXES.get(family.kind, ""), kind, family.doc)
        sums = f"{family.name}_sum" if family.kind in _SUMMED else ""
        apart: dict[str, list[Sample]] = {}
        for sample in family.samples:
            if sample.name.removeprefix(family.name) in _APART:
                apart.setdefault(sample.name, []).append(sample)
            else:
                lines.append(_line(sample, point=sample.name == sums))
        for name, samples in sorted(apart.items()):
            _head(lines, name, "gauge", family.doc)
            lines.extend(_line(sample, point=False) for sample in samples)
    return "".join(lines).encode("utf-8", "replace")


def number(value: float) -> str:
    """A float as the format writes it: ``0.001``, ``1.0``, ``+Inf``, ``NaN``."""
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _head(lines: list[str], name: str, kind: str, doc: str) -> None:
    text = doc.replace("\\", r"\\").replace("\n", r"\n")
    lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")


def _line(sample: Sample, *, point: bool) -> str:
    value = sample.value
    whole = not point and abs(value) < _EXACT and value == int(value)
    return f"{sample.name}{_labels(sample.labels)} {int(value) if whole else number(value)}\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in sorted(labels.items())) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

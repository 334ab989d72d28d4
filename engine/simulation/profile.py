"""How long batches take, by stage and size: what a plan is made of, and the file that it is kept in. Pure.

Times are measured at a few sizes (:func:`sizes`): all powers of two and their followers, for many models pad to powers
of two or are compiled for them, and what one more item costs there is what a line through two points never shows.
Between two sizes a batch takes as long as a straight line says, beyond the last as that between the last two goes on.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite, log, sqrt
from typing import Any, Final

from engine.core.routing import PARTS_MOST
from engine.simulation.world import GAP_S, HOP_S, Noise, Works

FORMAT: Final = "stageline profile 1"
NOISE_MOST: Final = 2.0
LEAST_S: Final = 1e-6


class ProfileError(ValueError):
    """A profile that cannot be read, or is of something else; the message says what to do."""


def sizes(most: int, allowed: Sequence[int] = ()) -> list[int]:
    """At which sizes to measure. ``allowed``: those that ``forward`` is restricted to; of each the smallest batch too
    that is padded to it."""
    if allowed:
        found = {1, *allowed, *(size + 1 for size in allowed)}
    else:
        powers = [1 << exponent for exponent in range(most.bit_length())]
        found = {*powers, *(power + 1 for power in powers), most}
    return sorted(size for size in found if size <= most)


@dataclass(frozen=True)
class StageProfile:
    """Seconds by size of batch, and the standard deviation of single ones by their mean. ``parts``: by path of a route,
    how many elements the lists had that are taken apart there behind this stage."""

    times: Mapping[int, float]
    noise: float = 0.0
    device: str = ""
    parts: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def curve(self, n: int) -> float:
        """Seconds for a batch of ``n``."""
        known = self._sizes
        place = bisect_left(known, n)
        if place < len(known) and known[place] == n:
            return self.times[n]
        if len(known) == 1:
            return self.times[known[0]]
        if place == 0:
            return self.times[known[0]]
        low, high = (known[-2], known[-1]) if place == len(known) else (known[place - 1], known[place])
        slope = (self.times[high] - self.times[low]) / (high - low)
        return max(self.times[low] + slope * (n - low), LEAST_S)

    @property
    def _sizes(self) -> list[int]:
        return sorted(self.times)

    def best(self, most: int) -> tuple[int, float]:
        """The size of batch with which a worker does most, and how many items a second that is."""
        counts = sorted({*(n for n in self.times if n <= most), most})
        return max(((n, n / (self.curve(n) + GAP_S)) for n in counts), key=lambda pair: pair[1])

    def works(self, most: int) -> Works:
        """Workers like that, who have timed in their warm-up what is known of them."""
        curve = [self.curve(n) for n in range(most + 1)]
        warm = {n: seconds for n, seconds in self.times.items() if n <= most}
        return Works(curve.__getitem__, spread(self.noise), warm)


def spread(noise: float) -> Noise:
    """Batches that take sometimes a little less and sometimes much more than usual: log-normal, with mean 1."""
    if not noise:
        return lambda _rng: 1.0
    sigma = sqrt(log(1.0 + noise * noise))
    mu = -sigma * sigma / 2

    def draw(rng: random.Random) -> float:
        return exp(rng.gauss(mu, sigma))

    return draw


@dataclass(frozen=True)
class Profile:
    """Of all stages, by name. ``source``: where it is from, in words. ``hop_s``: what a batch takes to its worker, and
    its results from there; ``edge_s``: what a request takes beside all that, in the frontend."""

    stages: Mapping[str, StageProfile]
    source: str = ""
    hop_s: float = HOP_S
    edge_s: float = 0.0
    notes: Sequence[str] = field(default_factory=tuple)

    def of(self, name: str) -> StageProfile:
        """Raises ProfileError where nothing is known of the stage."""
        found = self.stages.get(name)
        if found is None:
            known = ", ".join(self.stages) or "none"
            raise ProfileError(
                f"the profile has no stage {name} (it has: {known}); measure it anew, without --profile, or add it"
            )
        return found

    def to_json(self) -> str:
        """To be read by people, and changed."""
        stages = {
            name: {
                "device": stage.device,
                "noise": round(stage.noise, 4),
                "ms": {str(n): round(max(seconds, LEAST_S) * 1000, 4) for n, seconds in sorted(stage.times.items())},
                **({"parts": {path: list(counts) for path, counts in stage.parts.items()}} if stage.parts else {}),
            }
            for name, stage in self.stages.items()
        }
        whole = {
            "format": FORMAT,
            "source": self.source,
            "hop_ms": round(self.hop_s * 1000, 4),
            "edge_ms": round(self.edge_s * 1000, 4),
            "stages": stages,
        }
        return json.dumps(whole, indent=2) + "\n"


def read_profile(text: str, name: str) -> Profile:
    """Inverse of :meth:`Profile.to_json`; ``name`` is the file's. Raises ProfileError."""
    try:
        told = json.loads(text)
    except ValueError as error:
        raise ProfileError(f"{name}: not JSON: {error}; --save-profile writes one") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ProfileError(f'{name}: not a profile: expected "format": "{FORMAT}"; --save-profile writes one')
    raw = told.get("stages")
    if not isinstance(raw, dict) or not raw:
        raise ProfileError(f'{name}: expected "stages" with a table for each stage')
    return Profile(
        {stage: _stage(about, f"{name}: stages.{stage}") for stage, about in raw.items()},
        str(told.get("source") or name),
        _ms(told.get("hop_ms", HOP_S * 1000), f"{name}: hop_ms", least=0.0),
        _ms(told.get("edge_ms", 0.0), f"{name}: edge_ms", least=0.0),
    )


def _stage(about: Any, where: str) -> StageProfile:
    if not isinstance(about, dict) or not isinstance(about.get("ms"), dict) or not about["ms"]:
        raise ProfileError(f'{where}: expected "ms", milliseconds by size of batch, such as {{"1": 5.5, "32": 21}}')
    times: dict[int, float] = {}
    for size, value in about["ms"].items():
        if not size.isdecimal() or int(size) < 1:
            raise ProfileError(f"{where}.ms: expected sizes of batches, got {size!r}")
        times[int(size)] = _ms(value, f"{where}.ms.{size}", least=LEAST_S * 1000)
    noise = about.get("noise", 0.0)
    if not isinstance(noise, int | float) or not 0.0 <= noise <= NOISE_MOST:
        raise ProfileError(f"{where}.noise: expected 0 to {NOISE_MOST:g}, a share of the time, got {noise!r}")
    return StageProfile(times, float(noise), str(about.get("device", "")), _parts(about.get("parts", {}), where))


def _parts(told: Any, where: str) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for path, counts in told.items() if isinstance(told, dict) else [("", ())]:
        some: list[Any] = [*counts] if isinstance(counts, (list, tuple)) else [counts]
        if not some or not all(type(one) in (int, float) and 0.0 <= one <= PARTS_MOST for one in some):
            raise ProfileError(f'{where}.parts: expected how many elements a list has by route, {{"/page": [12, 40]}}')
        found[path] = tuple(map(float, some))
    return found


def _ms(value: Any, where: str, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < least:
        raise ProfileError(f"{where}: expected milliseconds of at least {least:g}, got {value!r}")
    return value / 1000

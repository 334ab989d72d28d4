"""Word counts, with the service's own Prometheus metrics: declared as prometheus_client declares them, nothing else.

Every worker process has its own registry. Stageline collects them all: counters and histograms come out as one sum,
which never goes back; a gauge comes out once per worker, with the labels `stage` and `worker`.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from engine import ValidationError, Worker

WORDS = Counter("words", "Words counted.", ["language"])
LENGTH = Histogram("text_words", "Words of one text.", buckets=(1, 2, 5, 10, 20, 50, 100))
LONGEST = Gauge("longest_text_words", "Words of the longest text so far.")
UMLAUTS = frozenset("äöüß")


class CountWords(Worker):
    def __init__(self) -> None:
        self.longest = 0

    def forward(self, data: list[Any]) -> list[dict[str, int] | ValidationError]:
        return [self._count(item) for item in data]

    def _count(self, item: Any) -> dict[str, int] | ValidationError:
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            return ValidationError('expected {"text": "..."}')
        text: str = item["text"]
        words = len(text.split())
        WORDS.labels(language="german" if UMLAUTS & set(text.lower()) else "other").inc(words)
        LENGTH.observe(words)
        self.longest = max(self.longest, words)
        LONGEST.set(self.longest)
        return {"words": words}

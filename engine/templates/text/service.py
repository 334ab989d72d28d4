"""Is a message spam? `Check` reads a request, `Classify` judges the messages of many requests at once.

The model counts words (naive Bayes), fitted on the lines below, so that this runs at once: put yours in its place.
Load it in `__init__`, which runs once in each worker process; `self.device` says where, "cpu" or "cuda:0".
"""

from __future__ import annotations

from collections import Counter
from math import exp, log
from typing import Any, Final

from engine import ValidationError, Worker

LINES: Final = {
    "spam": ("win a free prize now", "cheap loans click now", "you have won money", "free offer click here"),
    "ham": ("are we still on for lunch", "the report is ready", "see you at home", "can you call me now"),
}
MOST_CHARACTERS: Final = 10_000


class Check(Worker):
    """``{"text": "..."}``. Not batched: what is wrong with one request is the answer to that one alone."""

    example = {"text": "you have won a prize"}

    def forward(self, data: Any) -> str:
        text = data.get("text") if isinstance(data, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValidationError('expected {"text": "..."}')
        if len(text) > MOST_CHARACTERS:
            raise ValidationError(f"text: expected at most {MOST_CHARACTERS} characters, got {len(text)}")
        return text


class Classify(Worker):
    """Texts to labels. ``forward`` gets a list, of as many values as wait, and returns as many."""

    example = ["are we still on for lunch", "free prize"]

    def __init__(self) -> None:
        self.counts = {label: Counter(" ".join(lines).split()) for label, lines in LINES.items()}
        self.words = len(set().union(*self.counts.values()))

    def forward(self, data: list[str]) -> list[dict[str, Any]]:
        return [self.judge(text) for text in data]

    def judge(self, text: str) -> dict[str, Any]:
        scores = {label: self.score(label, text.lower().split()) for label in self.counts}
        best = max(scores, key=scores.__getitem__)
        share = 1.0 / sum(exp(score - scores[best]) for score in scores.values())
        return {"label": best, "score": round(share, 4)}

    def score(self, label: str, words: list[str]) -> float:
        counts = self.counts[label]
        return sum(log((counts[word] + 1) / (counts.total() + self.words)) for word in words)

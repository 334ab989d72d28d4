"""Three stages without a model: check the request, work on a batch, shape the answer."""

from __future__ import annotations

import time
from typing import Any

from engine import ValidationError, Worker


class Decode(Worker):
    example = {"text": "warm up"}

    def forward(self, data: Any) -> str:
        if not isinstance(data, dict) or not isinstance(data.get("text"), str):
            raise ValidationError('expected {"text": "..."}')
        return str(data["text"])


class Work(Worker):
    """Stands in for a model: a batch takes 5 ms whatever its size, so batching pays."""

    example = ["warm up"]

    def forward(self, data: list[str]) -> list[tuple[str, int]]:
        time.sleep(0.005)
        return [(text.upper(), len(data)) for text in data]


class Format(Worker):
    def forward(self, data: tuple[str, int]) -> dict[str, str | int]:
        text, neighbours = data
        return {"echo": text, "batch_size": neighbours}

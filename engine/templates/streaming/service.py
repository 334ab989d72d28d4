"""Text that is sent while it is written, as server-sent events: `Read` checks a request, `Write` writes many at once.

The model has learned which word follows which, from the lines below, so that this runs at once: put yours in its
place. Load it in `__init__`, which runs once in each worker process; `self.device` says where, "cpu" or "cuda:0".
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any, Final

from engine import SSEWorker, ValidationError, Worker

LINES: Final = """
a batch leaves when a worker is free and a worker is free when a batch is done
a request waits for a batch and a batch waits for a worker
when a worker is done a request is done and when a request is done a client is glad
"""
MOST_WORDS: Final = 200


class Read(Worker):
    """``{"start": "a batch", "words": 20, "seed": 1}``; all but the first may be left out."""

    example = {"start": "a batch", "words": 5}

    def forward(self, data: Any) -> dict[str, Any]:
        start = data.get("start") if isinstance(data, dict) else None
        if not isinstance(start, str) or not start.strip():
            raise ValidationError('expected {"start": "...", "words": 20, "seed": 1}')
        words, seed = data.get("words", 20), data.get("seed", 0)
        if type(words) is not int or not 1 <= words <= MOST_WORDS:
            raise ValidationError(f"words: expected a number from 1 to {MOST_WORDS}")
        if type(seed) is not int:
            raise ValidationError("seed: expected a number")
        return {"start": start, "words": words, "seed": seed}


class Write(SSEWorker):
    """``forward`` gets a list, of as many requests as wait; each word leaves at once, for the client that it is for."""

    example = [{"start": "a batch", "words": 2, "seed": 0}]

    def __init__(self) -> None:
        words = LINES.split()
        self.known = sorted(set(words))
        self.followers: dict[str, list[str]] = {}
        for word, following in pairwise(words):
            self.followers.setdefault(word, []).append(following)

    def forward(self, data: list[dict[str, Any]]) -> list[None]:
        last = [request["start"].lower().split()[-1] for request in data]
        dice = [random.Random(request["seed"]) for request in data]
        for step in range(max(request["words"] for request in data)):
            for index, request in enumerate(data):
                # Nothing is written for a client that has gone.
                if step < request["words"] and not self.context(index).cancelled:
                    last[index] = dice[index].choice(self.followers.get(last[index], self.known))
                    self.send_stream_event(last[index], index=index)
        return [None] * len(data)  # the answers are the events

"""Text that is written word by word, several streams at once, and sent while it is written: server-sent events.

A Markov chain stands in for a language model: it has learned which word follows which two from some lines after Matthew
Arnold's "Dover Beach" (1867). Like a model it makes one word for every stream of its batch per step, and each word
leaves at once.
"""

from __future__ import annotations

import random
import time
from typing import Any, Final

from engine import SSEWorker, ValidationError, Worker

POEM: Final = """
the sea is calm tonight and the tide is full and the moon lies fair upon the straits on the coast the light
gleams and is gone and the cliffs stand glimmering and vast out in the tranquil bay come to the window where the
night air is sweet and the sea is calm and the light is gone from the long line of spray where the sea meets the
moon and the tide is calm upon the coast
"""
MOST_WORDS: Final = 500
STEP_S: Final = 0.01  # what one step of a model would take


class Read(Worker):
    """``{"start": "the sea", "words": 20, "seed": 1}``."""

    example = {"start": "the sea", "words": 2}

    def forward(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise ValidationError('expected {"start": "...", "words": ..., "seed": ...}')
        start, words, seed = data.get("start", "the sea"), data.get("words", 20), data.get("seed", 0)
        if not isinstance(start, str) or len(start.split()) < 2:
            raise ValidationError("start: expected at least two words")
        if not isinstance(words, int) or not 1 <= words <= MOST_WORDS:
            raise ValidationError(f"words: expected 1 to {MOST_WORDS}")
        if not isinstance(seed, int):
            raise ValidationError("seed: expected an integer")
        return {"start": start, "words": words, "seed": seed}


class Stream:
    """One text in the making."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.words: list[str] = request["start"].lower().split()
        self.left: int = request["words"]
        self.dice = random.Random(request["seed"])


class Write(SSEWorker):
    example = [{"start": "the sea", "words": 2, "seed": 0}]  # its events go nowhere

    def __init__(self) -> None:
        words = POEM.split()
        self.known = sorted(set(words))
        self.followers: dict[tuple[str, str], list[str]] = {}
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            self.followers.setdefault((first, second), []).append(third)

    def forward(self, data: list[dict[str, Any]]) -> list[str]:
        streams = [Stream(request) for request in data]
        while any(stream.left for stream in streams):
            time.sleep(STEP_S)
            for index, stream in enumerate(streams):
                if stream.left and self.context(index).cancelled:
                    stream.left = 0  # the client has gone: nobody reads on
                if stream.left:
                    self.send_stream_event(self._next(stream), index=index)
        return ["" for _stream in streams]  # a stream's answer is its events

    def _next(self, stream: Stream) -> str:
        word = stream.dice.choice(self.followers.get((stream.words[-2], stream.words[-1]), self.known))
        stream.words.append(word)
        stream.left -= 1
        return word

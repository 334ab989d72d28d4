"""The cross-encoder: one number for a query and a document that are read together.

The first five layers of all-MiniLM-L6-v2 read either text alone, as they were trained to; its last layer then reads
both at once, so that each word attends to those of the other text too (PreTTR, MacAvaney et al. 2020). The score adds
up how near the two texts come, how near the document comes to each word of the query (ColBERT, Khattab and Zaharia
2020), and BM25, which knows what a network forgets: which words are the same, and how rare they are (Askari et al.
2023). Nothing of it is learned: what each is worth was tried on docstrings, others than those of measure.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from texts import Ids, model_folder
from torch import nn
from torch.nn import functional
from transformers import AutoModel
from transformers.utils import logging

CLS, SEP = 101, 102
NOT_SEEN: Final = -1e9
APART: Final = 3.0  # attention to the other text is held back by so much: the layer was made for one
NEAR, NEAREST, SAME = 12.0, 4.0, 0.1  # what the parts of the score are worth
LENGTH: Final = 100.0  # words of a usual document

# WordPiece's vocabulary is in the order of how often words occur, so it tells how rare they are (Zipf 1935).
VOCABULARY, FIRST_WORD = 30522, 1996  # "the"


class Text(NamedTuple):
    ids: torch.Tensor  # int64 [words], with [CLS] and [SEP]
    read: torch.Tensor  # float32 [words, 384]: as the fifth layer leaves them


class CrossEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        logging.disable_progress_bar()
        bert = AutoModel.from_pretrained(model_folder(), local_files_only=True).float().requires_grad_(False).eval()
        self.below = nn.ModuleList([bert.embeddings, *bert.encoder.layer[:-1]])
        self.last = bert.encoder.layer[-1]
        rank = (torch.arange(VOCABULARY) - FIRST_WORD + 1).clamp(min=0)
        self.register_buffer("rarity", torch.log1p(rank / 10).clamp(min=0.1))

    def read(self, texts: Sequence[Ids]) -> list[Text]:
        """Each text by itself; best called with texts of like length."""
        rows = [torch.tensor([CLS, *text, SEP], device=self.rarity.device) for text in texts]
        ids = _padded(rows)
        embeddings, *layers = self.below
        x = embeddings(input_ids=ids)
        hidden = torch.zeros(ids.shape, device=ids.device).masked_fill(ids == 0, NOT_SEEN)[:, None, None]
        for layer in layers:
            x = _through(layer, x, hidden)
        return [Text(row, states[: len(row)]) for row, states in zip(rows, x, strict=True)]

    def forward(self, pairs: Sequence[tuple[Text, Text]]) -> torch.Tensor:
        """One score for each query and document: the higher, the better the answer. Only their order has a meaning."""
        q, d = _padded([query.ids for query, _ in pairs]), _padded([document.ids for _, document in pairs])
        x = torch.cat(
            [_padded([query.read for query, _ in pairs]), _padded([document.read for _, document in pairs])], 1
        )
        cut = q.shape[1]
        ids = torch.cat([q, d], 1)
        of_q = torch.arange(ids.shape[1], device=ids.device) < cut
        across = of_q[:, None] != of_q[None, :]
        bias = -APART * across[None, None]
        x = _through(self.last, x, bias.masked_fill((ids == 0)[:, None, None], NOT_SEEN))
        near = functional.cosine_similarity(_mean(x[:, :cut], q > 0), _mean(x[:, cut:], d > 0))

        word_q, word_d = (q > 0) & (q != CLS) & (q != SEP), (d > 0) & (d != CLS) & (d != SEP)
        unit = functional.normalize(x, dim=2)
        alike = (unit[:, :cut] @ unit[:, cut:].transpose(1, 2)).masked_fill(~word_d[:, None], 0.0)
        rarity = self.rarity[q] * word_q
        importance = (rarity / 3).masked_fill(~word_q, NOT_SEEN).softmax(1)
        nearest = (alike.amax(2) * importance).sum(1)

        times = ((q[:, :, None] == d[:, None, :]) & word_d[:, None]).sum(2)
        norm = 1.2 * (0.25 + 0.75 * word_d.sum(1, keepdim=True) / LENGTH)
        bm25 = (rarity * times * 2.2 / (times + norm)).sum(1)
        return NEAR * near + NEAREST * nearest + SAME * bm25


def _through(layer: nn.Module, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    out = layer(x, bias)
    return out[0] if isinstance(out, tuple) else out  # transformers 4 returns a tuple


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)  # with 0: [PAD]


def _mean(x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    return (x * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)

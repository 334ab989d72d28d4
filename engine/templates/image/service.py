"""Which colour has a picture? `Decode` makes pixels of a file, `Classify` looks at many pictures at once.

The model compares the mean colour with some that have names, so that this runs at once: put yours in its place. Load
it in `__init__`, which runs once in each worker process; `self.device` says where, "cpu" or "cuda:0".
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final, TypeAlias

import numpy as np
from PIL import Image

from engine import ValidationError, Worker

Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"  # height, width, 3: red, green, blue

SIDE: Final = 64  # pixels: what the model looks at
MOST_PIXELS: Final = 50_000_000  # a small file can be a large picture
COLOURS: Final = {
    "red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 210), "yellow": (240, 220, 50),
    "black": (15, 15, 15), "grey": (128, 128, 128), "white": (245, 245, 245),
}  # fmt: skip


def picture(colour: tuple[int, int, int] = (220, 40, 40)) -> bytes:
    """A PNG file, to try things with."""
    file = BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(file, "PNG")
    return file.getvalue()


class Decode(Worker):
    """The body is a file: PNG, JPEG, and whatever else Pillow reads. Decoding takes a CPU, so it has processes of its
    own, and a picture that cannot be read fails no other."""

    req_mime_type = "image/png"  # for the OpenAPI document; what a client says it sends is not compared with it
    example = picture()

    def deserialize(self, data: bytes) -> bytes:
        return data  # instead of JSON

    def forward(self, data: bytes) -> Pixels:
        try:
            image = Image.open(BytesIO(data))
            if image.width * image.height > MOST_PIXELS:
                raise ValidationError(f"expected at most {MOST_PIXELS} pixels")
            return np.asarray(image.convert("RGB").resize((SIDE, SIDE)))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises, and says of itself
            raise ValidationError("expected the file of a picture, such as a PNG or JPEG, that can be read") from error


class Classify(Worker):
    """Pixels to labels. ``forward`` gets a list, of as many pictures as wait, and returns as many results."""

    example = [np.zeros((SIDE, SIDE, 3), np.uint8)]

    def __init__(self) -> None:
        self.names = list(COLOURS)
        self.colours = np.array(list(COLOURS.values()), np.float32)

    def forward(self, data: list[Pixels]) -> list[dict[str, Any]]:
        means = np.stack(data).mean(axis=(1, 2), dtype=np.float32)  # of each picture, its colour
        distances = np.linalg.norm(means[:, None] - self.colours, axis=2)
        weights = np.exp(-distances / 32.0)
        scores = weights / weights.sum(axis=1, keepdims=True)
        return [{"label": self.names[int(row.argmax())], "score": round(float(row.max()), 4)} for row in scores]

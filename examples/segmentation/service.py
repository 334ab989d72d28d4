"""An image and points on a thing to the mask of that thing, in three stages: `Decode`, `Segment`, `Paint`.

A mask has a byte for each pixel of the image and compresses to next to nothing: with `compression = true` who accepts
gzip or zstd is sent that, and the image may come so as well. The stages know nothing of it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from PIL import Image, UnidentifiedImageError

from engine import ClientError, ValidationError, Worker
from engine.mixin import MsgpackMixin, TypedMsgPackMixin

SIDE: Final = 64  # pixels of what the network reads
MAX_PIXELS: Final = 4096 * 4096  # refused before decoding: a small file can be a very large image
MAX_POINTS: Final = 32

Planes = np.ndarray[Any, np.dtype[np.float32]]
Logits = np.ndarray[Any, np.dtype[np.float32]]


class Point(msgspec.Struct):
    """Pixels from the top left corner; `inside` is False for a point that is not of the thing."""

    x: float
    y: float
    inside: bool = True


class Request(msgspec.Struct):
    """`image` holds the bytes of a PNG, JPEG, WebP ..."""

    image: bytes
    points: list[Point]


@dataclass(frozen=True)
class Asked:
    planes: Planes
    width: int
    height: int


@dataclass(frozen=True)
class Marked:
    logits: Logits
    width: int
    height: int


def png_example() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (80, 60), (90, 120, 150)).save(file, "PNG")
    return file.getvalue()


class Decode(TypedMsgPackMixin, Worker):
    example = Request(png_example(), [Point(40, 30)])

    def __init__(self) -> None:
        from model import planes  # imports torch, which costs this stage half a second and some memory

        self.planes = planes

    def forward(self, data: Request) -> Asked:
        if not 1 <= len(data.points) <= MAX_POINTS:
            raise ValidationError(f"points: expected 1 to {MAX_POINTS}")
        if not any(point.inside for point in data.points):
            raise ValidationError("points: at least one must be inside the thing")
        try:
            with Image.open(io.BytesIO(data.image)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ValidationError(f"image: {width} x {height}, at most {MAX_PIXELS} pixels")
                for number, point in enumerate(data.points):
                    if not (0 <= point.x < width and 0 <= point.y < height):
                        raise ValidationError(f"points[{number}]: not within the image of {width} x {height}")
                points = [(point.x / width, point.y / height, point.inside) for point in data.points]
                return Asked(self.planes(image, points), width, height)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
            raise ClientError("image: not an image that can be read") from error


class Segment(Worker):
    example = [Asked(np.zeros((8, SIDE, SIDE), np.float32), 80, 60)]

    def __init__(self) -> None:
        import torch
        from model import trained

        self.torch = torch
        self.network = trained().to(self.device)

    def forward(self, data: list[Asked]) -> list[Marked]:
        with self.torch.inference_mode():
            read = self.torch.from_numpy(np.stack([one.planes for one in data])).to(self.device)
            logits = self.network(read).float().cpu().numpy()
        return [Marked(own, one.width, one.height) for own, one in zip(logits, data, strict=True)]


class Paint(MsgpackMixin, Worker):
    """`{"mask", "width", "height", "share"}`: a byte of 0 or 1 for each pixel, row by row, and how many are 1."""

    def forward(self, data: Marked) -> dict[str, Any]:
        large = Image.fromarray(data.logits).resize((data.width, data.height), Image.Resampling.BILINEAR)
        mask = (np.asarray(large) > 0).astype(np.uint8)
        return {
            "mask": mask.tobytes(),
            "width": data.width,
            "height": data.height,
            "share": round(float(mask.mean()), 4),
        }

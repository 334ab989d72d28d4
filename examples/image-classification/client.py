"""Sends drawn shapes, or image files, to the image classifier: `python client.py [URL [FILE ...]]`."""

from __future__ import annotations

import io
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import msgpack
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
REQUESTS = 120


def drawing(shape: str, seed: int) -> bytes:
    """A dark shape on a light ground, larger than the network reads, as PNG or JPEG."""
    dice = random.Random(seed)
    image = Image.new("RGB", (320, 320), (dice.randrange(200, 256), dice.randrange(200, 256), 220))
    x, y, half = dice.randrange(120, 200), dice.randrange(120, 200), dice.randrange(75, 110)
    pen, ink = ImageDraw.Draw(image), (dice.randrange(80), dice.randrange(80), dice.randrange(80))
    if shape == "circle":
        pen.circle((x, y), half, ink)
    elif shape == "square":
        pen.rectangle((x - half, y - half, x + half, y + half), ink)
    else:
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], ink)
    file = io.BytesIO()
    image.save(file, "PNG" if seed % 2 else "JPEG")
    return file.getvalue()


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def classify(image: bytes) -> dict[str, Any]:
        with urlopen(Request(f"{url}/inference", msgpack.packb({"image": image}))) as response:
            answer: dict[str, Any] = msgpack.unpackb(response.read())
        return answer

    if files := sys.argv[2:]:
        for name in files:
            answer = classify(Path(name).read_bytes())
            print(f"{name}: {answer['label']} ({answer['scores'][answer['label']]:.2f})")
        return
    wanted = [SHAPES[number % len(SHAPES)] for number in range(REQUESTS)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(classify, map(drawing, wanted, range(REQUESTS))))
    for shape in SHAPES:
        found = [answer["label"] for answer, was in zip(answers, wanted, strict=True) if was == shape]
        print(f"{shape}: {found.count(shape)} of {len(found)} recognised")


if __name__ == "__main__":
    main()

"""Points at drawn things and gets their masks: `python client.py [URL [IMAGE X Y]]`.

Sends each request once plain and once with its body in gzip, asking for the answer in gzip. With an image and a point
the mask is written beside the image, as a PNG.
"""

from __future__ import annotations

import gzip
import io
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import msgpack
import numpy as np
from PIL import Image, ImageDraw

SIDE = 512
REQUESTS = 40


def drawing(seed: int) -> tuple[bytes, np.ndarray[Any, Any], tuple[float, float]]:
    """A shape beside another on a plain ground as PNG, its mask, and a point on it."""
    dice = random.Random(seed)
    ground, ink, other = ((20, 30, 60), (230, 180, 40), (60, 160, 90))
    image, owner = Image.new("RGB", (SIDE, SIDE), ground), Image.new("L", (SIDE, SIDE), 0)
    x, y, half = dice.randrange(120, 200), dice.randrange(120, 392), dice.randrange(60, 110)
    ImageDraw.Draw(image).ellipse((x - half, y - half, x + half, y + half), ink)
    ImageDraw.Draw(owner).ellipse((x - half, y - half, x + half, y + half), 1)
    ImageDraw.Draw(image).rectangle((350, 150, 460, 330), other)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), np.asarray(owner), (x + dice.randrange(-20, 20), y + dice.randrange(-20, 20))


def ask(url: str, image: bytes, point: tuple[float, float], *, packed: bool) -> tuple[dict[str, Any], int]:
    """The answer, and how many bytes it had on its way."""
    body = msgpack.packb({"image": image, "points": [{"x": point[0], "y": point[1]}]})
    fields = {"content-type": "application/msgpack"}
    if packed:
        body, fields = gzip.compress(body), {**fields, "content-encoding": "gzip", "accept-encoding": "gzip"}
    with urlopen(Request(f"{url}/inference", body, fields)) as response:
        told = response.read()
        plain = gzip.decompress(told) if response.headers.get("content-encoding") == "gzip" else told
    return msgpack.unpackb(plain), len(told)


def mask_of(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(answer["mask"], np.uint8).reshape(answer["height"], answer["width"])


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    if len(sys.argv) > 2:
        file = Path(sys.argv[2])
        answer, _ = ask(url, file.read_bytes(), (float(sys.argv[3]), float(sys.argv[4])), packed=True)
        marked = file.with_name(f"{file.stem}-mask.png")
        Image.fromarray(mask_of(answer) * 255).save(marked)
        print(f"{marked}: {answer['share']:.0%} of the image")
        return
    drawn = [drawing(seed) for seed in range(REQUESTS)]
    with ThreadPoolExecutor(8) as pool:
        plain = list(pool.map(lambda one: ask(url, one[0], one[2], packed=False), drawn))
        packed = list(pool.map(lambda one: ask(url, one[0], one[2], packed=True), drawn))
    alike = [np.array_equal(mask_of(one), mask_of(other)) for (one, _), (other, _) in zip(plain, packed, strict=True)]
    shared = []
    for (answer, _), (_, wanted, _) in zip(plain, drawn, strict=True):
        found = mask_of(answer)
        shared.append(float((found & wanted).sum() / (found | wanted).sum()))
    print(
        f"{sum(one > 0.7 for one in shared)} of {REQUESTS} things were marked, "
        f"{np.mean(shared):.2f} of both areas on average"
    )
    print(f"{sum(alike)} of {REQUESTS} masks are the same in gzip: {packed[0][1]:,} bytes instead of {plain[0][1]:,}")


if __name__ == "__main__":
    main()

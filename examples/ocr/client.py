"""Has pages read: `python client.py [URL [PAGE.png ...]]`. Without a page it draws some, asks for all of them at once,
and says how many of their lines came back as they were drawn."""

from __future__ import annotations

import io
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from PIL import Image, ImageDraw

LINES = (
    "Every page is drawn by the client,",
    "so it knows what stands on it:",
    "Invoice 4711 of 12 March, 99.50 EUR",
    "Pack my box with five dozen jugs.",
    "The quick brown fox jumps over",
    "the lazy dog, 16 times a day.",
)
PAGES = 8


def drawn(lines: list[str], turned: float) -> bytes:
    page, file = Image.new("L", (480, 40 + 40 * len(lines)), 255), io.BytesIO()
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((24, 24 + 40 * number), line, 0, font_size=22)
    page.rotate(turned, Image.Resampling.BICUBIC, fillcolor=255).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def read(page: bytes) -> dict[str, Any]:
        with urlopen(Request(f"{url}/inference", page, {"content-type": "image/png"})) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    for name in sys.argv[2:]:
        print(read(Path(name).read_bytes())["text"])
    if sys.argv[2:]:
        return
    texts = [[LINES[(number + row) % len(LINES)] for row in range(1 + number % 4)] for number in range(PAGES)]
    pages = [drawn(lines, turned=number % 3 - 1) for number, lines in enumerate(texts)]
    began = time.monotonic()
    with ThreadPoolExecutor(PAGES) as pool:
        answers = list(pool.map(read, pages))
    took = time.monotonic() - began
    print(answers[3]["text"])
    wanted = [(number, row, line) for number, lines in enumerate(texts) for row, line in enumerate(lines)]
    found = [answer["text"].split("\n") for answer in answers]
    right = sum(found[number][row : row + 1] == [line] for number, row, line in wanted)
    print(f"{PAGES} pages at once, in {took:.1f} s")
    print(f"{right} of {len(wanted)} lines are as they were drawn")


if __name__ == "__main__":
    main()

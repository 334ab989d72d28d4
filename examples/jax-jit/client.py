"""Sends crowds of several sizes to the jax-jit example: `python client.py [URL]`."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    noise = random.Random(3)
    body = json.dumps({"pixels": [noise.random() for _ in range(28 * 28)]}).encode()

    def ask(_number: int) -> dict[str, Any]:
        with urlopen(Request(f"{url}/inference", body)) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    answers: list[dict[str, Any]] = []
    for crowd in (1, 3, 10, 40):
        with ThreadPoolExecutor(crowd) as pool:
            answers += pool.map(ask, range(crowd * 5))
    assert len({answer["digit"] for answer in answers}) == 1, "padding changed an answer"
    sizes = Counter(answer["padded_to"] for answer in answers)
    print(f"{len(answers)} requests; padded batch sizes seen by them: {dict(sorted(sizes.items()))}")
    first, last = answers[0]["compiled"], answers[-1]["compiled"]
    print(f"shapes compiled: {first} before the first request, {last} after the last")


if __name__ == "__main__":
    main()

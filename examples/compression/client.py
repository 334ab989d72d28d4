"""Sends a table plain, with gzip and with zstd, and shows what went over the wire: `python client.py [URL]`."""

from __future__ import annotations

import gzip
import json
import random
import sys
from typing import Any
from urllib.request import Request, urlopen

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ROWS = 2000


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    dice = random.Random(1)
    rows = [{"temperature": round(dice.gauss(20, 3), 1), "pressure": round(dice.gauss(1013, 8))} for _ in range(ROWS)]
    plain = json.dumps({"rows": rows}).encode()
    answers: list[Any] = []
    for encoding, body in (
        ("identity", plain),
        ("gzip", gzip.compress(plain)),
        ("zstd", zstd.compress(plain)),
    ):
        headers = {"accept-encoding": encoding}
        if encoding != "identity":
            headers["content-encoding"] = encoding
        with urlopen(Request(f"{url}/inference", body, headers)) as response:
            used = response.headers.get("content-encoding", "identity")
            raw = response.read()
        if used == "gzip":
            answers.append(json.loads(gzip.decompress(raw)))
        elif used == "zstd":
            answers.append(json.loads(zstd.decompress(raw)))
        else:
            answers.append(json.loads(raw))
        print(f"{encoding:8} request {len(body):7} bytes, answer {len(raw):7} bytes ({used})")
    print(f"the three answers are the same: {answers[0] == answers[1] == answers[2]}")


if __name__ == "__main__":
    main()

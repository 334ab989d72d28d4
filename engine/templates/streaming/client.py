"""Shows a text while it is written: `python client.py [URL [START ...]]`."""

from __future__ import annotations

import json
import sys
from urllib.request import Request, urlopen


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    start = " ".join(sys.argv[2:]) or "a batch"
    body = json.dumps({"start": start, "words": 30, "seed": 4}).encode()
    print(start, end="", flush=True)
    with urlopen(Request(f"{url}/inference", body)) as response:
        for line in response:  # "data: word", an empty line, and so on
            if line.startswith(b"data: "):
                print(f" {line[6:].decode().rstrip()}", end="", flush=True)
    print()


if __name__ == "__main__":
    main()

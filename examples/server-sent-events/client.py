"""Reads texts while they are written: `python client.py [URL [START ...]]`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from urllib.request import Request, urlopen


def events(url: str, request: dict[str, object]) -> Iterator[tuple[str, str]]:
    """(kind, data) of each event, as soon as it is there; without the comments that keep a quiet connection open."""
    kind, data = "message", []
    with urlopen(Request(f"{url}/inference", json.dumps(request).encode()), timeout=60) as response:
        assert response.headers.get_content_type() == "text/event-stream"
        for raw in response:
            name, _, value = raw.decode().rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                kind = value
            elif not name and not value and data:
                yield kind, "\n".join(data)
                kind, data = "message", []


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    start = " ".join(sys.argv[2:]) or "the sea"
    began, first, words = time.monotonic(), 0.0, 0
    print(start, end="", flush=True)
    for kind, word in events(url, {"start": start, "words": 60, "seed": 4}):
        first = first or time.monotonic() - began
        words += kind == "message"
        print(f" {word}", end="", flush=True)
    took = time.monotonic() - began
    print(f"\n{words} words; the first after {1000 * first:.0f} ms, the last after {1000 * took:.0f} ms")


if __name__ == "__main__":
    main()

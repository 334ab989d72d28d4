"""Sends requests to the echo example from 32 threads and shows the batch sizes seen: `python client.py [URL]`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

REQUESTS = 500


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def echo(number: int) -> int:
        """The size of the batch in which this request was worked on."""
        body = json.dumps({"text": f"hello {number}"}).encode()
        with urlopen(Request(f"{url}/inference", body)) as response:
            answer = json.load(response)
        assert answer["echo"] == f"HELLO {number}", answer
        return int(answer["batch_size"])

    with ThreadPoolExecutor(32) as pool:
        sizes = Counter(pool.map(echo, range(REQUESTS)))
    print(f"{sizes.total()} of {REQUESTS} requests answered right; batch sizes seen by them:")
    for size, seen in sorted(sizes.items()):
        print(f"  {size:3}: {seen}")


if __name__ == "__main__":
    main()

"""Asks the gpu-assignment example which worker computes where: `python client.py [URL]`."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

REQUESTS = 60  # per route, many at once, so that every worker gets some
SIZE = 512


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def ask(route: str) -> dict[str, Any]:
        with urlopen(Request(f"{url}/{route}", json.dumps({"size": SIZE}).encode())) as response:
            answer: dict[str, Any] = json.load(response)
        assert answer["sum"] == SIZE**3, answer
        return answer

    print(f"{'stage':8} {'worker':6} {'asked for':10} {'visible':8} {'computed on':12} requests")
    with ThreadPoolExecutor(12) as pool:
        for route in ("auto", "listed", "hidden"):
            seen: dict[tuple[str, ...], int] = {}
            for answer in pool.map(ask, [route] * REQUESTS):
                row = tuple(str(answer[key]) for key in ("stage", "worker", "asked_for", "visible", "computed_on"))
                seen[row] = seen.get(row, 0) + 1
            for (stage, worker, wanted, visible, where), count in sorted(seen.items()):
                print(f"{stage:8} {worker:6} {wanted:10} {visible:8} {where:12} {count}")


if __name__ == "__main__":
    main()

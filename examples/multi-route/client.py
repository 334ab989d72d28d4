"""Asks the multi-route example the same questions on both routes: `python client.py [URL]`."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

import msgpack
import numpy as np

QUERIES = 200


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    vectors = np.random.default_rng(1).standard_normal((QUERIES, 64)).astype("<f4")

    def ask(number: int) -> tuple[list[int], dict[str, int]]:
        """Ids of the nearest vectors, and the requests in the same batch by route."""
        vector = vectors[number // 2]  # each vector twice, once on each route
        if number % 2:
            with urlopen(Request(f"{url}/search", json.dumps({"vector": vector.tolist()}).encode())) as response:
                answer: Any = json.load(response)
            return [hit["id"] for hit in answer["hits"]], answer["neighbours"]
        with urlopen(Request(f"{url}/search.msgpack", msgpack.packb({"vector": vector.tobytes()}))) as response:
            answer = msgpack.unpackb(response.read())
        return np.frombuffer(answer["ids"], "<i4").tolist(), answer["neighbours"]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(2 * QUERIES)))
    same = sum(answers[2 * query][0] == answers[2 * query + 1][0] for query in range(QUERIES))
    print(f"{same} of {QUERIES} queries got the same neighbours on both routes")
    mixed = sum(len(neighbours) == 2 for _ids, neighbours in answers)
    print(f"{mixed} of {len(answers)} requests were computed in a batch with requests of the other route")


if __name__ == "__main__":
    main()

"""Has arrays sent from stage to stage and counts them: `python client.py [URL [SECONDS]]`."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

SENDERS = 8
SIZES = (1, 4, 16)  # MiB


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0

    def ask(mib: int, seed: int) -> dict[str, Any]:
        with urlopen(Request(f"{url}/inference", json.dumps({"mib": mib, "seed": seed}).encode())) as response:
            answer: dict[str, Any] = json.load(response)
        assert (answer["mib"], answer["first"], answer["written"], answer["last"]) == (mib, seed, seed + 1, 1.0), answer
        return answer

    def ask_until(end: float, mib: int, first: int) -> int:
        """Arrays sent until then, each with a number of its own that comes back."""
        sent = 0
        while time.monotonic() < end:
            ask(mib, first + sent)
            sent += 1
        return sent

    answer = ask(4, 1)
    print(f"what arrives was copied: {answer['owns_its_memory']}; can be written to: {answer['written'] == 2}")
    with ThreadPoolExecutor(SENDERS) as pool:
        for mib in SIZES:
            began = time.monotonic()
            jobs = [pool.submit(ask_until, began + seconds, mib, 1000 * sender) for sender in range(SENDERS)]
            sent = sum(job.result() for job in jobs)
            rate = sent / (time.monotonic() - began)
            print(f"{mib:3} MiB: {rate:7.1f} arrays/s, {rate * mib:8.1f} MiB/s; all {sent} arrived whole")


if __name__ == "__main__":
    main()

"""Asks for a while, and says which host computed how much: `python client.py [URL [SECONDS]]`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

CLIENTS = 32


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    until = time.monotonic() + (float(sys.argv[2]) if len(sys.argv) > 2 else 3.0)

    def ask(client: int) -> list[dict[str, Any]]:
        answers = []
        while time.monotonic() < until:
            body = json.dumps({"text": f" some words of client {client} "}).encode()
            with urlopen(Request(f"{url}/inference", body)) as response:
                answers.append(json.load(response))
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [answer for own in pool.map(ask, range(CLIENTS)) for answer in own]
    right = sum(answer["words"] == 5 for answer in answers)
    print(f"{right} of {len(answers)} answers are right")
    for host, count in sorted(Counter(answer["host"] for answer in answers).items()):
        print(f"  {host}: {count / len(answers):.0%}")


if __name__ == "__main__":
    main()

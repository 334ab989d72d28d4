"""Asks the branches example questions of every kind: `python client.py [URL]`."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

QUESTIONS = ("When are you open?", "Where is order 1002?", "Many thanks!", "Which bicycle is light?")
EACH = 50


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def ask(number: int) -> tuple[str, tuple[str, ...]]:
        """The answer, and the stages that it has passed, of which server-timing tells."""
        body = json.dumps({"text": QUESTIONS[number % len(QUESTIONS)]}).encode()
        with urlopen(Request(f"{url}/ask", body)) as response:
            passed = re.findall(r"(\w+)-queue;", response.headers["server-timing"])
            return json.load(response)["answer"], tuple(passed)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(len(QUESTIONS) * EACH)))
    for number, question in enumerate(QUESTIONS):
        answer, _ = answers[number]
        ways = Counter(passed for _, passed in answers[number :: len(QUESTIONS)])
        told = "; ".join(f"{count} by {' > '.join(passed)}" for passed, count in ways.items())
        print(f"{question}\n  {answer}\n  {told}")


if __name__ == "__main__":
    main()

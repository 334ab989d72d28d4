"""Asks the branches example questions of every kind: `python client.py [URL]`."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

QUESTIONS = ("When are you open?", "Where is order 1002?", "Many thanks!", "Which bicycle is light?")
EACH = 50
MESSAGES = 50


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def ask(number: int) -> tuple[str, tuple[str, ...]]:
        """The answer, and the stages that it has passed, of which server-timing tells."""
        body = json.dumps({"text": QUESTIONS[number % len(QUESTIONS)]}).encode()
        with urlopen(Request(f"{url}/ask", body)) as response:
            passed = re.findall(r"(\w+)-queue;", response.headers["server-timing"])
            return json.load(response)["answer"], tuple(passed)

    def send(path: str, text: str) -> dict[str, list[Any]]:
        with urlopen(Request(f"{url}{path}", json.dumps({"text": text}).encode())) as response:
            answer: dict[str, list[Any]] = json.load(response)
        return answer

    def write(number: int) -> bool:
        """A message of up to as many questions as there are; whether each has its own answer, in their order."""
        asked = [(number + row) % len(QUESTIONS) for row in range(number % (len(QUESTIONS) + 1))]
        found = send("/messages", " ".join(QUESTIONS[kind] for kind in asked))["answers"]
        return found == [answers[kind][0] for kind in asked]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(len(QUESTIONS) * EACH)))
        right = sum(pool.map(write, range(MESSAGES)))
    for number, question in enumerate(QUESTIONS):
        answer, _ = answers[number]
        ways = Counter(passed for _, passed in answers[number :: len(QUESTIONS)])
        told = "; ".join(f"{count} by {' > '.join(passed)}" for passed, count in ways.items())
        print(f"{question}\n  {answer}\n  {told}")
    print(f"{right} of {MESSAGES} messages have the answers to their questions")
    for offer in send("/offers", "A bicycle with a bell and a lamp?")["offers"]:
        print(f"{offer['article']}: {offer['price']} each, {offer['stock']} here")


if __name__ == "__main__":
    main()

"""Sends sentences, none of them in labels.json, to the text classifier: `python client.py [URL]`."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

SENTENCES = (
    ("You took the money from my bank account two times!", "billing"),
    ("I would like my money back.", "billing"),
    ("The courier left the box with a neighbour I do not know.", "shipping"),
    ("How many days does it take to send it to Norway?", "shipping"),
    ("My login fails although I reset my passphrase.", "account"),
    ("I want to use a different user name.", "account"),
    ("The phone's display flickers and then goes black.", "defect"),
    ("It makes a terrible noise and smells of burnt plastic.", "defect"),
)


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def classify(text: str) -> dict[str, Any]:
        with urlopen(Request(f"{url}/inference", json.dumps({"text": text}).encode())) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    with ThreadPoolExecutor(len(SENTENCES)) as pool:
        answers = list(pool.map(classify, [text for text, _label in SENTENCES]))
    right = 0
    for (text, label), answer in zip(SENTENCES, answers, strict=True):
        right += answer["label"] == label
        print(f"  {answer['label']:9} {answer['scores'][answer['label']]:.2f}  {text}")
    print(f"{right} of {len(SENTENCES)} as a person would have it")


if __name__ == "__main__":
    main()

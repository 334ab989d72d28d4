"""Asks the service about some messages: `python client.py [URL]`."""

from __future__ import annotations

import json
import sys
from urllib.request import Request, urlopen

MESSAGES = ("You have won a prize", "Are we on for lunch?", "Click here for cheap loans")


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    for message in MESSAGES:
        with urlopen(Request(f"{url}/inference", json.dumps({"text": message}).encode())) as response:
            answer = json.load(response)
        print(f"{answer['label']:4}  {answer['score']:.2f}  {message}")


if __name__ == "__main__":
    main()

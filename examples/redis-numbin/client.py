"""Plays chords and has them named: `python client.py [URL]`."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import Request, urlopen

CHORDS = ([440, 554, 659], [262, 330, 392], [294, 370], [880], [196, 247, 294, 392])
REQUESTS = 100


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"

    def ask(number: int) -> bool:
        played = {"notes": CHORDS[number % len(CHORDS)], "seconds": 1 + number % 3}
        with urlopen(Request(f"{url}/inference", json.dumps(played).encode())) as response:
            answer: dict[str, Any] = json.load(response)
        return answer == {"notes": [float(note) for note in played["notes"]], "seconds": float(played["seconds"])}

    with ThreadPoolExecutor(16) as pool:
        right = sum(pool.map(ask, range(REQUESTS)))
    print(f"{right} of {REQUESTS} chords were heard as they were played")


if __name__ == "__main__":
    main()

"""Sends texts to the custom-metrics example, then shows its own metrics: `python client.py [URL]`."""

from __future__ import annotations

import json
import sys
import time
from urllib.request import Request, urlopen

TEXTS = ("one", "two words", "schöne Grüße aus Köln", "a text of six short words") * 25
OWN = ("words_total", "text_words", "longest_text_words")
PATIENCE_S = 15  # workers report once a second


def own_metrics(url: str) -> list[str]:
    with urlopen(f"{url}/metrics") as response:
        return [line for line in response.read().decode().splitlines() if line.startswith(OWN)]


def counted(lines: list[str]) -> int:
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("words_total"))


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    before, sent = counted(own_metrics(url)), 0
    for text in TEXTS:
        with urlopen(Request(f"{url}/inference", json.dumps({"text": text}).encode())) as response:
            sent += json.load(response)["words"]
    end = time.monotonic() + PATIENCE_S
    while counted(lines := own_metrics(url)) - before < sent and time.monotonic() < end:
        time.sleep(0.1)
    print("\n".join(line for line in lines if "_bucket" not in line and "_created" not in line))
    print(f"{sent} words sent, {counted(lines) - before} counted in /metrics")


if __name__ == "__main__":
    main()

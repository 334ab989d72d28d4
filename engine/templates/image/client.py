"""Sends pictures to the service: `python client.py [URL [FILE ...]]`; without files some that it makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from service import COLOURS, picture


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    files = {name: Path(name).read_bytes() for name in sys.argv[2:]}
    for name, data in (files or {name: picture(colour) for name, colour in COLOURS.items()}).items():
        with urlopen(Request(f"{url}/inference", data, {"content-type": "application/octet-stream"})) as response:
            answer = json.load(response)
        print(f"{answer['label']:6}  {answer['score']:.2f}  {name}")


if __name__ == "__main__":
    main()

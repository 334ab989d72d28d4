"""Draws pictures and saves them in the current folder: `python client.py [URL [PROMPT ...]]`.

What else a request may say comes from the environment, as JSON: REQUEST='{"steps": 10}'.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

PROMPTS = ("a lighthouse in a storm, oil on canvas", "a robot reading a newspaper, pencil drawing")


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    prompts = sys.argv[2:] or list(PROMPTS)
    extra = json.loads(os.environ.get("REQUEST", "{}"))

    def draw(numbered: tuple[int, str]) -> Path:
        number, prompt = numbered
        body = json.dumps({"prompt": prompt, "seed": number, **extra}).encode()
        with urlopen(Request(f"{url}/inference", body), timeout=300) as response:
            file = Path(f"picture-{number}.png")
            file.write_bytes(response.read())
        return file

    with ThreadPoolExecutor(4) as pool:
        for prompt, file in zip(prompts, pool.map(draw, enumerate(prompts, 1)), strict=True):
            print(f"{file}: {prompt}")


if __name__ == "__main__":
    main()

"""Shows which texts are near each other: `python client.py [URL]`. OpenAI's own client works likewise, with base_url
http://127.0.0.1:8000/v1 and any key."""

from __future__ import annotations

import json
import sys
from urllib.request import Request, urlopen

TEXTS = ("a cat sits on the mat", "the cat lies on a mat", "stock prices fell sharply", "prices of stock rose")


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with urlopen(Request(f"{url}/v1/embeddings", json.dumps({"input": TEXTS}).encode())) as response:
        vectors = [one["embedding"] for one in json.load(response)["data"]]
    for text, vector in zip(TEXTS, vectors, strict=True):
        near = [sum(x * y for x, y in zip(vector, other, strict=True)) for other in vectors]
        print(f"{'  '.join(f'{one:5.2f}' for one in near)}  {text}")


if __name__ == "__main__":
    main()

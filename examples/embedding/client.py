"""The official openai client against the embedding example: `python client.py [URL]`.

Asks which of some sentences are alike, then sends many requests at once and shows how the service batched them.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

from openai import OpenAI

SENTENCES = (
    "A cat sits on the mat.",
    "A kitten is lying on a rug.",
    "The stock market fell sharply today.",
    "Share prices dropped this afternoon.",
)
REQUESTS = 200


def similarity(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))  # the vectors have length one


def batch_sizes(url: str) -> dict[str, float]:
    """Mean batch size of each stage so far, from the service's metrics."""
    totals: dict[tuple[str, str], float] = {}
    with urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        name, _, rest = line.partition("{")
        for kind in ("sum", "count"):
            if name == f"engine_batch_size_{kind}":
                labels, _, value = rest.rpartition("} ")
                stage = labels.partition('stage="')[2].partition('"')[0]
                totals[stage, kind] = totals.get((stage, kind), 0.0) + float(value)
    return {
        stage: totals[stage, "sum"] / count
        for (stage, kind), count in sorted(totals.items())
        if kind == "count" and count
    }


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with OpenAI(base_url=f"{url}/v1", api_key="not needed") as client:
        answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=list(SENTENCES))
        vectors = [entry.embedding for entry in answer.data]
        print(f"{len(vectors)} vectors of {len(vectors[0])} numbers from {answer.usage.prompt_tokens} tokens")
        for index, sentence in enumerate(SENTENCES):
            others = [other for other in range(len(SENTENCES)) if other != index]
            best = max(others, key=lambda other: similarity(vectors[index], vectors[other]))
            print(f"  {sentence!r} is most like {SENTENCES[best]!r}")

        def embed(number: int) -> int:
            return len(client.embeddings.create(model="all-MiniLM-L6-v2", input=f"Sentence number {number}.").data)

        with ThreadPoolExecutor(32) as pool:
            answered = sum(pool.map(embed, range(REQUESTS)))
    print(f"{answered} of {REQUESTS} concurrent requests answered")
    for stage, mean in batch_sizes(url).items():
        print(f"  {stage}: {mean:.1f} requests per batch")


if __name__ == "__main__":
    main()

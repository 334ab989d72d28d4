"""The official cohere client (its API of version 1 and 2) against the rerank example: `python client.py [URL]`."""

from __future__ import annotations

import sys

import cohere

QUERY = "How do I make the pasta less salty?"
DOCUMENTS = [
    "The stadium was sold out an hour before the match.",
    "Add a peeled potato or some unsalted water to a dish that has too much salt.",
    "Bring a pot of water to the boil before you add the noodles.",
    "Quarterly earnings were above what analysts expected.",
]


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    print(QUERY)
    newer = cohere.ClientV2(api_key="not needed", base_url=url)
    for result in newer.rerank(model="all-MiniLM-L6-v2", query=QUERY, documents=DOCUMENTS, top_n=3).results:
        print(f"  {result.relevance_score:.3f}  {DOCUMENTS[result.index]}")
    older = cohere.Client(api_key="not needed", base_url=url)
    answer = older.rerank(
        query=QUERY, documents=[{"text": text} for text in DOCUMENTS], top_n=1, return_documents=True
    ).results[0]
    assert answer.document is not None
    print(f"version 1 of the API agrees: {answer.document.text}")


if __name__ == "__main__":
    main()

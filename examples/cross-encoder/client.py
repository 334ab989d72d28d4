"""The official cohere client against the cross-encoder example: `python client.py [URL]`."""

from __future__ import annotations

import sys

import cohere

QUERY = "How do I sort a list without changing it?"
DOCUMENTS = [
    "Removes all items of the list. The list is empty afterwards.",
    "Returns a new sorted list of the items; the list that was given stays as it is.",
    "Opens a file and returns a stream. The mode says whether it is read or written.",
    "Returns the number of items of a container.",
]


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = cohere.ClientV2(api_key="not needed", base_url=url)
    print(QUERY)
    for result in client.rerank(model="any", query=QUERY, documents=DOCUMENTS, top_n=3).results:
        print(f"  {result.relevance_score:.3f}  {DOCUMENTS[result.index]}")


if __name__ == "__main__":
    main()

"""The official openai client against the chat example: `python client.py [URL]`.

Asks one question as a stream, the next for the whole answer, and then both kinds at once from many clients.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

QUESTIONS = ("Hello!", "What is a batch?", "What is a stream?", "Why is the sea blue?", "Tell me a poem.")
MODEL = "by-heart"
CLIENTS = 16
REQUESTS = 80


def ask(client: OpenAI, question: str) -> str:
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    return answer.choices[0].message.content or ""


def listen(client: OpenAI, question: str, *, aloud: bool = False) -> str:
    text = ""
    for chunk in client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": question}], stream=True
    ):
        piece = chunk.choices[0].delta.content or "" if chunk.choices else ""
        text += piece
        if aloud:
            print(piece, end="", flush=True)
    return text


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with OpenAI(base_url=f"{url}/v1", api_key="not needed") as client:
        print("models:", ", ".join(model.id for model in client.models.list()))
        print("> What is a batch?")
        listen(client, "What is a batch?", aloud=True)
        print("\n> Tell me a poem.")
        print(ask(client, "Tell me a poem."))
        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [QUESTIONS[number % len(QUESTIONS)] for number in range(REQUESTS)]
            heard = list(pool.map(lambda one: listen(client, one), asked))
            told = list(pool.map(lambda one: ask(client, one), asked))
        alike = sum(one == other != "" for one, other in zip(heard, told, strict=True))
        print(f"{alike} of {REQUESTS} answers are the same as a stream and whole, in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()

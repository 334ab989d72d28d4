"""Questions to a shop: some are answered at once, some skip a stage, the others go to who knows their subject. Of a
message with several each goes its own way; and what two know about an article is asked of both at once."""

from __future__ import annotations

import re
import time
from typing import Any, TypedDict

from engine import Done, Skip, ValidationError, Worker

HOURS = "We are here from 9 to 17, on weekdays."
PRICES = {"bicycle": 900, "lamp": 40, "bell": 9}
IN_STOCK = {"bicycle": 3, "bell": 120}
DELIVERED = {"1001": "was delivered on Monday", "1002": "is on its way"}


class Question(TypedDict, total=False):
    text: str
    subject: str
    order: str
    said: str


class Message(TypedDict):
    text: str
    questions: list[Question]


class Sort(Worker):
    """Looks what a question is about; the simplest it answers itself."""

    example = [{"text": "When are you open?"}, {"text": "Where is order 1002?"}, {"text": "Which bicycle is light?"}]

    def forward(self, data: list[Question]) -> list[Question | Done | Skip | Exception]:
        return [self.one(question) for question in data]

    def one(self, question: Question) -> Question | Done | Skip | Exception:
        text = question.get("text", "")
        if not text.strip():
            return ValidationError("ask something: the text is empty")
        if re.search(r"\bopen\b", text):
            return Done({"answer": HOURS})  # no other stage sees it
        if found := re.search(r"\border (\d+)", text):
            return {"text": text, "subject": "order", "order": found[1]}  # by the field, to `orders`
        if re.search(r"\bthank", text):
            return Skip({"text": text, "said": "you are welcome"}, to="letter")  # nobody has to think about it
        return {"text": text, "subject": "goods"}  # to `advice`, as all others


class Orders(Worker):
    """Looks up orders: quick."""

    def forward(self, data: list[Question]) -> list[Question]:
        return [{**one, "said": f"your order {DELIVERED.get(one['order'], 'is not known')}"} for one in data]


class Advice(Worker):
    """Thinks about goods: a large model, say, which takes 20 ms for a batch of any size."""

    def forward(self, data: list[Question]) -> list[Question]:
        time.sleep(0.02)
        return [{**one, "said": f"we have looked for you: {len(one['text'].split())} words well put"} for one in data]


class Letter(Worker):
    """Makes an answer of what was said, by whomever."""

    def forward(self, data: list[Question]) -> list[dict[str, str]]:
        return [{"answer": f"Dear customer, {one['said']}."} for one in data]


class Read(Worker):
    """Takes a message apart: each sentence is a question."""

    example = [{"text": "When are you open? Where is order 1002? Which bicycle is light?"}, {"text": "A lamp!"}]

    def forward(self, data: list[Question]) -> list[Message]:
        found = [re.findall(r"[^.!?]*\w[^.!?]*[.!?]?", one.get("text", "")) for one in data]
        return [
            {"text": one.get("text", ""), "questions": [{"text": text.strip()} for text in texts]}
            for one, texts in zip(data, found, strict=True)
        ]


class Reply(Worker):
    """Gets the message again, with what was answered in the place of its questions."""

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, list[str]]]:
        return [{"answers": [one["answer"] for one in message["questions"]]} for message in data]


class Price(Worker):
    """Asks one system about the articles of a message."""

    def forward(self, data: list[Message]) -> list[dict[str, int]]:
        time.sleep(0.02)
        return [{name: price for name, price in PRICES.items() if name in one["text"]} for one in data]


class Stock(Worker):
    """Asks another one, meanwhile."""

    def forward(self, data: list[Message]) -> list[dict[str, int]]:
        time.sleep(0.02)
        return [{name: IN_STOCK.get(name, 0) for name in PRICES if name in one["text"]} for one in data]


class Offer(Worker):
    """Gets what both said, by the names of the branches."""

    def forward(self, data: list[dict[str, dict[str, int]]]) -> list[dict[str, list[dict[str, Any]]]]:
        return [
            {
                "offers": [
                    {"article": name, "price": price, "stock": one["stock"][name]}
                    for name, price in one["price"].items()
                ]
            }
            for one in data
        ]

"""Questions to a shop: some are answered at once, some skip a stage, the others go to who knows their subject."""

from __future__ import annotations

import re
import time
from typing import TypedDict

from engine import Done, Skip, ValidationError, Worker

HOURS = "We are here from 9 to 17, on weekdays."
DELIVERED = {"1001": "was delivered on Monday", "1002": "is on its way"}


class Question(TypedDict, total=False):
    text: str
    subject: str
    order: str
    said: str


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

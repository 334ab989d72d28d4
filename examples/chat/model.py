"""A language model made on the spot: a small recurrent network that learns a few answers by heart, in some seconds.

It stands in for a large one and is used like one: what a stream of words has been so far is a row of state, and one
step makes the next word of every stream of a batch at once.
"""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import nn

ANSWERS: Final = {
    "hello": "Hello! I am a small model that knows a few answers by heart. Ask me what I know.",
    "who are you": "I am a recurrent network with some ten thousand words of training and no opinions.",
    "what do you know": "I know what a batch is, what a stage is, what a stream is, and why the sea is blue.",
    "what is a batch": "A batch is a list of requests that a model computes at once, for hardly more than one costs.",
    "what is a stage": "A stage is a class with a forward method, run in as many processes as you ask for.",
    "what is a stream": "A stream is an answer that leaves word by word, while it is computed.",
    "why is the sea blue": "The sea is blue because water swallows red light first, and the rest comes back to you.",
    "what is a worker": "A worker is a process that runs one stage. When it dies, its batch is computed by another.",
    "tell me a poem": "The sea is calm tonight. The tide is full, the moon lies fair upon the straits.",
    "count to ten": "One, two, three, four, five, six, seven, eight, nine, ten.",
    "thank you": "You are welcome. There is little else that I know, but I know it well.",
    "goodbye": "Goodbye! I stay here, warm and ready.",
}
WIDTH: Final = 96
STEPS: Final = 220
UNKNOWN, ASK, ANSWER, END = range(4)  # the first entries of the vocabulary
_WORD: Final = re.compile(r"[A-Za-z']+|[0-9]+|[.,!?;:]")


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def join(before: str, word: str) -> str:
    """The word as it follows what is there: with its space, if it takes one."""
    return word if not before or word in ".,!?;:" else f" {word}"


class Vocabulary:
    def __init__(self) -> None:
        asked = [word.lower() for question in ANSWERS for word in words(question)]
        said = [word for answer in ANSWERS.values() for word in words(answer)]
        self.words = ["?", "", "", "", *dict.fromkeys(asked + said)]
        self._numbers = {word: number for number, word in enumerate(self.words) if number > END}

    def question(self, text: str) -> list[int]:
        """What a client said as numbers, without marks and capitals."""
        said = [word.lower() for word in words(text) if word[0].isalnum()]
        return [ASK, *(self._numbers.get(word, UNKNOWN) for word in said), ANSWER]

    def answer(self, text: str) -> list[int]:
        return [*(self._numbers[word] for word in words(text)), END]


class Model(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, WIDTH)
        self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, size)

    def read(self, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each prompt what it leaves behind: logits [batch, vocabulary] and state [1, batch, WIDTH]."""
        packed = nn.utils.rnn.pack_sequence([self.embed(torch.tensor(one)) for one in prompts], enforce_sorted=False)
        _, state = self.cell(packed)
        return self.head(state[0]), state

    def step(self, last: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same after one word more of each: ``last`` [batch]."""
        out, state = self.cell(self.embed(last)[:, None], state)
        return self.head(out[:, 0]), state


def trained(vocabulary: Vocabulary) -> Model:
    """Learns all answers by heart: some five seconds on one CPU. Always the same, from one seed."""
    torch.manual_seed(0)
    model = Model(len(vocabulary.words))
    texts = [vocabulary.question(q) + vocabulary.answer(a) for q, a in ANSWERS.items()]
    starts = torch.tensor([len(vocabulary.question(q)) for q in ANSWERS])
    padded = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_value=END)
    lengths = torch.tensor([len(text) for text in texts])
    place = torch.arange(padded.shape[1] - 1)
    counts = (place + 1 >= starts[:, None]) & (place + 1 < lengths[:, None])  # the words of answers alone
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        out, _ = model.cell(model.embed(padded[:, :-1]))
        loss = nn.functional.cross_entropy(model.head(out)[counts], padded[:, 1:][counts])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()

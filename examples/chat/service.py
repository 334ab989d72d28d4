"""OpenAI's chat completions in two stages: `Read` (a conversation to word numbers) and `Write` (word by word).

Whether an answer comes as a stream is the client's choice, request by request (`"stream": true`), and both kinds are in
one batch: `Write` sends events for those who want them, and returns the whole answer of the others.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from model import ANSWER, END, Vocabulary, join, trained

from engine import SSEWorker, ValidationError, Worker
from engine.mixin import TypedJSONMixin

if TYPE_CHECKING:
    import torch

MODEL: Final = "by-heart"
MOST_WORDS: Final = 256
MOST_PROMPT: Final = 2048  # words


class Part(msgspec.Struct):
    type: str
    text: str = ""


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Request(msgspec.Struct):
    """The body of POST /v1/chat/completions. Other fields of OpenAI's schema are accepted and have no effect."""

    messages: list[Message]
    model: str = MODEL
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 0.0  # OpenAI's is 1; a model that knows answers by heart is best asked for the likeliest word
    seed: int = 0
    n: int = 1


@dataclass(frozen=True)
class Prompt:
    """What is left to do: `numbers` are the words of the question, `most` is how many of the answer may be made."""

    id: str
    created: int
    numbers: list[int]
    most: int
    temperature: float
    seed: int
    stream: bool
    tells_usage: bool


class Read(TypedJSONMixin, Worker):
    example = Request(messages=[Message("user", "Hello!")])

    def __init__(self) -> None:
        self.vocabulary = Vocabulary()

    def forward(self, data: Request) -> Prompt:
        if data.model != MODEL:
            raise ValidationError(f"model: this service has {MODEL!r}, not {data.model!r}")
        if data.n != 1:
            raise ValidationError("n: only 1 is supported")
        if not 0 <= data.temperature <= 2:
            raise ValidationError("temperature: expected 0 to 2")
        asked = [message for message in data.messages if message.role == "user"]
        if not asked:
            raise ValidationError("messages: none is of the user")
        numbers = self.vocabulary.question(_text(asked[-1]))  # the model was taught no conversations
        if len(numbers) > MOST_PROMPT:
            raise ValidationError(f"messages: at most {MOST_PROMPT} words are read")
        limit = data.max_completion_tokens or data.max_tokens or MOST_WORDS
        if limit < 1:
            raise ValidationError("max_tokens: expected 1 or more")
        return Prompt(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            numbers=numbers,
            most=min(limit, MOST_WORDS),
            temperature=data.temperature,
            seed=data.seed,
            stream=data.stream,
            tells_usage=data.stream_options is not None and data.stream_options.include_usage,
        )


def _text(message: Message) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else " ".join(part.text for part in content if part.type == "text")


@dataclass
class Answer:
    """One answer in the making."""

    prompt: Prompt
    text: str = ""
    made: int = 0
    finish: Literal["stop", "length", ""] = ""
    dice: torch.Generator | None = field(default=None, repr=False)

    def usage(self) -> dict[str, int]:
        asked = len(self.prompt.numbers)
        return {"prompt_tokens": asked, "completion_tokens": self.made, "total_tokens": asked + self.made}

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}
        return self._object("chat.completion", [choice], usage=self.usage())

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> str:
        """An event with what is new."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event([choice])

    def last_usage(self) -> str:
        return self._event([], usage=self.usage())

    def _event(self, choices: list[Any], **more: Any) -> str:
        return msgspec.json.encode(self._object("chat.completion.chunk", choices, **more)).decode()

    def _object(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        known = {"id": self.prompt.id, "object": kind, "created": self.prompt.created, "model": MODEL}
        return {**known, "choices": choices, **more}


class Write(SSEWorker):
    whole_mime_type = "application/json"  # of the answers of those who want no stream
    example = [Prompt("chatcmpl-0", 0, [1, 4, ANSWER], most=4, temperature=0.0, seed=0, stream=True, tells_usage=False)]

    def __init__(self) -> None:
        self.vocabulary = Vocabulary()
        self.model = trained(self.vocabulary)

    def forward(self, data: list[Prompt]) -> list[Any]:
        import torch

        answers = [Answer(prompt) for prompt in data]
        for index, answer in enumerate(answers):
            answer.dice = torch.Generator().manual_seed(answer.prompt.seed)
            if answer.prompt.stream:
                self.send_stream_event(answer.chunk({"role": "assistant", "content": ""}), index=index)
        with torch.inference_mode():
            logits, state = self.model.read([prompt.numbers for prompt in data])
            while any(not answer.finish for answer in answers):
                numbers = [_choice(row, answer) for row, answer in zip(logits, answers, strict=True)]
                for index, (number, answer) in enumerate(zip(numbers, answers, strict=True)):
                    if not answer.finish:
                        self._say(index, answer, number)
                logits, state = self.model.step(torch.tensor(numbers), state)
        return [answer.whole() for answer in answers]  # of those that were streams it is dropped

    def _say(self, index: int, answer: Answer, number: int) -> None:
        streams = answer.prompt.stream
        if self.context(index).cancelled:
            answer.finish = "stop"  # its client has gone: nobody reads on
            return
        if number == END:
            answer.finish = "stop"
        else:
            piece = join(answer.text, self.vocabulary.words[number])
            answer.text += piece
            answer.made += 1
            if streams:
                self.send_stream_event(answer.chunk({"content": piece}), index=index)
            if answer.made == answer.prompt.most:
                answer.finish = "length"
        if answer.finish and streams:
            self.send_stream_event(answer.chunk({}, answer.finish), index=index)
            if answer.prompt.tells_usage:
                self.send_stream_event(answer.last_usage(), index=index)
            self.send_stream_event("[DONE]", index=index)


def _choice(logits: torch.Tensor, answer: Answer) -> int:
    """The next word: the likeliest, or one by chance. logits: [vocabulary]."""
    if not answer.prompt.temperature:
        return int(logits.argmax())
    chances = (logits / answer.prompt.temperature).softmax(0)
    return int(chances.multinomial(1, generator=answer.dice))

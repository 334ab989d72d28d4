"""Mistakes in a class that fail every request are found before its object is made, and told in a sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.errors import StartError
from stages.base import Worker
from stages.contract import check_class
from stages.stream import SSEWorker, StreamWorker


class AsyncForward(Worker):
    async def forward(self, data: Any) -> Any:
        return data


class AsyncSetup(Worker):
    async def setup(self) -> None:  # type: ignore[override]
        return

    def forward(self, data: Any) -> Any:
        return data


class AsyncInit(Worker):
    async def __init__(self) -> None:  # type: ignore[misc]
        return

    def forward(self, data: Any) -> Any:
        return data


class NoSelf(Worker):
    def forward(data: Any) -> Any:  # type: ignore[override]
        return data


class TwoValues(Worker):
    def forward(self, data: Any, more: Any) -> Any:  # type: ignore[override]
        return data


class NoReturn(Worker):
    def forward(self, data: Any) -> Any:
        def inner() -> int:
            return 1

        inner()


class BareReturn(Worker):
    def forward(self, data: Any) -> Any:
        if data:
            return
        data.append(1)


class Yields(Worker):
    def forward(self, data: Any) -> Any:
        yield data


class Pieces(StreamWorker):
    def forward(self, data: Any) -> Iterator[bytes]:
        yield b"x"


class Events(SSEWorker):
    def forward(self, data: Any) -> Any:
        self.send_stream_event("x")


class MeansNone(Worker):
    def forward(self, data: Any) -> Any:
        return None


class RefusesAll(Worker):
    def forward(self, data: Any) -> Any:
        raise ValueError(data)


def run(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def plain(*args: Any) -> Any:
        with pytest.raises(StopIteration) as end:
            function(*args).send(None)
        return end.value.value

    return plain


class Decorated(Worker):
    """A coroutine made plain: the decorator is taken at its word."""

    @run
    async def forward(self, data: Any) -> Any:
        return data


class Static(Worker):
    @staticmethod
    def forward(data: Any) -> Any:  # type: ignore[override]
        return data


class Called(Worker):
    forward = functools.partialmethod(lambda self, data: data)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (AsyncForward, 'AsyncForward.forward of stage s (test_contract.py, line 18) is "async def"'),
        (AsyncSetup, 'AsyncSetup.setup of stage s (test_contract.py, line 23) is "async def"'),
        (AsyncInit, 'is "async def"'),
        (NoSelf, "write def forward(self, data)"),
        (TwoValues, "write def forward(self, data)"),
        (NoReturn, 'never returns a result: is a "return" missing?'),
        (BareReturn, 'never returns a result: is a "return" missing?'),
        (Yields, "derive from StreamWorker"),
        (dict, "not derived from"),
        (Worker, "must define forward"),
    ],
)
def test_a_class_that_could_answer_nothing_is_refused(cls: type, words: str) -> None:
    with pytest.raises(StartError) as refused:
        check_class(cls, "s")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cls", [Pieces, Events, MeansNone, RefusesAll, Decorated, Static, Called])
def test_what_may_be_right_is_not_refused(cls: type) -> None:
    check_class(cls, "s")


class CostsInVain(Worker):
    def forward(self, data: Any) -> Any:
        return data

    def cost(self) -> float:  # type: ignore[override]
        return 1.0


def test_a_method_named_cost_is_looked_at_where_it_is_asked() -> None:
    check_class(CostsInVain, "s")
    with pytest.raises(StartError, match=r"write def cost\(self, data\)"):
        check_class(CostsInVain, "s", asks_cost=True)

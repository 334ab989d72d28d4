"""Run by `python -m pytest`: the stages by themselves, all of them in this process, and the service over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service import Read, Write

from engine import ValidationError, testing

FOLDER = Path(__file__).parent
REQUEST = {"start": "a batch", "words": 7, "seed": 3}


def test_each_stream_gets_its_own_words() -> None:
    worker = testing.made(Write, max_batch_size=8)
    with worker.collect() as events:
        worker.forward([REQUEST, {**REQUEST, "words": 2}])
    assert [sum(index == one for index, _ in events) for one in (0, 1)] == [7, 2]


@pytest.mark.parametrize("data", [{}, [], {"start": " "}, {"start": "a", "words": 0}, {"start": "a", "seed": "x"}])
def test_what_cannot_be_written_is_refused(data: object) -> None:
    with pytest.raises(ValidationError):
        testing.call(Read, [data])


def test_all_stages_in_this_process() -> None:
    with testing.local(FOLDER) as service:
        assert len(service.post(REQUEST).events) == 7


@pytest.fixture(scope="module")
def served() -> Iterator[testing.Running]:
    with testing.running(FOLDER) as service:
        yield service


def test_over_http(served: testing.Running) -> None:
    answer = served.post(REQUEST)
    assert answer.status == 200
    assert len(answer.events) == 7
    assert answer.events == served.post(REQUEST).events, "the same seed, the same words"
    assert "expected" in served.post({"start": 1}).events[-1], "a stream has begun: its end says what was wrong"

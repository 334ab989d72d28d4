"""Run by `python -m pytest`: the stages by themselves, all of them in this process, and the service over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from service import WIDTH, Encode, Read, Texts

from engine import ValidationError, testing

FOLDER = Path(__file__).parent


def test_texts_that_share_words_are_nearer() -> None:
    (answer,) = testing.call(
        Encode, [Texts(["the cat sits", "a cat sits", "stock prices fell"], base64=False)], max_batch_size=32
    )
    cat, other, prices = (np.array(one["embedding"]) for one in answer["data"])
    assert cat @ other > cat @ prices
    assert np.isclose(np.linalg.norm(cat), 1.0, atol=1e-5)


def test_requests_of_one_batch_get_their_own_answers() -> None:
    texts = [["one"], ["two", "three"], ["one"]]
    answers = testing.call(Encode, [Texts(some, base64=True) for some in texts], max_batch_size=32)
    assert [len(answer["data"]) for answer in answers] == [1, 2, 1]
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("data", [{}, {"input": []}, {"input": [1]}, {"input": ""}, []])
def test_what_is_no_text_is_refused(data: object) -> None:
    with pytest.raises(ValidationError):
        testing.call(Read, [data])


def test_all_stages_in_this_process() -> None:
    with testing.local(FOLDER) as service:
        assert len(service.post({"input": "hello"}).json()["data"][0]["embedding"]) == WIDTH


@pytest.fixture(scope="module")
def served() -> Iterator[testing.Running]:
    with testing.running(FOLDER) as service:
        yield service


def test_over_http(served: testing.Running) -> None:
    answer = served.post({"input": ["hello", "world"], "model": "any"})
    assert answer.status == 200
    assert [one["index"] for one in answer.json()["data"]] == [0, 1]
    assert served.post({"input": None}).status == 422
    assert served.get("/readyz").status == 200

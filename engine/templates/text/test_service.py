"""Run by `python -m pytest`: the stages by themselves, all of them in this process, and the service over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service import Check, Classify

from engine import ValidationError, testing

FOLDER = Path(__file__).parent


def test_spam_is_told_from_ham() -> None:
    spam, ham = testing.call(Classify, ["free prize", "see you at lunch"], max_batch_size=32)
    assert spam["label"] == "spam"
    assert ham["label"] == "ham"


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValidationError):
        testing.call(Check, [{"text": 1}])


def test_all_stages_in_this_process() -> None:
    with testing.local(FOLDER) as service:
        assert service.post({"text": "click here"}).json()["label"] == "spam"
        assert service.post({"texts": []}).status == 422


@pytest.fixture(scope="module")
def served() -> Iterator[testing.Running]:
    with testing.running(FOLDER) as service:
        yield service


def test_over_http(served: testing.Running) -> None:
    answer = served.post({"text": "you have won"})
    assert answer.status == 200
    assert answer.json()["label"] == "spam"
    assert served.post({"text": ""}).status == 422
    assert served.post(b"no JSON").status == 400
    assert served.get("/readyz").status == 200

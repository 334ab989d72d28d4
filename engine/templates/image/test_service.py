"""Run by `python -m pytest`: the stages by themselves, all of them in this process, and the service over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from service import COLOURS, Classify, Decode, picture

from engine import ValidationError, testing

FOLDER = Path(__file__).parent


def test_each_colour_is_known_again_in_one_batch() -> None:
    pixels = testing.call(Decode, [picture(colour) for colour in COLOURS.values()])
    found = testing.call(Classify, pixels, max_batch_size=16)
    assert [one["label"] for one in found] == list(COLOURS)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValidationError):
        testing.call(Decode, [b"GIF89a, or so it says"])


def test_all_stages_in_this_process() -> None:
    with testing.local(FOLDER) as service:
        assert service.post(picture()).json()["label"] == "red"
        assert service.post(b"").status == 422


@pytest.fixture(scope="module")
def served() -> Iterator[testing.Running]:
    with testing.running(FOLDER) as service:
        yield service


def test_over_http(served: testing.Running) -> None:
    answer = served.post(picture(COLOURS["blue"]), headers={"content-type": "image/png"})
    assert answer.status == 200
    assert answer.json()["label"] == "blue"
    refusal = served.post(b"nothing")
    assert refusal.status == 422
    assert "PNG or JPEG" in refusal.text
    assert "BytesIO" not in refusal.text  # the words of a library are for the log
    assert served.get("/readyz").status == 200

"""Server-sent events as bytes: what one could make of a text that contains line ends."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core import sse


def parse(stream: bytes) -> list[tuple[str, str]]:
    """(event type, data) of every event, by the rules of the standard."""
    found = []
    for block in re.split("\n\n", stream.decode())[:-1]:
        kind, data = "message", []
        for line in re.split("\r\n|\r|\n", block):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "data":
                data.append(value)
        if data:
            found.append((kind, "\n".join(data)))
    return found


@pytest.mark.parametrize(
    ("text", "framed"),
    [
        ("hello", b"data: hello\n\n"),
        ("two\nlines", b"data: two\ndata: lines\n\n"),
        ("a\r\nb\rc", b"data: a\ndata: b\ndata: c\n\n"),
        ("", b"data: \n\n"),
        (" lead", b"data:  lead\n\n"),
        ("x\n", b"data: x\ndata: \n\n"),
    ],
)
def test_every_line_is_a_field_of_its_own(text: str, framed: bytes) -> None:
    assert sse.event(text.encode()) == framed


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_out_as_one_event(text: str) -> None:
    assert parse(sse.event(text.encode())) == [("message", re.sub("\r\n|\r", "\n", text))]


def test_an_error_says_the_status_by_its_name_and_stays_on_its_line() -> None:
    assert sse.error(422, "request validation error: a\nb") == (
        b"event: error\ndata: SSE inference error: 422: Unprocessable Content: request validation error: a b\n\n"
    )
    assert sse.error(499, "x") == b"event: error\ndata: SSE inference error: 499: Status 499: x\n\n"


def test_a_comment_is_no_event() -> None:
    assert parse(sse.COMMENT + sse.event(b"x")) == [("message", "x")]

"""A body in chunks, as the parser hands it on: what costs work and brings nothing is bounded, however it arrives."""

from __future__ import annotations

import pytest
from gunicorn.asgi.parser import InvalidChunkSize

from frontend.serving.connection import CHUNK_LEAST, CHUNKS_FREE, Parser

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def parsed(data: bytes, piece: int = 1 << 16) -> list[bytes | None]:
    """The pieces that the application gets, and None at the end."""
    told: list[bytes | None] = []
    parser = Parser(on_body=told.append, on_message_complete=lambda: told.append(None))
    for start in range(0, len(data), piece):
        parser.feed(data[start : start + piece])
    return told


def test_chunks_that_come_together_are_one_piece() -> None:
    assert parsed(HEAD + chunk(b"abc") * 100 + END) == [b"abc" * 100, None]


def test_the_end_is_told_once_and_behind_the_body() -> None:
    for piece in range(1, 40):
        told = parsed(HEAD + chunk(b"abc") * 3 + END, piece)
        assert told.index(None) == len(told) - 1
        assert b"".join(part for part in told if part) == b"abc" * 3


def test_a_few_tiny_chunks_are_nobodys_business_and_very_many_are_refused() -> None:
    assert parsed(HEAD + chunk(b"x") * CHUNKS_FREE + END)
    with pytest.raises(InvalidChunkSize, match="tiny"):
        parsed(HEAD + chunk(b"x") * 2 * CHUNKS_FREE + END)
    with pytest.raises(InvalidChunkSize, match="tiny"):
        parsed(HEAD + chunk(b"x") * 2 * CHUNKS_FREE + END, 10)


def test_chunks_of_some_size_may_be_as_many_as_there_are() -> None:
    assert parsed(HEAD + chunk(b"x" * CHUNK_LEAST) * 4 * CHUNKS_FREE + END)


def test_a_large_chunk_that_arrives_byte_by_byte_is_one_chunk() -> None:
    assert len(parsed(HEAD + chunk(b"x" * 4 * CHUNKS_FREE) + END, 1)) == 4 * CHUNKS_FREE + 1


def test_each_request_has_its_own() -> None:
    told: list[bytes] = []
    parser = Parser(on_body=told.append, on_message_complete=lambda: None)
    for _ in range(5):
        parser.feed(HEAD + chunk(b"x") * (CHUNKS_FREE // 2) + END)
        assert parser.is_complete
        parser.reset()

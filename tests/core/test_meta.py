"""What the two ends of a request's way tell each other past everybody between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core import meta
from engine.core.meta import Head
from engine.errors import ProtocolError

names = st.binary(min_size=1, max_size=20)


@given(st.text(alphabet="abc-XYZ019._:/+=", max_size=meta.ID_MAX), st.binary(), st.lists(st.tuples(names, st.binary())))
def test_round_trip(request_id: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    packed = meta.pack(request_id, meta.pack_head(query, headers))
    assert meta.request_id_of(packed) == request_id
    assert meta.head_of(packed) == Head(query, headers)


def test_nothing_is_an_empty_head() -> None:
    assert meta.request_id_of(b"") == ""
    assert meta.head_of(b"") == meta.head_of(meta.pack("id")) == Head()


def test_what_cannot_be_read_is_the_peers_fault() -> None:
    with pytest.raises(ProtocolError):
        meta.head_of(meta.pack("id", b"\xc1"))


@pytest.mark.parametrize("request_id", ["x" * (meta.ID_MAX + 1), "\N{SNOWMAN}"])
def test_an_id_that_no_frontend_makes_is_refused(request_id: str) -> None:
    with pytest.raises(ValueError):
        meta.pack(request_id)

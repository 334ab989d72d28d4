"""By what the cache of a route's first stage knows a request: what is asked, and not who asks."""

from __future__ import annotations

import json

import pytest

from engine.core.messages import MEMO_KEY_SIZE
from engine.core.routing import FINAL, JOIN, Route, Split, Topology
from frontend import head as heads
from frontend.memo import Memos

WHOLE, FIELDS, NONE, SPLIT = range(4)
TABLE = Topology(
    ("whole", "fields", "none"),
    (
        Route("/whole", (0,)),
        Route("/fields", (1, 2)),
        Route("/none", (2, 1)),
        Route("/split", (0, 1, 2), (2, JOIN, FINAL), {0: Split((1,), 2)}),
    ),
    {0: (), 1: ("text", "lang")},
)
MEMOS = Memos(TABLE)


def key(route: int, body: bytes, *, query: bytes = b"", **fields: str) -> bytes:
    fields = {"host": "x", **fields}
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    head = heads.read("POST", "1.1", TABLE.routes[route].path, query, pairs)
    return MEMOS.of(route, head.query, head.fields, body)


def test_all_that_is_asked_counts_and_not_who_asks() -> None:
    plain = key(WHOLE, b"body")
    assert len(plain) == MEMO_KEY_SIZE
    assert key(WHOLE, b"body", authorization="Bearer x", x_request_id="7", user_agent="z") == plain
    others = [
        key(WHOLE, b"body "),
        key(WHOLE, b"body", query=b"a=1"),
        key(WHOLE, b"body", content_type="application/json"),
        key(WHOLE, b"ody", query=b"b"),
    ]
    assert len({plain, *others}) == 5


def test_with_fields_these_count_and_the_query() -> None:
    def asked(value: object, query: bytes = b"") -> bytes:
        return key(FIELDS, json.dumps(value).encode(), query=query)

    plain = asked({"text": "a", "lang": "en", "noise": 1})
    assert plain == asked({"lang": "en", "text": "a"})
    assert asked({"text": {"b": 1, "a": 2}, "lang": 0}) == asked({"lang": 0, "text": {"a": 2, "b": 1}})
    others = [
        asked({"text": "a", "lang": "de"}),
        asked({"text": "en", "lang": "a"}),
        asked({"text": "a", "lang": "en"}, b"x"),
    ]
    assert len({plain, *others}) == 4


NO_SUCH = [b'{"text": "a"}', b"[1]", b"7", b"no json", b"\xff", b"", b'{"text": NaN, "lang": 1}']


@pytest.mark.parametrize("body", NO_SUCH)
def test_what_has_no_such_fields_is_computed(body: bytes) -> None:
    assert key(FIELDS, body) == b""


def test_only_first_stages_that_have_a_cache_and_keep_their_results_whole() -> None:
    assert [MEMOS.has(route) for route in range(4)] == [True, True, False, False]
    assert key(NONE, b"{}") == b""
    assert key(SPLIT, b"{}") == b""
    assert not Memos(Topology((), ())).any

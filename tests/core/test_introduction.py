"""How peers introduce themselves and are refused: by name, in words that every version reads."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core import introduction, wire
from engine.core.introduction import (
    FRONTEND,
    NEWEST,
    OLDEST,
    UNREADABLE,
    Introduction,
    Refusal,
    Stranger,
    refuse_frontend,
    refuse_worker,
    route_numbers,
)
from engine.core.routing import FINAL, Fork, Route, Topology
from engine.errors import ProtocolError
from tests.core.twin import DEPLOYMENT, frontend_words, worker_words

TABLE = Topology(("a", "b", "c"), (Route("/ab", (0, 1)), Route("/c", (2,)), Route("/bc", (1, 2))))

# The words as they are on the wire, now and for every later version: what is here may be added to, never changed.
GOLDEN = {
    b'{"stageline":"introduction","kind":"worker","protocols":[2,2],"deployment":"d","instance":"i","stages":["a","b"],'
    b'"routes":{"/r":["a","b"]},"host":"h","pid":7,"name":"","stage":"a","slot":3,"shapes":{}}': Introduction(
        "worker", (2, 2), "d", "i", ["a", "b"], {"/r": ["a", "b"]}, "h", 7, "", "a", 3
    ),
    b'{"stageline":"stranger","untaken":[1,2],"stage":-1}': Stranger([1, 2]),
    b'{"stageline":"refusal","reason":"because"}': Refusal("because"),
}


@pytest.mark.parametrize(("frame", "words"), GOLDEN.items())
def test_the_words_are_frozen(frame: bytes, words: introduction.FrozenWords) -> None:
    assert wire.encode(words) == [frame]
    assert wire.decode([frame]) == (words, [])


def test_words_of_an_earlier_version_are_read_as_they_were_meant() -> None:
    for frame, words in GOLDEN.items():
        former = frame.replace(b',"shapes":{}', b"")
        assert wire.decode([former]) == (words, [])


def test_words_of_a_later_version_are_read_and_what_is_missing_takes_its_default() -> None:
    frame = (
        b'{"stageline":"introduction","kind":"frontend","protocols":[9,12],"deployment":"d","instance":"i","new":[{}]}'
    )
    words, _ = wire.decode([frame])
    assert words == Introduction("frontend", (9, 12), "d", "i")


@pytest.mark.parametrize(
    "frame",
    [
        b'{"stageline":',
        b'{"stageline":"introduction"}',
        b'{"stageline":"something else"}',
        b'{"stageline":"introduction","kind":"worker","protocols":[1],"deployment":"d","instance":"i"}',
        b'{"stageline":"introduction","kind":"worker","protocols":[1,1],"deployment":"d","instance":"i","pid":1099511627776}',
        b'{"stageline":"introduction","kind":"worker","protocols":[1,1],"deployment":"d","instance":"i","slot":4097}',
        b'{"stageline":"introduction","kind":"worker","protocols":[1,1],"deployment":"%b","instance":"i"}'
        % (b"x" * 300),
        b'{"stageline":"refusal","reason":"%b"}' % (b"x" * introduction.FRAME_MAX),
        b'{"stageline":"refusal","reason":' + b"[" * 100_000,
    ],
)
def test_what_is_none_of_them_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode([frame])


@given(st.binary())
def test_any_bytes_behind_the_opening_are_read_or_refused(rest: bytes) -> None:
    try:
        wire.decode([introduction.OPENING + rest])
    except ProtocolError:
        pass


def test_a_parcel_never_begins_like_them() -> None:
    (length,) = wire._length.unpack(introduction.OPENING[:4])
    assert length > wire.HEADER_MAX


# --- who may join ----------------------------------------------------------------------------------------------------


def test_a_worker_joins_its_stage_by_name_whatever_the_order_of_its_file() -> None:
    other = Topology(("c", "b", "a"), (Route("/bc", (1, 0)), Route("/ab", (2, 1)), Route("/c", (0,))))
    for stage in TABLE.stages:
        assert refuse_worker(worker_words(other, stage), TABLE, DEPLOYMENT, stage) is None


def test_a_worker_at_another_stages_socket_is_sent_to_its_own() -> None:
    assert refuse_worker(worker_words(TABLE, "c"), TABLE, DEPLOYMENT, "a") == Stranger(stage=2)


def test_routes_that_do_not_pass_its_stage_are_none_of_a_workers_business() -> None:
    other = Topology(("a", "b"), (Route("/ab", (0, 1)),))
    assert refuse_worker(worker_words(other, "a"), TABLE, DEPLOYMENT, "a") is None
    refusal = refuse_worker(worker_words(other, "b"), TABLE, DEPLOYMENT, "b")
    assert isinstance(refusal, Refusal)
    assert 'route "/bc" passes stage b' in refusal.reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"protocols": (NEWEST + 1, NEWEST + 5)}, "protocol"),
        ({"protocols": (0, OLDEST - 1)}, "protocol"),
        ({"deployment": "another"}, '"another"'),
        ({"stage": "nowhere"}, 'no stage "nowhere", only a -> b -> c'),
        ({"routes": {"/ab": ["a"], "/bc": ["b", "c"], "/c": ["c"]}}, "a -> b at the broker and by a in the worker's"),
        ({"routes": {}}, "by nothing in the worker's file"),
        ({"kind": FRONTEND}, "for workers"),
        ({"kind": "spaceship"}, "for workers"),
    ],
)
def test_a_worker_that_does_not_belong_is_refused_in_words(change: dict[str, object], word: str) -> None:
    who = msgspec.structs.replace(worker_words(TABLE, "a"), **change)
    refusal = refuse_worker(who, TABLE, DEPLOYMENT, "a")
    assert isinstance(refusal, Refusal)
    assert word in refusal.reason


def test_a_worker_that_takes_a_route_that_branches_for_a_chain_is_refused_in_words() -> None:
    """One of an older release, say, whose file has the same stages in the same order."""
    fork = Fork("lang", (("en", 1), ("de", 2)))
    branched = Topology(("a", "b", "c"), (Route("/abc", (0, 1, 2), (fork, FINAL, FINAL)), Route("/c", (2,))))
    chain = Topology(("a", "b", "c"), (Route("/abc", (0, 1, 2)), Route("/c", (2,))))
    for ours, theirs in ((branched, chain), (chain, branched)):
        refusal = refuse_worker(worker_words(theirs, "b"), ours, DEPLOYMENT, "b")
        assert isinstance(refusal, Refusal)
        assert "a chain" in refusal.reason
        assert "lang? en b, de c" in refusal.reason
    assert refuse_worker(worker_words(branched, "b"), branched, DEPLOYMENT, "b") is None
    other = Topology(("a", "b", "c"), (Route("/abc", (0, 1, 2), (Fork("x", fork.of), FINAL, FINAL)), Route("/c", (2,))))
    assert isinstance(refuse_worker(worker_words(other, "a"), branched, DEPLOYMENT, "a"), Refusal)
    # A frontend hands in requests and nothing more: it may know the stages alone.
    assert refuse_frontend(frontend_words(chain), branched, DEPLOYMENT) is None
    assert route_numbers(chain, branched) == [0, 1]


@pytest.mark.parametrize("protocols", [(0, OLDEST), (NEWEST, NEWEST + 3), (OLDEST, NEWEST)])
def test_one_protocol_in_common_is_enough(protocols: tuple[int, int]) -> None:
    who = msgspec.structs.replace(worker_words(TABLE, "a"), protocols=protocols)
    assert refuse_worker(who, TABLE, DEPLOYMENT, "a") is None


@pytest.mark.parametrize(
    ("change", "word"),
    [({"protocols": (99, 99)}, "protocol"), ({"deployment": "other"}, "other"), ({"kind": "worker"}, "for frontends")],
)
def test_a_frontend_that_does_not_belong_is_refused_in_words(change: dict[str, object], word: str) -> None:
    who = msgspec.structs.replace(frontend_words(TABLE), **change)
    refusal = refuse_frontend(who, TABLE, DEPLOYMENT)
    assert refusal is not None
    assert word in refusal.reason
    assert refuse_frontend(frontend_words(TABLE), TABLE, DEPLOYMENT) is None


def test_routes_are_matched_by_path_and_stages() -> None:
    other = Topology(
        ("b", "c", "a", "d"), (Route("/c", (1,)), Route("/ab", (2, 0)), Route("/bc", (1, 0)), Route("/d", (3,)))
    )
    assert route_numbers(other, TABLE) == [1, 0, None, None]  # /bc leads through c first, /d is not there
    assert route_numbers(TABLE, TABLE) == [0, 1, 2]


def test_long_names_are_told_in_short() -> None:
    who = msgspec.structs.replace(worker_words(TABLE, "a"), stage="x" * 256)
    refusal = refuse_worker(who, TABLE, DEPLOYMENT, "a")
    assert isinstance(refusal, Refusal)
    assert len(refusal.reason) < 300


def test_a_broker_says_what_it_speaks_to_whom_it_cannot_read() -> None:
    assert f"protocol {OLDEST} to {NEWEST}" in UNREADABLE.reason

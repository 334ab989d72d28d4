"""API keys: what a file of them says, whose a token is, and how many requests a rate lets in."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.apikeys import KEYS_MOST, ApiKey, BadApiKeys, Limits, admit, digest_of, is_name, parse, without

A, B = sha256(b"a"), sha256(b"b")


def test_a_file_is_read_line_by_line() -> None:
    text = (
        f"\ufeff# people write here\r\n\n  alice sha256:{A.hexdigest()} rate=0.5 concurrent=3\n"
        f"bob@x sha256:{B.hexdigest()}\n"
    )
    assert parse(text) == (ApiKey("alice", A.digest(), Limits(0.5, 0, 3)), ApiKey("bob@x", B.digest()))
    assert parse("") == ()


@given(
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", fullmatch=True),
    digest=st.binary(min_size=32, max_size=32),
    rate=st.sampled_from([0.0, 0.1, 1.5, 1000.0]),
    burst=st.sampled_from([0, 1, 500]),
    concurrent=st.sampled_from([0, 1, 500]),
)
def test_what_is_written_is_read(name: str, digest: bytes, rate: float, burst: int, concurrent: int) -> None:
    key = ApiKey(name, digest, Limits(rate, burst if rate else 0, concurrent))
    assert is_name(name)
    assert parse(key.line()) == (key,)
    assert without(f"# x\n{key.line()}\nother sha256:1\n", name) == "# x\nother sha256:1\n"
    assert without(key.line(), f"{name}2") == key.line()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("alice", "line 1: expected sha256:"),
        ("alice sl-secret", "line 1: expected sha256:"),
        ("sl-secret=x sha256:", "line 1: expected a name"),
        (f"alice sha256:{A.hexdigest().upper()}", "line 1: expected sha256:"),
        (f"alice sha256:{A.hexdigest()} rat=1", "expected rate=, burst=, concurrent= once each"),
        (f"alice sha256:{A.hexdigest()} rate=1 rate=2", "once each"),
        (f"alice sha256:{A.hexdigest()} rate=0", "rate: expected a number above 0"),
        (f"alice sha256:{A.hexdigest()} rate=nan", "rate: expected a number above 0"),
        (f"alice sha256:{A.hexdigest()} rate=inf", "rate: expected a number of requests"),
        (f"alice sha256:{A.hexdigest()} rate=-1", "rate: expected a number above 0"),
        (f"alice sha256:{A.hexdigest()} concurrent=1.5", "concurrent: expected a number above 0"),
        (f"alice sha256:{A.hexdigest()} burst=5", "burst: expected a rate beside it"),
        (f"alice sha256:{A.hexdigest()}\nalice sha256:{B.hexdigest()}", "line 2: there is a key alice already"),
        (f"alice sha256:{A.hexdigest()}\nbob sha256:{A.hexdigest()}", "line 2 is the key of line 1"),
    ],
)
def test_a_line_that_makes_no_sense_is_told_by_its_number_and_not_repeated(line: str, said: str) -> None:
    with pytest.raises(BadApiKeys, match=said) as caught:
        parse(line)
    assert "secret" not in str(caught.value)


def test_there_are_not_too_many() -> None:
    lines = [f"k{n} sha256:{sha256(b'%d' % n).hexdigest()}\n" for n in range(KEYS_MOST + 1)]
    assert len(parse("".join(lines[:-1]))) == KEYS_MOST
    with pytest.raises(BadApiKeys, match="1001 keys"):
        parse("".join(lines))


def test_a_token_is_known_however_it_is_sent() -> None:
    plain = sha256(b"sl-x").digest()
    assert digest_of(b"sl-x") == digest_of(b"Bearer sl-x") == digest_of(b"bearer  sl-x") == plain
    assert digest_of(b"Basic sl-x") != plain


def test_a_burst_comes_in_at_once_and_then_one_for_each_interval() -> None:
    limits, due, now = Limits(rate=10, burst=3), 0.0, 1e7
    for _ in range(3):
        due, wait = admit(due, now, limits)
        assert wait == 0
    due, wait = admit(due, now, limits)
    assert wait == pytest.approx(0.1, abs=1e-6)
    again, wait = admit(due, now + 0.05, limits)
    assert (again, wait) == (due, pytest.approx(0.05, abs=1e-6))  # who is refused pays nothing
    due, wait = admit(due, now + 0.1, limits)
    assert wait == 0


def test_the_burst_of_a_rate_is_a_second_of_it_and_one_at_least() -> None:
    assert [Limits(rate=rate).most_at_once for rate in (0.1, 1, 2.5, 10)] == [1, 1, 3, 10]
    assert admit(5.0, 1.0, Limits(concurrent=2)) == (5.0, 0.0)


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_no_more_than_its_rate_and_burst_comes_in_whenever_it_asks(rate: float, burst: int, gaps: list[float]) -> None:
    limits, due, now, admitted = Limits(rate, burst), 0.0, 1000.0, 0
    began = now
    for gap in gaps:
        now += gap
        due, wait = admit(due, now, limits)
        admitted += wait == 0
        assert wait <= 1 / rate + 1e-6
        assert admitted <= burst + (now - began) * rate * (1 + 1e-6) + 1e-3
    assert admitted >= 1

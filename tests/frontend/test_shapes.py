"""A shape says of a head what reading it word for word says, or nothing."""

from __future__ import annotations

import pytest
from fakes import deployment
from hypothesis import given
from hypothesis import strategies as st
from leanbench import Bench, head, plain, run, settle

from engine.config.schema import FrontendSection
from frontend.gate import Gate
from frontend.plain import Plain, Reader
from frontend.shapes import AT_ONCE, EACH, SEEN_MAX, SHAPES_MAX, Shape

SECTION = FrontendSection(compression=True, max_request_size=1000)
TOPOLOGY = deployment(SECTION).topology


def new() -> Reader:
    return Reader(TOPOLOGY, Gate(SECTION).terms, ["/", "/readyz"], compressed=True)


# What each field may say, so that heads of the same fields differ in what they say: the first is the usual.
VALUES = {
    "host": ["x", "y", ""],
    "content-length": ["3", "17", "007", "+3", "1001", ""],
    "X-Request-Id": ["mine", "n o", "other", ""],
    "traceparent": ["1", "2"],
    "authorization": ["a", "b", ""],
    "x-api-key": ["c", "d", ""],
    "x-priority": ["low", "high", "x"],
    "x-slo": ["1", "0.2", "x"],
    "x-slo-ms": ["100", "20"],
    "content-type": ["a/b", "c/d"],
    "x-a": ["b", "\t b \t", "", "\x0b", "\x01", "\xe9", "b\r\nc: d"],
    "X_A": ["b", "c"],
    "x-\xe9": ["a"],
    "cookie": ["a=1", "b=2"],
    "accept": ["text/plain", "application/json"],
    "accept-encoding": ["gzip", "zstd", "identity", "gzip, identity;q=0"],
    "connection": ["keep-alive", "close", "close, x", "Keep-Alive"],
    "x-request-timeout": ["1", "2", "x"],
    "x-request-timeout-ms": ["100", "20"],
    "content-encoding": ["identity", "gzip", "br"],
    "transfer-encoding": ["chunked", "gzip"],
    "te": ["trailers"],
    "expect": ["100-continue", "more"],
    "idempotency-key": ["k", "l", "n o"],
}
FIRST = ["POST /inference HTTP/1.1", "POST /second?a=b HTTP/1.1", "POST /inference HTTP/1.0", "GET / HTTP/1.1"]


@st.composite
def families(draw: st.DrawFn) -> list[bytes]:
    """Heads with the same fields."""
    line = draw(st.sampled_from(FIRST))
    names = [
        *draw(st.permutations(["host", "content-length"])),
        *draw(st.lists(st.sampled_from(list(VALUES)), max_size=3)),
    ]
    usual = [f"{name}: {VALUES[name][0]}" for name in names]
    heads = [head(*usual, line=line)] * 2  # so that there is a shape
    for _ in range(4):
        at = draw(st.integers(0, len(names) - 1))
        said = draw(st.sampled_from(VALUES[names[at]]))
        heads.append(head(*usual[:at], f"{names[at]}:{said}", *usual[at + 1 :], line=line))
    return heads


@given(families(), families())
def test_whatever_came_before_a_head_means_what_it_says(some: list[bytes], others: list[bytes]) -> None:
    reader = new()
    shape: Shape | None = None
    for data in [*some, *others, *some]:
        found, shape = reader.like(data, shape)
        assert found == new().read(data)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("line", FIRST)
def test_every_value_of_a_field_means_what_it_means_by_itself(name: str, line: str) -> None:
    base = [f"{other}: {VALUES[other][0]}" for other in ("host", "content-length") if other != name]
    reader = new()
    shape: Shape | None = None
    for said in [VALUES[name][0]] * 2 + VALUES[name]:
        data = head(*base, f"{name}: {said}", line=line)
        found, shape = reader.like(data, shape)
        assert found == new().read(data), said


def test_a_page_with_a_body_is_none_whatever_came_before() -> None:
    reader = new()
    shape: Shape | None = None
    for length, is_plain in [(0, True), (0, True), (0, True), (3, False)]:
        found, shape = reader.like(head("host: x", f"content-length: {length}", line="GET / HTTP/1.1"), shape)
        assert (found is not None) is is_plain


VALID = ("Host: x", "X-Request-Id: one", "Traceparent: 00-1", "Accept: a/b", "X-A:  b ", "Content-Length: 3")


@given(
    st.integers(0, 10_000),
    st.sampled_from([b"", b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"9", b"\xff", b"a", b"X-A: c\r\n", b"_"]),
    st.integers(0, 2),
)
def test_a_head_that_is_spoilt_anywhere_is_not_taken_for_one_of_a_shape(at: int, piece: bytes, cut: int) -> None:
    reader = new()
    data = head(*VALID)
    shape: Shape | None = None
    for _ in range(3):
        _, shape = reader.like(data, shape)
    assert shape is not None
    at %= len(data)
    spoilt = data[:at] + piece + data[at + cut :]
    if spoilt.find(b"\r\n\r\n") == len(spoilt) - 4:  # what a connection cuts out
        assert reader.like(spoilt, shape)[0] == new().read(spoilt)


def counted(reader: Reader) -> list[bytes]:
    """The heads that are read word for word from now on."""
    seen: list[bytes] = []
    read = reader.read

    def counting(data: bytes) -> Plain | None:
        seen.append(data)
        return read(data)

    reader.read = counting  # type: ignore[method-assign]
    return seen


def test_heads_that_differ_in_ids_and_lengths_are_read_twice_and_then_matched() -> None:
    async def scenario() -> None:
        bench = Bench()
        seen = counted(bench.shared.reader)
        for number in range(20):
            bench.feed(plain(b"x" * (number + 1), f"x-request-id: id-{number}", f"traceparent: {number}"))
            await settle()
        assert [item.request_id for item in bench.client.submitted] == [f"id-{number}" for number in range(20)]
        assert [len(item.body) for item in bench.client.submitted] == list(range(1, 21))
        assert bench.client.submitted[-1].headers[-1] == (b"traceparent", b"19")
        assert len(seen) == 2

    run(scenario())


def test_a_new_connection_begins_with_the_shape_of_the_last() -> None:
    reader = new()
    for _ in range(2):
        reader.read(head(*VALID))
    seen = counted(reader)
    found, shape = reader.like(head(*VALID).replace(b"one", b"two"), None)
    assert found is not None
    assert shape is not None
    assert not seen


def test_shapes_are_few_and_made_rarely() -> None:
    """Whoever sends heads decides how many there are."""
    reader = new()
    shapes = set()
    for number in range(20 * EACH):
        data = head("host: x", f"x-{number}: a", "content-length: 1")
        for _ in range(2):
            _, shape = reader.like(data, None)
        shapes.add(shape)
    shapes.discard(None)
    assert 0 < len(shapes) <= AT_ONCE + 2 * 20
    known = reader._shapes
    assert len(known._made) <= SHAPES_MAX
    assert len(known._seen) <= SEEN_MAX

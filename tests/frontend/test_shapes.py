"""A shape says of a head what reading it word for word says, or nothing."""

from __future__ import annotations

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


lines = st.sampled_from(
    ["host: x", "Host: y", "accept: application/json", "accept: text/plain", "Accept-Encoding: gzip", "x-a: b",
     "X_A: b", "x_a: c", "x-a:", "x-a: \t b \t", "x-a: \x0b", "content-type: a/b", "connection: keep-alive",
     "connection: close", "x-request-id: mine", "x-request-id: n o", "X-Request-Id: other", "x-request-timeout: 1",
     "x-request-timeout: x", "content-encoding: identity", "content-encoding: gzip", "content-encoding: br",
     "te: trailers", "expect: 100-continue", "traceparent: 1", "traceparent: 2", "x-\xe9: a", "x-a: \xe9", "x a: b",
     ": b", "a", "x-a: \x01", "cookie: a=1", "authorization: a", "authorization: b", "transfer-encoding: chunked",
     "content-length: 3", "content-length: 17", "content-length: +3", "content-length: 1001", "content-length: 007",
     "idempotency-key: k", "idempotency-key: l"]
)  # fmt: skip
requests = st.builds(
    lambda line, fields: head(*fields, line=line),
    st.sampled_from(
        ["POST /inference HTTP/1.1", "POST /second?a=b HTTP/1.1", "POST /inference HTTP/1.0", "GET / HTTP/1.1"]
    ),
    st.permutations(["host: x", "content-length: 3"]).flatmap(
        lambda base: st.lists(lines, max_size=4).map(lambda more: [*base, *more])
    ),
)


@given(st.lists(requests, min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=6, max_size=12))
def test_whatever_came_before_a_head_means_what_it_says(heads: list[bytes], order: list[int]) -> None:
    reader = new()
    shape: Shape | None = None
    for which in order:
        data = heads[which % len(heads)]
        found, shape = reader.like(data, shape)
        assert found == new().read(data)


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

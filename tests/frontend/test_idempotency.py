"""What an Idempotency-Key says of a request: the same for all its tries, and for nothing else."""

from __future__ import annotations

import pytest
from fakes import FakeClient, Service

from engine.core.call import Answer
from engine.core.messages import KEY_SIZE, Flow, Speaker
from frontend import head as heads
from frontend.idempotency import INLINE_MAX, is_sane, key_of
from frontend.streams import Stream

HALF = KEY_SIZE // 2
FIELDS = {"host": "x", "idempotency-key": "k", "content-type": "application/json", "authorization": "me"}


def key(
    body: bytes = b"body", *, path: str = "/inference", query: bytes = b"a=1", **fields: str
) -> tuple[bytes, bytes]:
    """Whose, and what."""
    pairs = {**FIELDS, **{name.replace("_", "-"): value for name, value in fields.items()}}
    encoded = [(name.encode(), value.encode()) for name, value in pairs.items() if value]
    found = key_of(heads.read("POST", "1.1", path, query, encoded), body)
    assert len(found) == KEY_SIZE
    return found[:HALF], found[HALF:]


@pytest.mark.parametrize(
    "fields",
    [
        {"traceparent": "00-1"},
        {"x_stainless_retry_count": "1"},
        {"x_request_id": "another"},
        {"x_request_timeout": "2"},
        {"user_agent": "another"},
        {"accept_encoding": "gzip"},
    ],
)
def test_what_differs_between_tries_changes_nothing(fields: dict[str, str]) -> None:
    assert key(**fields) == key()


@pytest.mark.parametrize(
    "fields",
    [{"idempotency_key": "K"}, {"authorization": "you"}, {"authorization": ""}, {"cookie": "a=b"}, {"x_api_key": "1"}],
)
def test_whose_it_is(fields: dict[str, str]) -> None:
    (whose, asked), (mine, this) = key(**fields), key()
    assert whose != mine
    assert asked == this


def test_a_route_has_keys_of_its_own() -> None:
    assert key(path="/second")[0] != key()[0]


def test_what_is_asked() -> None:
    mine, this = key()
    for other in (key(b"bodY"), key(b""), key(query=b""), key(content_type="text/plain"), key(b"1body", query=b"a=")):
        assert other[0] == mine
        assert other[1] != this


@pytest.mark.parametrize("value", [b"k", b'"8e03978e-40d5-43dd-bc93-6894a57f9324"', b"a b", b"x" * 255])
def test_keys(value: bytes) -> None:
    assert is_sane(value)


@pytest.mark.parametrize("value", [b"", b"x" * 256, b"a\tb", b"\xe9", b"a\x00"])
def test_no_keys(value: bytes) -> None:
    assert not is_sane(value)
    answer = Service(FakeClient()).call(
        "POST", "/inference", b"{}", headers=[("idempotency-key", value.decode("latin-1"))]
    )
    assert answer.status == 400


@pytest.mark.parametrize("size", [3, INLINE_MAX + 1])
def test_the_application_hands_it_on(size: int) -> None:
    client = FakeClient(reply=lambda item: None)
    one = Service(client)
    one.client.reply = lambda item: Answer(200, item.body)
    keys = []
    submitted = client.call

    def call(request, instant):  # type: ignore[no-untyped-def]
        keys.append(request.key)
        return submitted(request, instant)

    client.call = call  # type: ignore[method-assign]
    for headers in ([("idempotency-key", "k")], [("idempotency-key", "k")], []):
        assert one.call("POST", "/inference", bytes(size), headers=headers).status == 200
    assert len(keys[0]) == KEY_SIZE
    assert keys == [keys[0], keys[0], b""]


def test_the_same_is_handed_on_by_the_short_way() -> None:
    """What a plain head says is what the application reads in it."""
    from test_lean import READER, plain

    raw = plain(b"body", "Idempotency-Key:  k ", "authorization: me")
    read = READER.read(raw[: -len(b"body")])
    assert read is not None
    fields = [(b"host", b"x"), (b"content-length", b"4"), (b"Idempotency-Key", b" k "), (b"authorization", b"me")]
    assert key_of(read.head, b"body") == key_of(heads.read("POST", "1.1", "/inference", b"", fields), b"body")


@pytest.mark.parametrize("status", [409, 422])
def test_a_refusal_for_the_sake_of_a_key_is_no_stream(status: int) -> None:
    stream = Stream()
    stream.answered(Answer(status, b"conflict", speaker=int(Speaker.DOOR)), Flow.EVENTS)
    assert stream.flow is Flow.UNKNOWN
    stream = Stream()
    stream.answered(Answer(status, b"of the service's own", speaker=int(Speaker.WORKER)), Flow.EVENTS)
    assert stream.flow is Flow.EVENTS

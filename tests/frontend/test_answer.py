"""What a request is answered with, once for every way out; and the quick form of it, which must be the same."""

from __future__ import annotations

import json

import pytest
from fakes import deployment
from hypothesis import example, given
from hypothesis import strategies as st

from engine.config.schema import OPENAI, PLAIN
from engine.core.call import Answer
from engine.core.messages import Refused, Speaker
from engine.core.wire import pack_step
from frontend import errors, media
from frontend.answer import Answering, Reply, common
from frontend.head import Head
from frontend.plain import Plain
from frontend.writer import Writer

TOPOLOGY = deployment().topology
HEAD = Head("/inference", b"", [])
JSON = Head("/inference", b"", [], accept=b"application/json")
SECOND = Head("/second", b"", [], accept=b"text/plain")
DOOR, STAGE = int(Speaker.DOOR), int(Speaker.STAGE)
ONE = Answering(TOPOLOGY)


def test_a_result() -> None:
    reply = ONE.result(1, HEAD, Answer(200, b"x", "text/plain", pack_step(1000, 0, 2000)), "id", 0.01)
    assert (reply.status, reply.mime, reply.body, reply.reason) == (200, "text/plain", b"x", "")
    (timing,) = [value for name, value in reply.headers if name == "server-timing"]
    assert timing.startswith("second-stage-queue;dur=1.00")


@pytest.mark.parametrize(
    ("status", "said"), [(300, 300), (307, 307), (399, 399), (400, 400), (599, 599), (204, 500), (600, 500)]
)
def test_statuses_of_an_error_class(status: int, said: int) -> None:
    reply = ONE.result(0, HEAD, Answer(status, b"words", headers={"Location": "/x"}), "id", 0.0)
    assert (reply.status, reply.body) == (said, b"words")
    assert ("location", "/x") in reply.headers


def test_retry_after_is_said_once_and_by_who_refuses() -> None:
    def said(speaker: int, headers: dict[str, str]) -> list[str]:
        reply = ONE.result(0, HEAD, Answer(429, b"no", headers=headers, speaker=speaker), "id", 0.0)
        return [value for name, value in reply.headers if name == "retry-after"]

    assert said(DOOR, {}) == said(STAGE, {}) == ["1"]
    assert said(0, {}) == []
    assert said(0, {"Retry-After": "30", "retry-after": "5"}) == ["5"]


@pytest.mark.parametrize(
    ("retry_ms", "seconds", "milliseconds"), [(0, "1", "1000"), (40, "1", "40"), (2001, "3", "2001")]
)
def test_when_to_come_again_is_said_in_seconds_and_in_milliseconds(
    retry_ms: int, seconds: str, milliseconds: str
) -> None:
    reply = ONE.result(0, HEAD, Answer(429, b"no", speaker=int(Speaker.FORECAST), retry_ms=retry_ms), "id", 0.0)
    assert ("retry-after", seconds) in reply.headers
    assert ("retry-after-ms", milliseconds) in reply.headers


def test_an_error_of_the_services_own_brings_its_body() -> None:
    own = Answer(409, b'{"mine": 1}', headers={"Content-Type": "application/x-mine"})
    reply = ONE.result(0, JSON, own, "id", 0.0)
    assert (reply.mime, reply.body) == ("application/x-mine", b'{"mine": 1}')
    odd = ONE.result(0, JSON, Answer(409, b"x", headers={"content-type": "a\r\nb"}), "id", 0.0)
    assert odd.mime == "application/octet-stream"


def test_words_for_who_asks_for_json() -> None:
    reply = ONE.result(0, JSON, Answer(422, b"request validation error: x"), "id", 0.0)
    assert reply.mime == media.PROBLEM
    assert json.loads(reply.body)["detail"] == "request validation error: x"


def test_on_a_route_that_speaks_openais_api_every_error_has_its_form_whatever_is_accepted() -> None:
    one = Answering(TOPOLOGY, protocols={"/inference": PLAIN, "/second": OPENAI})
    failed = one.result(1, SECOND, Answer(422, b"request validation error: x", headers={"X-A": "b"}), "id", 0.0)
    assert (failed.status, failed.mime) == (422, "application/json")
    assert json.loads(failed.body)["error"] == {
        "message": "request validation error: x", "type": "invalid_request_error", "param": None, "code": None,
    }  # fmt: skip
    assert ("x-a", "b") in failed.headers
    refused = Answer(429, b"too many", speaker=int(Speaker.FORECAST), refused=Refused("predicted", 5, 2), retry_ms=40)
    late = one.result(1, SECOND, refused, "id", 0.0)
    assert json.loads(late.body)["error"]["code"] == "predicted"
    assert ("retry-after-ms", "40") in late.headers
    full = one.problem(errors.CAPACITY, SECOND, "id")
    assert json.loads(full.body)["error"]["code"] == "capacity"
    assert ("retry-after-ms", "1000") in full.headers
    unread = one.problem(errors.TWICE, None, "id", "/second")
    assert json.loads(unread.body)["error"]["code"] == "field_twice"
    assert one.problem(errors.TWICE, None, "id").mime == media.TEXT
    assert one.result(0, HEAD, Answer(422, b"x"), "id", 0.0).mime == media.TEXT
    own = one.result(1, SECOND, Answer(418, b"{}", headers={"content-type": "application/x"}), "id", 0.0)
    assert (own.mime, own.body) == ("application/x", b"{}")


def test_a_problem() -> None:
    reply = ONE.problem(errors.ENCODING, HEAD, "id")
    assert (reply.status, reply.reason, reply.body) == (415, "encoding", b"unsupported content-encoding")
    assert ("accept-encoding", "identity") in reply.headers
    assert ("retry-after", "1") in ONE.problem(errors.DRAINING, None, "id").headers


def test_caches_are_told_of_compression() -> None:
    varied = Answering(TOPOLOGY, compressed=True)
    for reply in (varied.result(0, HEAD, Answer(200, b""), "id", 0.0), varied.problem(errors.CAPACITY, HEAD, "id")):
        assert ("vary", "accept-encoding") in reply.headers


@given(
    route=st.integers(0, 1),
    body=st.binary(max_size=50),
    mime=st.sampled_from(["application/json", "text/plain; x=100%", "a/b\r\n", ""]),
    request_id=st.text(alphabet="abc-1", min_size=1, max_size=20),
    took_ms=st.integers(0, 10**6),
    steps=st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 3), min_size=2, max_size=2),
    compressed=st.booleans(),
)
@example(route=0, body=b"", mime="", request_id="1", took_ms=0, steps=[(0, 0, 0), (0, 0, 2791325)], compressed=False)
def test_the_quick_form_of_a_result_is_the_same(
    route: int,
    body: bytes,
    mime: str,
    request_id: str,
    took_ms: int,
    steps: list[tuple[int, int, int]],
    compressed: bool,
) -> None:
    answering = Answering(TOPOLOGY, compressed=compressed)
    writer = Writer(TOPOLOGY, answering)
    writer.date = b"Thu, 01 Jan 1970 00:00:00 GMT"
    trail = b"".join(pack_step(*step) for step in steps[: len(TOPOLOGY.routes[route].stages)])
    answer = Answer(200, body, mime, trail)
    plain = Plain(route, HEAD, 0, 3.0, b"")
    status, size, begin, rest = writer.answer(plain, answer, request_id, took_ms / 1000)
    slow = writer.reply(answering.result(route, HEAD, answer, request_id, took_ms / 1000), request_id)
    assert begin + rest == slow
    assert (status, size) == (200, len(body))


def test_a_refusal_says_why_whoever_refuses() -> None:
    def timing(reply: Reply) -> list[str]:
        return [value for name, value in reply.headers if name == "server-timing"]

    refused = Refused("predicted", 512, 200)
    answer = Answer(429, b"no", speaker=int(Speaker.FORECAST), refused=refused)
    assert timing(ONE.result(0, HEAD, answer, "id", 0.001)) == [
        'refused;desc="predicted";dur=512, allowed;dur=200, total;dur=1.00'
    ]
    assert timing(ONE.problem(errors.CAPACITY, HEAD, "id")) == ['refused;desc="capacity"']
    assert timing(ONE.problem(errors.TOO_LARGE, HEAD, "id")) == []


def test_every_answer_names_its_server_and_its_request() -> None:
    assert common("id") == [("server", "stageline"), ("x-request-id", "id")]

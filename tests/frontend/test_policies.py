"""The parts that only decide: a table in, a table out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes import READY

from engine.config.schema import OPENAI, PLAIN
from engine.core.messages import Refused, StageState
from engine.core.reasons import CODES
from engine.core.wire import pack_step
from frontend import deadline, errors, health, media, requestid, timing
from frontend.protocols import Protocols, openai_body, openai_event

# --- media -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "problem"),
    [
        ("", False),
        ("*/*", False),
        ("application/*", False),
        ("application/json", True),
        ("application/problem+json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/json, */*;q=0.5", True),
        ("text/plain", False),
        ("text/plain, application/json;q=0.9", False),
        ("text/plain;q=0.1, application/json;q=0.9", True),
        ("application/json;q=0", False),
        ("application/json;q=nan", False),
        ("application/json;q=2", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        (";;;,,q=,", False),
        ("application/json," * 200, False),
    ],
)
def test_json_is_for_those_who_name_it(accept: str, problem: bool) -> None:
    assert media.wants_problem(accept) is problem


def test_headers_of_a_worker_cannot_frame_or_split_the_answer() -> None:
    offered = {
        "X-Model": " small ",
        "Retry-After": "3",
        "Content-Length": "0",
        "transfer-encoding": "chunked",
        "Connection": "close",
        "X-Request-Id": "mine",
        "bad name": "x",
        "x-split": "a\r\nset-cookie: b",
        "x-null": "a\0b",
        "x-wide": "snow \u2603",
        "": "empty",
    }
    assert media.passable(offered) == [("x-model", "small"), ("retry-after", "3")]


def test_a_header_in_two_spellings_is_passed_on_once_but_for_cookies() -> None:
    offered = {"Retry-After": "3", "retry-after": "5", "Set-Cookie": "a=1", "set-cookie": "b=2"}
    assert media.passable(offered) == [("retry-after", "5"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]


@pytest.mark.parametrize(
    ("mime", "written"),
    [
        ("application/json", "application/json"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("text/plain\r\nx: y", "application/octet-stream"),
        ("", "application/octet-stream"),
        ("json", "application/octet-stream"),
        ("a/" + "b" * 300, "application/octet-stream"),
    ],
)
def test_a_mime_type_is_passed_on_only_when_it_is_one(mime: str, written: str) -> None:
    assert media.content_type(mime) == written


# --- whose API a path speaks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "spoken"),
    [
        ("/v1/embeddings", OPENAI),
        ("/v1/other", PLAIN),
        ("/v1/chat/completions", OPENAI),  # beside one that speaks it
        ("/v1", OPENAI),
        ("/plain/x", PLAIN),
        ("/nothing", PLAIN),
        ("/metrics", PLAIN),
        ("/", PLAIN),
        ("", PLAIN),
        ("no path", PLAIN),
    ],
)
def test_whose_api_a_path_speaks(path: str, spoken: str) -> None:
    protocols = Protocols({"/v1/embeddings": OPENAI, "/v1/other": PLAIN, "/plain": PLAIN})
    assert protocols.of(path) == spoken


@pytest.mark.parametrize(
    ("path", "spoken"), [("/nothing", OPENAI), ("", OPENAI), ("/", PLAIN), ("/readyz", PLAIN), ("/openapi/x", PLAIN)]
)
def test_where_all_routes_speak_one_api_so_does_what_is_none(path: str, spoken: str) -> None:
    assert Protocols({"/v1/embeddings": OPENAI, "/chat": OPENAI}).of(path) == spoken
    assert Protocols().of(path) == PLAIN


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (408, "timeout_error"),
        (429, "rate_limit_error"),
        (502, "server_error"),
    ],
)
def test_an_error_as_openais_api_has_it(status: int, kind: str) -> None:
    assert json.loads(openai_body(status, "no", "why")) == {
        "error": {"message": "no", "type": kind, "param": None, "code": "why"}
    }
    assert json.loads(openai_body(status, "no"))["error"]["code"] is None


def test_a_stream_that_fails_ends_in_an_event_that_openais_clients_understand() -> None:
    name, data = openai_event(500, "it\nbroke").decode().strip().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == "it\nbroke"


# --- request id ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offered", [b"a", b"A-1.b_c:d/e+f=", b"x" * 128])
def test_a_sane_request_id_is_kept(offered: bytes) -> None:
    assert requestid.sane(offered) == offered.decode()


@pytest.mark.parametrize("offered", [b"", b"x" * 129, b"a b", b"a\n", b"<script>", b"\xff", b'"'])
def test_any_other_is_none(offered: bytes) -> None:
    assert requestid.sane(offered) == ""


def test_new_ids_are_unique_also_over_processes() -> None:
    one, other = requestid.Ids(), requestid.Ids()
    ids = [one() for _ in range(100)] + [other() for _ in range(100)]
    assert len(set(ids)) == 200
    assert {len(each) for each in ids} == {32}
    assert all(requestid.sane(each.encode()) == each for each in ids)


# --- server-timing ---------------------------------------------------------------------------------------------------


def test_server_timing_names_every_part_of_every_stage_in_milliseconds() -> None:
    trail = pack_step(120 + CODES["full"], 30, 5000) + pack_step(0, 1, 2)
    assert timing.header(trail, timing.labels(["encode", "my stage"]), 0.0123) == (
        'encode-queue;dur=0.12;desc="full", encode-batch;dur=0.03, encode;dur=5.00, '
        "my-stage-queue;dur=0.00, my-stage-batch;dur=0.00, my-stage;dur=0.00, total;dur=12.30"
    )


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (Refused("capacity"), 'refused;desc="capacity"'),
        (Refused("predicted", 512, 200), 'refused;desc="predicted";dur=512, allowed;dur=200'),
        (Refused("hopeless", 12, 0), 'refused;desc="hopeless";dur=12, allowed;dur=0'),
        (Refused('a "new"\r\none'), 'refused;desc="a--new---one"'),
    ],
)
def test_server_timing_of_a_refusal_begins_with_its_reason(refused: Refused, said: str) -> None:
    assert timing.refused(refused) == said


@pytest.mark.parametrize("trail", [b"", b"torn"])
def test_server_timing_of_a_request_that_no_stage_saw_is_its_total(trail: bytes) -> None:
    assert timing.header(trail, ("a",), 0.001) == "total;dur=1.00"


# --- deadline --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "milliseconds", "allowed"),
    [
        (b"", b"", 3.0),
        (b"1.5", b"", 1.5),
        (b" 2 ", b"", 2.0),
        (b"", b"250", 0.25),
        (b"1", b"250", 0.25),
        (b"60", b"", 3.0),
        (b"999999999", b"", 3.0),
        (b"0", b"", None),
        (b"0.0", b"", None),
        (b"-1", b"", None),
        (b"nan", b"", None),
        (b"inf", b"", None),
        (b"1e3", b"", None),
        (b"1_0", b"", None),
        (b"soon", b"", None),
        (b"", b"x", None),
        (b"1", b"x", None),
    ],
)
def test_a_client_may_ask_for_less_time_and_never_for_more(
    seconds: bytes, milliseconds: bytes, allowed: float | None
) -> None:
    assert deadline.allowed(seconds, milliseconds, 3.0) == allowed


# --- health ----------------------------------------------------------------------------------------------------------

STAGES = ["first", "second stage"]


def test_ready_when_every_stage_has_a_warm_worker() -> None:
    status, document = health.readiness(READY, STAGES, draining=False)
    assert status == 200
    assert document == {
        "status": "ready",
        "connected": True,
        "draining": False,
        "stages": [
            {"name": "first", "ready": 1, "wanted": 1, "starting": 0},
            {"name": "second stage", "ready": 2, "wanted": 2, "starting": 0},
        ],
    }


def test_a_stage_that_may_be_without_workers_is_ready_without() -> None:
    asleep = StageState("second stage", 2, 0, 0, 0, 0, least=0)
    status, document = health.readiness(replace(READY, stages=(READY.stages[0], asleep)), STAGES, draining=False)
    assert (status, document["status"]) == (200, "ready")


@pytest.mark.parametrize(
    ("view", "draining", "said"),
    [
        (replace(READY, stages=READY.stages[:1]), False, "not ready"),
        (replace(READY, stages=(READY.stages[0], StageState("second stage", 2, 0, 2, 0, 0))), False, "not ready"),
        (replace(READY, connected=False), False, "not ready"),
        (replace(READY, draining=True), False, "draining"),
        (READY, True, "draining"),
    ],
)
def test_not_ready(view: object, draining: bool, said: str) -> None:
    status, document = health.readiness(view, STAGES, draining=draining)  # type: ignore[arg-type]
    assert status == 503
    assert document["status"] == said
    assert [stage["name"] for stage in document["stages"]] == STAGES


# --- table of errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "bad_request"), (404, "not_found"), (408, "slow_headers"), (431, "headers_too_large"), (501, "coding")],
)
def test_a_foreign_error_finds_its_row(status: int, reason: str) -> None:
    assert errors.by_status(status).reason == reason


@pytest.mark.parametrize(("status", "detail"), [(402, "bad request"), (418, "bad request"), (507, "internal error")])
def test_a_foreign_error_without_a_row_keeps_its_status(status: int, detail: str) -> None:
    assert (errors.by_status(status).status, errors.by_status(status).detail) == (status, detail)

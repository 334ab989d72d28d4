"""ONE table: everything a client can be answered instead of a result, with status, words and headers. Pure.

Our own refusals are raised as :class:`Refusal`; Falcon's errors (no such path, wrong method) and gunicorn's (malformed
HTTP) are looked up by status, so that they read like ours; whatever else escapes is INTERNAL, with its traceback in the
log and nothing of it in the answer. What workers and broker answer travels with its own words. How either is written
down is said in :mod:`frontend.answer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from engine.core import wording
from engine.errors import Unavailable
from frontend import compression


@dataclass(frozen=True)
class Problem:
    """One row. ``reason`` is the label of the rejections metric: a row's name, never a client's text."""

    reason: str
    status: int
    detail: str
    retry_after_s: float = 0  # 0: no Retry-After
    headers: Mapping[str, str] = field(default_factory=dict)


BAD_REQUEST: Final = Problem("bad_request", 400, "bad request")
TRUNCATED: Final = Problem("truncated", 400, "bad request: the body ended before its declared length")
BAD_LENGTH: Final = Problem("bad_length", 400, "bad request: unreadable content-length")
TWICE: Final = Problem("field_twice", 400, "bad request: a header that may stand once stands there twice")
NO_HOST: Final = Problem("no_host", 400, "bad request: no host header")
WEBSOCKET: Final = Problem("websocket", 400, "bad request: this service does not speak WebSocket")
BAD_TIMEOUT: Final = Problem(
    "bad_timeout", 400, "bad request: x-request-timeout takes seconds and x-request-timeout-ms milliseconds, above 0"
)
BAD_SLO: Final = Problem("bad_slo", 400, "bad request: x-slo takes seconds and x-slo-ms milliseconds, above 0")
BAD_PRIORITY: Final = Problem("bad_priority", 400, "bad request: x-priority takes high, normal or low")
BAD_KEY: Final = Problem("bad_key", 400, "bad request: idempotency-key takes 1 to 255 printable characters")
NO_API_KEY: Final = Problem(
    "missing_api_key",
    401,
    "unauthorized: an API key is needed, as `authorization: Bearer KEY`",
    headers={"www-authenticate": "Bearer"},
)
WRONG_API_KEY: Final = Problem(
    "invalid_api_key",
    401,
    "unauthorized: this API key is not known",
    headers={"www-authenticate": 'Bearer error="invalid_token"'},
)
NOT_FOUND: Final = Problem("not_found", 404, "not found")
NO_JOB: Final = Problem("job_not_found", 404, "not found: there is no such job, or not any more")
NO_RESULT: Final = Problem("job_cancelled", 410, "gone: the job was cancelled")
KEY_REUSED: Final = Problem("key_reused", 422, wording.KEY_REUSED)
BAD_WEBHOOK: Final = Problem(
    "bad_webhook", 400, "bad request: x-webhook-url is not where this service may be told to call"
)
NO_JOBS: Final = Problem("jobs_file", 503, "service unavailable: jobs cannot be kept", retry_after_s=10)
JOBS_FULL: Final = Problem("jobs_bytes", 429, "too many requests: the file of jobs is full", retry_after_s=10)
NO_MODEL: Final = Problem("model_not_found", 404, "not found: there is no such model here")
WRONG_METHOD: Final = Problem("wrong_method", 405, "method not allowed")
TIMEOUT: Final = Problem("timeout", 408, "inference timeout")
SLOW_HEADERS: Final = Problem("slow_headers", 408, "request timeout: the headers came too slowly")
SLOW_BODY: Final = Problem("slow_body", 408, "request timeout: the body came too slowly")
TOO_LARGE: Final = Problem("too_large", 413, "request body too large")
TARGET_TOO_LONG: Final = Problem("target_too_long", 414, "request target too long")
ENCODING: Final = Problem("encoding", 415, "unsupported content-encoding", headers={"accept-encoding": "identity"})
ENCODING_LISTED: Final = replace(ENCODING, headers={"accept-encoding": compression.ACCEPTED})
CORRUPT: Final = Problem("corrupt", 400, "bad request: the body is not what its content-encoding says")
FRAGMENTED: Final = Problem("fragmented", 400, "bad request: the body has too many gzip members or zstd frames")
CAPACITY: Final = Problem("capacity", 429, wording.AT_CAPACITY, retry_after_s=1)
CAPACITY_BYTES: Final = Problem("capacity_bytes", 429, "too many requests: too many bytes are waiting", retry_after_s=1)
ONLOOKERS: Final = Problem("onlookers", 429, "too many requests: too many look at this page", retry_after_s=1)
KEY_RATE: Final = Problem("rate_limit_exceeded", 429, "too many requests: more than the rate of this API key")
KEY_CONCURRENCY: Final = Problem(
    "concurrency_limit_exceeded",
    429,
    "too many requests: as many of this API key are served as may be",
    retry_after_s=1,
)
HEADERS_TOO_LARGE: Final = Problem("headers_too_large", 431, "request headers too large")
CLIENT_GONE: Final = Problem("client_gone", 499, "client closed the connection")  # nginx's number; nobody reads it
INTERNAL: Final = Problem("internal", 500, "internal error")
CODING: Final = Problem("coding", 501, "transfer-encoding other than chunked is not implemented")
DRAINING: Final = Problem("draining", 503, "service unavailable: shutting down", retry_after_s=1)
UNREACHABLE: Final = Problem("unreachable", 503, wording.UNREACHABLE, retry_after_s=1)

# How errors that Falcon and gunicorn know only by status are answered.
_BY_STATUS: Final = {
    row.status: row
    for row in (
        BAD_REQUEST,
        NOT_FOUND,
        WRONG_METHOD,
        SLOW_HEADERS,
        TOO_LARGE,
        TARGET_TOO_LONG,
        HEADERS_TOO_LARGE,
        INTERNAL,
        CODING,
    )
}


def by_status(status: int) -> Problem:
    """The row for a foreign error of this status; an unknown one keeps its number and gets the row's words of its
    class."""
    row = _BY_STATUS.get(status)
    if row is None:
        row = replace(BAD_REQUEST if 400 <= status < 500 else INTERNAL, status=status)
    return row


class Refusal(Exception):
    """Ends the handling of a request with a row of the table."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def unavailable(error: Unavailable) -> Problem:
    """The broker's client did not take the request: its own status and words."""
    reason = "capacity" if error.status == 429 else "unavailable"
    return Problem(reason, error.status, str(error), retry_after_s=error.retry_after_s)

"""Replies as Falcon's responses, and every error inside Falcon answered from the one table."""

from __future__ import annotations

import logging
from typing import Any

import falcon
import falcon.asgi

from frontend import errors
from frontend.answer import Answering, Reply
from frontend.errors import Problem, Refusal
from frontend.exchange import Exchange

log = logging.getLogger("stageline.frontend")


def fill(resp: falcon.asgi.Response, reply: Reply) -> None:
    """Make ``resp`` this reply; what a handler had begun is dropped."""
    resp.status = str(reply.status)
    resp.text = None
    resp.content_type, resp.data = reply.mime, reply.body
    for name, value in reply.headers:
        if name == "set-cookie":
            resp.append_header(name, value)  # Falcon refuses it in set_header
        else:
            resp.set_header(name, value)


class Handlers:
    """Falcon's error handlers; they answer with what ``answering`` makes of an error."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def install(self, app: falcon.asgi.App[Any, Any]) -> None:
        app.add_error_handler(Refusal, self._handle_refusal)
        app.add_error_handler(falcon.HTTPError, self._handle_falcon)
        app.add_error_handler(Exception, self._handle_unexpected)

    def _answer(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, problem: Problem) -> None:
        exchange = Exchange.of(req.scope)
        exchange.reason = problem.reason
        fill(resp, self._answering.problem(problem, exchange.head, exchange.request_id))

    async def _handle_refusal(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Refusal, params: dict[str, Any]
    ) -> None:
        self._answer(req, resp, error.problem)

    async def _handle_falcon(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError, params: dict[str, Any]
    ) -> None:
        self._answer(req, resp, errors.by_status(error.status_code))
        for name, value in dict(error.headers or {}).items():  # Allow, above all
            resp.set_header(name, value)

    async def _handle_unexpected(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]
    ) -> None:
        log.error("unexpected error", exc_info=error, extra={"request_id": Exchange.of(req.scope).request_id})
        self._answer(req, resp, errors.INTERNAL)

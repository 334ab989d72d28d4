"""Questions to a running broker: one question, one answer, on a socket of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine import transport
from engine.addresses import numbered
from engine.clock import Deadline
from engine.config.load import as_it_runs
from engine.core.introduction import Refusal
from engine.core.messages import Ask, Report
from engine.core.wire import decode, encode
from engine.errors import ProtocolError, Unavailable
from engine.joined import join
from engine.keyfile import keyring_of

if TYPE_CHECKING:
    from engine.config import Deployment

RETRY_MS: Final = 20  # between two tries to send while the connection is being made


def ask(deployment: Deployment, what: str | Ask, timeout_s: float = 2.0) -> bytes:
    """Ask the broker of a deployment, or all of them, for their ``status`` (JSON), ``metrics`` (packed sources) or
    whatever else :class:`~engine.core.messages.Ask` knows.

    Blocks up to ``timeout_s`` seconds for each. Raises Unavailable when no broker answers in that time.
    """
    deployment = as_it_runs(deployment)
    context = transport.context(keyring_of(deployment))
    cells = deployment.brokers
    answers: list[bytes | None] = []
    failure: Unavailable | None = None
    try:
        for cell in range(cells):
            try:
                answers.append(ask_at(context, _admin(deployment, cell), what, timeout_s))
            except Unavailable as error:
                failure = error
                answers.append(None)
    finally:
        context.term()
    given = [answer for answer in answers if answer is not None]
    if failure is not None and not given:
        raise failure
    return given[0] if cells == 1 else join(what if isinstance(what, str) else what.what, answers)


def _admin(deployment: Deployment, cell: int) -> str:
    found = transport.reaching(deployment, cell)
    try:
        return numbered(found).admin
    except (OSError, ValueError) as error:
        name = found.base.removeprefix("tcp://")
        raise Unavailable(503, f"the broker's address {name} cannot be looked up: {error}") from error


def ask_at(context: transport.Context, endpoint: str, what: str | Ask, timeout_s: float) -> bytes:
    """The same with a context and an endpoint at hand; may be called by any thread."""
    deadline = Deadline(timeout_s)
    sock = transport.dealer(context, endpoint)
    try:
        question = Ask(what) if isinstance(what, str) else what
        frames = encode(question)
        while not transport.send(sock, frames):
            if deadline.passed:
                raise Unavailable(503, sock.complaint or f"no broker listens at {endpoint}")
            sock.poll(RETRY_MS, transport.WRITABLE)
        while not deadline.passed:
            if not sock.poll(max(1, int(deadline.remaining() * 1000))):
                continue
            answer = transport.recv(sock)
            if answer is None:
                continue
            message, payloads = decode(answer)
            if isinstance(message, Refusal):
                raise ProtocolError(message.reason)
            if isinstance(message, Report) and message.what == question.what and len(payloads) == 1:
                body = payloads[0]
                # A Report has no field for references.
                return b"".join(body) if isinstance(body, tuple) else bytes(body)  # type: ignore[arg-type]
        raise Unavailable(503, f"the broker at {endpoint} did not answer within {timeout_s:g} s")
    except ProtocolError as error:
        raise Unavailable(503, f"the broker at {endpoint} speaks another protocol") from error
    finally:
        sock.close()

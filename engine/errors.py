"""Every error of the project, split by who broke the rule. Imports nothing.

* raised by *user code* to answer one request: :class:`EngineError` and its subclasses, each with its HTTP status; to
  say that its process is of no more use: :class:`WorkerBroken`;
* broken by the *operator*: :class:`ConfigError`, :class:`StartError`;
* broken by a *peer* on a socket: :class:`ProtocolError`;
* met by a *caller* of the broker client: :class:`Unavailable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class EngineError(Exception):
    """Base of the errors a worker raises on purpose; fails one request, never its batch.

    A subclass may set ``status`` (the HTTP status of the answer, 300 to 599), ``prefix`` (what stands before the
    message) and ``headers`` (extra response headers) to make an answer of its own. A class written for Mosec names its
    prefix ``msg``: that is read too. ``body`` is sent in place of the message where it is not None: ``bytes`` and
    ``str`` as they are, anything else as JSON, with the content type ``mime`` (default: ``application/json``, for
    ``str`` ``text/plain``, for ``bytes`` ``application/octet-stream``).
    """

    status: int = 500
    prefix: str = "internal error"
    headers: Mapping[str, str] = {}
    body: object = None
    mime: str = ""

    @property
    def text(self) -> str:
        """The line a client sees: prefix and message, line breaks folded into `` - ``.

        Without a message the prefix stands in its place, twice then: clients of Mosec compare these lines.
        """
        # Of the class, not of the object: many an exception keeps its own message in `self.msg`.
        prefix = getattr(type(self), "msg", self.prefix)
        message = str(self).replace("\r\n", "\n").replace("\r", "\n").replace("\n", " - ")
        return f"{prefix}: {message or prefix}"


class ClientError(EngineError):
    """The request is wrong: 400 ``bad request: ...``."""

    status = 400
    prefix = "bad request"


class DecodingError(ClientError):
    """The request's bytes cannot be decoded: 400 ``decoding error: ...``."""

    prefix = "decoding error"


class ValidationError(EngineError):
    """The request decodes but breaks its schema: 422 ``request validation error: ...``."""

    status = 422
    prefix = "request validation error"


class ServerError(EngineError):
    """The service failed and says why: 500 ``internal error: ...``."""


class EncodingError(ServerError):
    """The result cannot be encoded: 500 ``encoding error: ...``."""

    prefix = "encoding error"


class EngineTimeoutError(BaseException):
    """Raised inside ``forward`` when it exceeds the stage's timeout (408 ``inference timeout``).

    A ``BaseException``, so that an ``except Exception`` in user code does not swallow the interruption.
    """


class WorkerBroken(Exception):
    """Raised by user code when nothing this process computes from now on can be right: its device is lost, say.

    The process says why in the log and ends without answering; its batch and whatever it was given in advance are
    computed by other workers, as after any death, and it is replaced. Errors after which CUDA or HIP refuse every call
    (a device-side assert, an illegal access, a failed launch, uncorrectable memory) are taken for it without its being
    raised. While a worker loads it is a failed start, like any exception.
    """


# The names by which a service written for Mosec knows them.
MosecError = EngineError
MosecTimeoutError = EngineTimeoutError


class ConfigError(Exception):
    """A deployment cannot be read as meant. ``problems`` holds every finding, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class StartError(Exception):
    """A process of the deployment cannot start; the message says what to do next."""


class ProtocolError(Exception):
    """A peer sent what the wire protocol does not allow; the message is for the log, never for the peer."""


class Unavailable(Exception):
    """The broker did not take a request: ``status`` is 429 or 503, ``retry_after_s`` a hint in seconds."""

    def __init__(self, status: int, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

"""What a worker may ask about the request it computes: headers, query, deadline, whether anybody still waits.

A :class:`Context` is made only when ``Worker.context(i)`` is called, and opens the request's metadata only when
headers or query are read: most services never ask, and a batch has many items.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping
from math import inf
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from engine.core.meta import Pairs, asked_of, head_of, request_id_of
from engine.core.wire import Payload
from stages.ways import Way

PADDING: Final = -1  # uid of what a batch is padded with: nobody's, but otherwise like the item that is repeated
NO_DEADLINE: Final = 0  # of ItemIn.deadline_ns; the monotonic clock never shows 0 in a running process


class ItemIn(msgspec.Struct, frozen=True):
    """One request's payload at one stage, as the worker gets it.

    ``first``: the payload is the body of an HTTP request; ``last``: the result is the body of its answer.
    ``deadline_ns`` is an instant of this process's monotonic clock. ``way``: its route as this stage sees it; None: it
    goes nowhere else.
    """

    uid: int
    payload: Payload
    first: bool = True
    last: bool = True
    meta: bytes = b""
    attempt: int = 1
    deadline_ns: int = NO_DEADLINE
    way: Way | None = None

    @property
    def request_id(self) -> str:
        """The request's ``x-request-id``."""
        return request_id_of(self.meta)


NOTHING: Final = ItemIn(0, b"")  # what an offline worker computes for


class Headers(Mapping[str, str]):
    """HTTP request headers; names in any case. A header sent twice is joined by commas (RFC 9110, section 5.2)."""

    __slots__ = ("_values",)

    def __init__(self, pairs: Pairs) -> None:
        values: dict[str, list[str]] = {}
        for raw_name, raw_value in pairs:
            values.setdefault(raw_name.decode("latin-1").lower(), []).append(raw_value.decode("latin-1"))
        self._values = {name: ", ".join(several) for name, several in values.items()}

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({self._values!r})"


class Context:
    """About one request. Outside a server: no headers, no query, no deadline, attempt 1, never cancelled.

    May be kept and asked from any thread while the request is computed.
    """

    __slots__ = ("_gone", "_headers", "_item", "_query")

    def __init__(self, item: ItemIn = NOTHING, gone: Container[int] = ()) -> None:
        self._item = item
        self._gone = gone
        self._headers: Headers | None = None
        self._query: Mapping[str, str] | None = None

    @property
    def request_id(self) -> str:
        """The request's ``x-request-id``."""
        return self._item.request_id

    @property
    def attempt(self) -> int:
        """1 the first time; more when a worker died under this request before."""
        return self._item.attempt

    @property
    def padding(self) -> bool:
        """This value only fills the batch up to one of the stage's ``batch_sizes``: what is computed for it is dropped.
        It is a copy of another value, and its request that value's."""
        return self._item.uid == PADDING

    @property
    def cancelled(self) -> bool:
        """Nobody waits any more: the client has gone. Long computations may look now and then, and stop."""
        return self._item.uid in self._gone

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP request's headers, names in any case."""
        if self._headers is None:
            self._headers = Headers(head_of(self._item.meta).headers)
        return self._headers

    @property
    def query(self) -> Mapping[str, str]:
        """The query string's fields, decoded; of a repeated one the last."""
        if self._query is None:
            self._query = dict(parse_qsl(self.query_string, keep_blank_values=True))
        return self._query

    @property
    def parameters(self) -> Mapping[str, str | int | float | bool | None]:
        """Parameters of a request of the Open Inference Protocol, but for those that the protocol has a meaning for;
        none of others."""
        asked = asked_of(self._item.meta)
        return {} if asked is None else asked.parameters

    @property
    def query_string(self) -> str:
        """The query string as it came, without the question mark."""
        return head_of(self._item.meta).query.decode("latin-1")

    def remaining(self) -> float:
        """Seconds until the request's deadline, never below zero; infinite without one."""
        if self._item.deadline_ns == NO_DEADLINE:
            return inf
        return max(0.0, (self._item.deadline_ns - time.monotonic_ns()) / 1e9)

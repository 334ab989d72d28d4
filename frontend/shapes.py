"""Heads that differ in what their fields say and in nothing else: a shape is one expression for all of them. Pure.

Clients repeat themselves, but for an id, a length, a trace. So the second head of a client that is read word for word
(:mod:`frontend.plain`) makes the shape of the third: the same fields in the same order, with the same value where a
value means something to us, and any in between. What it means is what the second one meant, but for its length and id.
A match of it costs a third of reading it word for word.

Making one costs as much as reading a hundred heads, and who sends them chooses how many there are: so they are few, and
made rarely.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import structs

from frontend import head as heads
from frontend import requestid
from frontend.head import Head

if TYPE_CHECKING:
    from frontend.plain import Plain

SHAPES_MAX: Final = 64
SEEN_MAX: Final = 256  # heads of which there may be more
AT_ONCE: Final = 16  # are made without waiting
EACH: Final = 256  # heads read word for word are waited for, for each of the others

# Of the fields that admit one value, those whose value means nothing to us but what is looked at here.
_FREE: Final = frozenset(
    {b"authorization", b"content-length", b"content-type", b"host", b"traceparent", b"x-api-key", b"x-request-id"}
)
VALUE: Final = rb"([\t\x20-\x7e\x80-\xff]*)"  # of a field, with the blanks around it


class Shape:
    """See the module."""

    def __init__(self, plain: Plain, first: bytes, lines: Sequence[bytes], fields: Sequence[heads.Field]) -> None:
        """``plain``: what a head meant, of a request line, ``first``, and ``lines`` that are these ``fields``."""
        pattern = [re.escape(first)]
        names: list[bytes] = []
        for line, (pair, kind) in zip(lines, fields, strict=True):
            written, _, value = line.partition(b":")
            said = VALUE if is_free(pair[0], kind) else b"(" + re.escape(value) + b")"
            pattern.append(re.escape(written) + b":" + said)
            names.append(b"" if kind == heads.DROPPED else pair[0])
        self._match = re.compile(b"\r\n".join(pattern) + b"\r\n\r\n").fullmatch
        self._names = names
        self._drops = b"" in names
        self._token_at = [names.index(name) for name in (b"authorization", b"x-api-key") if name in names]
        self._length_at = names.index(b"content-length") if b"content-length" in names else -1
        self._id_at = names.index(b"x-request-id") if b"x-request-id" in names else -1
        self._model = plain.head
        self.route, self.more = plain.route, plain.more

    def read(self, head: bytes) -> Head | None:
        """What it means; None where it is another, or may mean something else."""
        match = self._match(head)
        if match is None:
            return None
        values = list(map(bytes.strip, match.groups()))
        length = None
        if self._length_at >= 0:
            length = heads.length_of(values[self._length_at])
            if length is None:
                return None
        told = list(zip(self._names, values, strict=True))
        if self._drops:
            told = [pair for pair in told if pair[0]]
        request_id = requestid.sane(values[self._id_at]) if self._id_at >= 0 else ""
        token = next(filter(None, [values[at] for at in self._token_at]), b"") if self._token_at else b""
        return structs.replace(self._model, fields=told, length=length, request_id=request_id, token=token)


def is_free(name: bytes, kind: int) -> bool:
    """Whether heads of one shape may differ in what this field says."""
    return kind in (heads.USUAL, heads.DROPPED) or (kind == heads.ONCE and name in _FREE)


class Shapes:
    """Those of one process."""

    def __init__(self) -> None:
        self._made: dict[tuple[bytes, ...], Shape] = {}
        self._seen: set[tuple[bytes, ...]] = set()  # of which there was one head
        self._heads = 0  # that were read word for word
        self._count = 0  # made

    def of(self, plain: Plain, first: bytes, lines: Sequence[bytes], fields: Sequence[heads.Field]) -> Shape | None:
        """The shape of a head that has been read; None: there is none, yet or at all."""
        self._heads += 1
        more = plain.more
        if plain.head.idempotency_key is not None or (more is not None and more.page):
            return None
        free = [is_free(pair[0], kind) for pair, kind in fields]
        key = (first, *[line.partition(b":")[0] if ours else line for line, ours in zip(lines, free, strict=True)])
        shape = self._made.get(key)
        if shape is not None:
            return shape
        if key not in self._seen:
            if len(self._seen) >= SEEN_MAX:
                self._seen.clear()
            self._seen.add(key)
            return None
        if self._count >= AT_ONCE + self._heads // EACH:
            return None
        if len(self._made) >= SHAPES_MAX:
            self._made.clear()
        self._count += 1
        shape = self._made[key] = Shape(plain, first, lines, fields)
        return shape

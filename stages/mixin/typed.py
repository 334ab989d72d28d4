"""Requests checked against the annotation of ``forward``'s argument, before ``forward`` sees them.

The types are msgspec's (structs, dataclasses, TypedDicts, builtins, ...) or pydantic's models. ``list[T]`` means one
``T`` per request when the stage batches. What does not decode is 400; what decodes and does not fit is 422, with the
validator's words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.errors import DecodingError, EncodingError, StartError, ValidationError
from stages import models, plainjson
from stages.base import Worker
from stages.mixin.msgpack import check_keys
from stages.schema import request_type

# Any: whatever a client sends, whatever forward returns.
Decode = Callable[[bytes], Any]

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encode_json = msgspec.json.Encoder(enc_hook=models.enc_hook_json).encode
_encode_msgpack = msgspec.msgpack.Encoder(enc_hook=models.enc_hook_msgpack).encode


class _Typed(Worker):
    """What both formats share. Without an annotation anything that decodes is taken."""

    _decode: Decode | None = None

    def deserialize(self, data: bytes) -> Any:
        """The body as the type that ``forward`` takes. Raises DecodingError (400) or ValidationError (422)."""
        if self._decode is None:
            self.prepare_types()
            assert self._decode is not None
        return self._decode(data)

    def prepare_types(self) -> None:
        """Read the annotation. Raises StartError for one that cannot be checked, and says why."""
        try:
            self._decode = self._decoder(request_type(self))
        # Names that do not exist, types that neither msgspec nor pydantic knows.
        except (TypeError, NameError, AttributeError, SyntaxError, ValueError) as error:
            text = f"the annotation of {type(self).__name__}.forward cannot be checked: {error}"
            raise StartError(text) from error

    def _decoder(self, kind: Any) -> Decode:
        raise NotImplementedError


class TypedJSONMixin(_Typed):
    """JSON, checked against the annotation of ``forward``: ``class Resize(TypedJSONMixin, Worker)``."""

    def _decoder(self, kind: Any) -> Decode:
        if models.is_made_of_models(kind):
            return models.json_decoder(kind)
        decoder = msgspec.json.Decoder(models.known(kind), dec_hook=models.dec_hook)
        return _strict(decoder.decode, msgspec.json.decode)

    def serialize(self, data: Any) -> bytes:
        """The result as JSON. Raises EncodingError, which names the type that JSON lacks."""
        return plainjson.encode_with(_encode_json, data)


class TypedMsgPackMixin(_Typed):
    """MessagePack, checked against the annotation of ``forward``: ``class Resize(TypedMsgPackMixin, Worker)``."""

    resp_mime_type = "application/msgpack"
    req_mime_type = "application/msgpack"

    strict_map_key: bool = True
    """Whether keys of maps that the type leaves open (``Any``, ``dict``, fields of models) must be text or bytes: see
    :attr:`stages.mixin.MsgpackMixin.strict_map_key`. Of a type that says what its keys are, they may be that."""

    def _decoder(self, kind: Any) -> Decode:
        if models.is_made_of_models(kind):
            check, untyped = models.value_checker(kind), _strict(msgspec.msgpack.decode, msgspec.msgpack.decode)
            return self._guarded(lambda data: check(untyped(data)))
        decoder = msgspec.msgpack.Decoder(models.known(kind), dec_hook=models.dec_hook)
        decode = _strict(decoder.decode, msgspec.msgpack.decode)
        return self._guarded(decode) if models.is_open(kind) else decode

    def _guarded(self, decode: Decode) -> Decode:
        """``decode`` for a type that lets the client choose what keys are. msgspec takes any; so they are looked at
        before, at the price of reading the body twice."""
        if not self.strict_map_key:
            return decode

        def guarded(data: bytes) -> Any:
            check_keys(data)
            return decode(data)

        return guarded

    def serialize(self, data: Any) -> bytes:
        """The result as MessagePack. Raises EncodingError, which names the type that MessagePack lacks."""
        try:
            return _encode_msgpack(data)
        except plainjson.UNENCODABLE as error:
            raise EncodingError(str(error)) from error


def check_types(worker: Worker) -> None:
    """For a typed worker that takes requests: read its types before the first one comes.

    Raises StartError for a type that cannot be checked, so that a mistake is a failed start and not a failed request.
    """
    if isinstance(worker, _Typed):
        worker.prepare_types()


def _strict(typed: Decode, untyped: Decode) -> Decode:
    """``typed`` with its errors as ours.

    msgspec checks while it reads: of ``{"x": "a", oops`` it may say that x is no number before it meets the end. A
    client that sends this has a broken encoder, not a wrong value, so what does not fit is read once more for its form.
    """

    def decode(data: bytes) -> Any:
        try:
            return typed(data)
        except msgspec.ValidationError as error:
            try:
                untyped(data)
            except _MALFORMED as worse:
                raise DecodingError(str(worse)) from worse
            raise ValidationError(str(error)) from error
        except _MALFORMED as error:
            raise DecodingError(str(error)) from error

    return decode

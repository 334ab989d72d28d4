"""Uploads: the forms that browsers, curl (``-F``) and clients' libraries send, checked against the annotation of
``forward``. The extra ``form``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import msgspec.inspect

from engine.errors import ValidationError
from stages import models
from stages.form import MULTIPART, File, form_of
from stages.mixin.typed import Decode, TypedJSONMixin

__all__ = ["File", "FormMixin"]


class FormMixin(TypedJSONMixin):
    """``class Resize(FormMixin, Worker)``, with ``forward(self, data: Form)`` where ``Form`` is a msgspec struct, a
    dataclass or a TypedDict: a field of the form for each of its own, :class:`File` for files, ``list[...]`` for those
    that may come several times. Texts are read as numbers and truth values where those are annotated. Without an
    annotation it is a ``dict`` of lists. What is no form is 400, what does not fit is 422; answers are JSON.
    """

    req_mime_type = MULTIPART

    def _decoder(self, kind: Any) -> Decode:
        several = _several(kind) if kind is not Any else frozenset()

        def decode(data: bytes) -> Any:
            fields = form_of(data, self.context().headers.get("content-type", ""))
            if kind is Any:
                return fields
            told = {
                name: values if name in several or len(values) > 1 else values[0] for name, values in fields.items()
            }
            try:
                return msgspec.convert(told, kind, strict=False, dec_hook=models.dec_hook)
            except msgspec.ValidationError as error:
                raise ValidationError(str(error)) from error

        return decode


def _several(kind: Any) -> frozenset[str]:
    """The fields that may come several times. Raises TypeError for what has no fields."""
    fields = getattr(msgspec.inspect.type_info(kind), "fields", None)
    if fields is None:
        raise TypeError(f"a form has fields, and {kind!r} has none: a struct, a dataclass or a TypedDict does")
    found = set()
    for field in fields:
        types = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
        if any(isinstance(one, msgspec.inspect.CollectionType) for one in types):
            found.add(field.encode_name)
    return frozenset(found)

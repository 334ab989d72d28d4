"""Uploads: forms as clients send them, as the type that forward takes; and what is no form, or does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.about import unpack
from engine.core.meta import pack, pack_head
from engine.errors import DecodingError, StartError
from stages.base import Worker
from stages.compute import run_batch
from stages.context import ItemIn
from stages.form import File, form_of
from stages.mixin import FormMixin
from stages.mixin.typed import check_types
from stages.schema import describe

TYPE = "multipart/form-data; boundary=b"


class Form(msgspec.Struct):
    image: File
    width: int = 64
    grey: bool = False
    tags: list[str] = []
    more: list[File] | None = None


class Echo(FormMixin, Worker):
    def forward(self, data: Form) -> dict[str, Any]:
        more = [one.filename for one in data.more or []]
        return {"size": len(data.image.data), "width": data.width, "grey": data.grey, "tags": data.tags, "more": more}


def sent(**options: Any) -> tuple[bytes, str]:
    """Body and content type as a client writes them."""
    request = httpx.Request("POST", "http://x/", **options)
    return request.read(), request.headers["content-type"]


def asked(body: bytes, content_type: str) -> tuple[int, bytes]:
    meta = pack("id", pack_head(b"", [(b"content-type", content_type.encode())]))
    (outcome,) = run_batch(Echo(), [ItemIn(0, body, meta=meta)], max_batch_size=1).outcomes
    assert isinstance(outcome.payload, bytes)
    return outcome.status, outcome.payload


def test_a_form_comes_as_what_forward_takes() -> None:
    files = [("image", ("a.png", b"\x00\r\n--b\xff" * 10, "image/png")), ("more", ("C:\\x\\..\\b.png", b"1"))]
    status, told = asked(*sent(data={"width": "32", "grey": "true", "tags": ["x", "y"]}, files=files))
    assert (status, msgspec.json.decode(told)) == (
        200,
        {"size": 70, "width": 32, "grey": True, "tags": ["x", "y"], "more": ["b.png"]},
    )
    status, told = asked(*sent(data={"tags": "one"}, files={"image": b"x"}))
    assert (status, msgspec.json.decode(told)["tags"]) == (200, ["one"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"files": {"other": b"x"}}, b"missing required field `image`"),
        ({"data": {"width": "wide"}, "files": {"image": b"x"}}, b"Expected `int`"),
        ({"files": [("image", b"x"), ("image", b"y")]}, b"$.image"),
        ({"data": {"image": "a text"}, "files": {"more": b"x"}}, b"$.image"),
        ({"data": {"image": "urlencoded"}}, b"$.image"),
    ],
)
def test_what_does_not_fit_is_422(options: dict[str, Any], words: bytes) -> None:
    status, told = asked(*sent(**options))
    assert status == 422
    assert words in told


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", TYPE),
        (b"--b", TYPE),
        (b"--b\r\n\r\nx\r\n--b--", TYPE),
        (b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\ncut', TYPE),
        (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\xff\r\n--b--\r\n', TYPE),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n'
            b"Content-Type: text/plain; charset=no\r\n\r\n1\r\n--b--\r\n",
            TYPE,
        ),
        (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 2000 + b"--b--\r\n", TYPE),
        (b"x", "multipart/form-data"),
        (b"{}", "application/json"),
        (b"{}", ""),
        (b"x=%ff", "application/x-www-form-urlencoded"),
        (b"x", "application/x-www-form-urlencoded"),
        ("x=ü".encode(), "application/x-www-form-urlencoded"),
    ],
)
def test_what_is_no_form_is_400(body: bytes, content_type: str) -> None:
    assert asked(body, content_type)[0] == 400


@given(st.binary(max_size=200), st.sampled_from([TYPE, "application/x-www-form-urlencoded"]))
def test_any_bytes_are_a_form_or_are_not(body: bytes, content_type: str) -> None:
    try:
        form_of(body, content_type)
    except DecodingError:
        pass


def test_a_form_without_files_may_come_as_links_have_it() -> None:
    fields = form_of(b"a=1&b=two+words&a=%C3%BC&c=", "application/x-www-form-urlencoded")
    assert fields == {"a": ["1", "ü"], "b": ["two words"], "c": [""]}
    assert form_of(b"", "application/x-www-form-urlencoded") == {}


def test_other_types_with_fields_and_none() -> None:
    @dataclass
    class Plain:
        a: int
        b: tuple[str, ...] = ()

    class Table(TypedDict):
        a: int

    for kind in (Plain, Table):
        worker = type("W", (FormMixin, Worker), {"forward": lambda self, data: data})
        worker.forward.__annotations__ = {"data": kind}  # type: ignore[attr-defined]
        made = worker()
        check_types(made)
    untyped = type("W", (FormMixin, Worker), {"forward": lambda self, data: data})()
    meta = pack("id", pack_head(b"", [(b"content-type", b"application/x-www-form-urlencoded")]))
    (outcome,) = run_batch(untyped, [ItemIn(0, b"a=1", meta=meta)], max_batch_size=1).outcomes
    assert outcome.payload == b'{"a":["1"]}'


def test_a_type_that_no_form_can_be_is_refused_at_the_start() -> None:
    class Wrong(FormMixin, Worker):
        def forward(self, data: int) -> int:
            return data

    with pytest.raises(StartError, match="a form has fields"):
        check_types(Wrong())


def test_the_document_shows_files_as_bytes() -> None:
    side = unpack(describe(Echo(), first=True, last=True)).request
    assert side.mime == "multipart/form-data"
    (component,) = side.components.values()
    properties = component.schema["properties"]
    assert properties["image"] == {"type": "string", "format": "binary"}
    assert properties["width"] == {"type": "integer", "default": 64}
    assert {"type": "string", "format": "binary"} in [one.get("items") for one in properties["more"]["anyOf"]]

"""What processes of an earlier build have sent can still be read: their bytes lie beside, a file for each protocol.

A file is written once, by ``python -m tests.core.test_golden``, when its protocol is new, and again when messages or
fields have joined it; by nothing else, for what stands in it is in use.
"""

from __future__ import annotations

import base64
import json
import sys
import zlib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest

from engine.core import introduction, wire
from engine.core.introduction import NEWEST, OLDEST, Introduction, Refusal, Stranger
from engine.core.messages import AnyMessage, Place, Qos, Refused, StageState

FOLDER = Path(__file__).parent / "golden"
KINDS: dict[str, Any] = {kind.__name__: kind for kind in (*get_args(AnyMessage), Introduction, Stranger, Refusal)}
PARTS = {kind.__name__: kind for kind in (Place, Qos, Refused, StageState)}
PAYLOADS = [b"one", b"", b"x" * (wire.INLINE_MAX + 1)]


def recorded(protocol: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"protocol-{protocol}.json").read_text())
    return found


def plain(value: object) -> Any:
    """As JSON has it; of messages in it the fields, by name."""
    if isinstance(value, msgspec.Struct):
        return {field: plain(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.hex() if isinstance(value, bytes) else value


def known(told: Any, value: Any) -> Any:
    """``value`` without what was not in ``told`` yet."""
    if isinstance(told, dict) and isinstance(value, dict):
        return {key: known(told[key], one) for key, one in value.items() if key in told}
    if isinstance(told, list) and isinstance(value, list) and len(told) == len(value):
        return [known(one, other) for one, other in zip(told, value, strict=True)]
    return value


def packed(frame: bytes) -> str:
    return base64.b64encode(zlib.compress(frame, 9)).decode()


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


@pytest.mark.parametrize("protocol", range(OLDEST, NEWEST + 1))
@pytest.mark.parametrize("name", KINDS)
def test_what_was_sent_is_read_as_it_was_meant(protocol: int, name: str) -> None:
    one = recorded(protocol).get(name)
    if one is None:
        assert protocol < NEWEST, f"{name} has joined protocol {NEWEST}: record it"
        return
    message, payloads = wire.decode([unpacked(frame) for frame in one["frames"]])
    assert type(message).__name__ == name
    assert known(one["fields"], plain(message)) == one["fields"]
    assert payloads == [unpacked(payload) for payload in one["payloads"]]


def test_every_field_is_on_record() -> None:
    told = recorded(NEWEST)
    for name, kind in KINDS.items():
        assert set(kind.__struct_fields__) == set(told[name]["fields"]), f"{name}: python -m tests.core.test_golden"


# --- recording -------------------------------------------------------------------------------------------------------


def sample(kind: Any, n: int, name: str = "") -> Any:
    """A value of a type that is no default, where there is one; lists and columns have ``n`` entries."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *limits = get_args(kind)
        told = [limit for limit in limits if isinstance(limit, msgspec.Meta)]
        if inner is bytes and (size := max((limit.min_length or limit.max_length or 0 for limit in told), default=0)):
            return bytes(range(size))
        return sample(inner, n, name)
    if origin is list:
        return [sample(get_args(kind)[0], n) for _ in range(n)]
    if origin is dict:
        keys, values = get_args(kind)
        if name == "refs":
            return {}
        return {sample(keys, n): sample(values, n)}
    if origin is tuple:
        return tuple(sample(one, n) for one in get_args(kind) if one is not Ellipsis)
    if origin is not None or type(None) in get_args(kind):  # a union with None
        return sample(next(one for one in get_args(kind) if one is not type(None)), n)
    if kind is bool:
        return True
    if kind is int:
        return 2
    if kind is float:
        return 0.5
    if kind is str:
        return "é"
    if kind is bytes:
        return b"\x00\xff"
    return made(kind, n)


def made(kind: Any, n: int) -> Any:
    fields = {
        field.name: sample(field.type, n, field.name)
        for field in msgspec.structs.fields(kind)
        if field.name not in ("layout", "refs")
    }
    return kind(**fields)


def record() -> dict[str, Any]:
    told = {}
    for name, kind in KINDS.items():
        if kind in (Introduction, Stranger, Refusal):
            message, payloads = made(kind, 2), []
            frames = introduction.encode(message)
        else:
            has_columns = bool(wire.columns_of(kind))
            carries = "layout" in kind.__struct_fields__
            payloads = PAYLOADS if has_columns else [b"body"] if carries else []
            message = made(kind, len(payloads) if has_columns else 2)
            frames = wire.encode(message, payloads)
        read, _ = wire.decode(frames)  # with its layout
        told[name] = {
            "fields": plain(read),
            "frames": [packed(bytes(frame)) for frame in frames],
            "payloads": [packed(payload) for payload in payloads],
        }
    return told


if __name__ == "__main__":
    (FOLDER / f"protocol-{NEWEST}.json").write_text(json.dumps(record(), indent=1, ensure_ascii=False) + "\n")
    sys.stdout.write(f"recorded protocol {NEWEST}\n")

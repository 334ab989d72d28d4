"""Arrays as tensors of the Open Inference Protocol, and back."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from engine.core.oip import Malformed
from engine.errors import ClientError, EncodingError
from stages import tensors
from stages.tensors import DTYPES, Tensor, array_of, from_bytes, from_json, to_bytes, to_json

PLAIN = [name for name in DTYPES if name != "BF16"]


def values_of(datatype: str) -> Any:
    dtype = np.dtype(DTYPES[datatype])
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if dtype.kind == "f":
        return np.array([[0.5, -1.25, 3], [0, 100, -0.0]], dtype)
    limits = np.iinfo(dtype)
    return np.array([[limits.min, 1, 2], [3, 4, limits.max]], dtype)


@pytest.mark.parametrize("datatype", PLAIN)
def test_every_datatype_goes_there_and_back(datatype: str) -> None:
    given = values_of(datatype)
    array, told = array_of(given, "x", None)
    assert told == datatype
    data = bytes(to_bytes(array, told, "x"))
    assert data == given.tobytes()
    for odd in (0, 1, 3):  # behind JSON of any length
        back = from_bytes(memoryview(b"." * odd + data)[odd:], datatype, (2, 3))
        assert back.dtype == given.dtype
        assert np.array_equal(back, given)
        assert back.flags.writeable
        assert back.flags.aligned
        back[:] = 0  # its own
    written = json.dumps(to_json(array, told, "x")).encode()
    assert np.array_equal(from_json(written, datatype, (2, 3)), given)
    nested = json.dumps(given.tolist()).encode()
    back = from_json(nested, datatype, (2, 3))
    assert np.array_equal(back, given)
    assert back.dtype == given.dtype
    assert back.flags.writeable


def test_what_was_sent_stays_what_it_was() -> None:
    """The bytes are decoded anew when a batch is halved."""
    data = bytearray(np.arange(4, dtype=np.float32).tobytes())
    before = bytes(data)
    from_bytes(memoryview(data), "FP32", (4,))[:] = 9
    from_bytes(memoryview(bytearray(4)), "BOOL", (4,))[:] = True
    assert bytes(data) == before


def test_a_boolean_is_any_byte_but_zero() -> None:
    assert from_bytes(memoryview(b"\x00\x01\x02\xff"), "BOOL", (4,)).tolist() == [False, True, True, True]


def test_bytes_keep_every_byte() -> None:
    given = np.array([[b"a\x00", b""], ["ü".encode(), b"\xff" * 300]], dtype=object)
    data = bytes(to_bytes(given, "BYTES", "x"))
    back = from_bytes(memoryview(data), "BYTES", (2, 2))
    assert back.dtype == object
    assert back.tolist() == given.tolist()
    assert (
        bytes(to_bytes(array_of([["ü", "b"]], "x", None)[0], "BYTES", "x"))
        == b"\x02\x00\x00\x00\xc3\xbc\x01\x00\x00\x00b"
    )
    assert from_json(b'["a", "\\u00fc"]', "BYTES", (2, 1)).tolist() == [[b"a"], ["ü".encode()]]
    assert from_json(b'[["a"], ["b"]]', "BYTES", (2, 1)).tolist() == [[b"a"], [b"b"]]
    assert from_json(b'[[["a"], ["b"]], [["c"], ["d"]]]', "BYTES", (2, 2, 1)).tolist() == [
        [[b"a"], [b"b"]],
        [[b"c"], [b"d"]],
    ]


def test_bf16_is_float32_here() -> None:
    given = np.array([1.0, -2.5, 3.1415927, np.inf, -np.inf, np.nan, 3.4e38, 1e-40], np.float32)
    data = bytes(to_bytes(given, "BF16", "x"))
    assert len(data) == 16
    back = from_bytes(memoryview(data), "BF16", (8,))
    assert back.dtype == np.float32
    assert back[:2].tolist() == [1.0, -2.5]
    assert abs(back[2] - 3.1415927) < 0.01
    assert back[3] == np.inf
    assert back[4] == -np.inf
    assert np.isnan(back[5])
    assert np.isnan(
        from_bytes(memoryview(to_bytes(np.frombuffer(b"\xff\xff\xff\x7f", "<f4"), "BF16", "x")), "BF16", (1,))
    )[0]
    with pytest.raises(ClientError, match="as bytes"):
        to_json(given, "BF16", "x")
    with pytest.raises(Malformed, match="as bytes"):
        from_json(b"[1]", "BF16", (1,))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1, 1)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    given = np.ones(shape, np.float32)
    data = memoryview(bytes(to_bytes(given, "FP32", "x")))
    assert from_bytes(data, "FP32", shape).shape == shape
    assert from_json(json.dumps(given.tolist()).encode(), "FP32", shape).shape == shape
    assert from_json(json.dumps(to_json(given, "FP32", "x")).encode(), "FP32", shape).shape == shape


def test_a_result_in_any_order_is_sent_row_by_row() -> None:
    given = np.arange(6, dtype=">f4").reshape(2, 3).T[::-1]
    array, datatype = array_of(given, "x", None)
    assert np.frombuffer(bytes(to_bytes(array, datatype, "x")), "<f4").tolist() == given.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (2,), b"1234567"),
        ("FP32", (2,), b"123456789"),
        ("FP32", (1 << 31,), b""),
        ("FP32", (1 << 20, 1 << 20, 1 << 20, 1 << 20), b""),  # 2 ** 80 elements
        ("FP32", (1 << 16,) * 4, b""),  # 2 ** 64, which a machine counts as none
        ("FP32", (-1,), b""),
        ("FP32", (-2, -2), bytes(16)),
        ("FP32", (1,) * 33, bytes(4)),
        ("FP32", (0,) + ((1 << 31) - 1,) * 5, b""),
        ("BYTES", (1 << 30,), bytes(8)),
        ("BYTES", (1,), b"\x01"),
        ("BYTES", (1,), b"\x01\x00\x00\x00"),
        ("BYTES", (1,), b"\xff\xff\xff\xffa"),
        ("BYTES", (1,), b"\x00\x00\x00\x00a"),
        ("BYTES", (2,), struct.pack("<I", 4) + b"abcd"),
        ("BOOL", (1,), b""),
    ],
)
def test_bytes_that_are_not_of_their_shape_are_refused(datatype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(Malformed):
        from_bytes(memoryview(data), datatype, shape)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (2,), b"[1]"),
        ("FP32", (2,), b"[1, 2, 3]"),
        ("FP32", (1 << 31 - 1,), b"[1]"),
        ("BYTES", (1 << 31 - 1,), b'["a"]'),
        ("FP32", (2, 2), b"[[1, 2], [3]]"),
        ("FP32", (2, 2), b"[[1, 2, 3], [4]]"),
        ("FP32", (2, 2), b"[[1, 2], 3, 4]"),
        ("FP32", (2, 3), b"[[1, 2], [3, 4], [5, 6]]"),
        ("FP32", (4,), b"[[1, 2], [3, 4]]"),
        ("FP32", (1,), b"1"),
        ("FP32", (1,), b'["1"]'),
        ("FP32", (1,), b"[null]"),
        ("FP32", (1,), b"[true]"),
        ("FP32", (1,), b"[NaN]"),
        ("FP32", (1,), b"[1e300]"),
        ("FP16", (1,), b"[70000]"),
        ("FP32", (1,), b"{}"),
        ("FP32", (1,), b"["),
        ("FP32", (1,), b""),
        ("FP32", (1,), b"[" * 1000),
        ("INT8", (1,), b"[128]"),
        ("INT8", (1,), b"[-129]"),
        ("UINT8", (1,), b"[-1]"),
        ("UINT32", (1,), b"[4294967296]"),
        ("INT64", (1,), b"[9223372036854775808]"),
        ("UINT64", (1,), b"[18446744073709551616]"),
        ("UINT64", (1,), b"[-1]"),
        ("INT32", (1,), b"[1.5]"),
        ("INT32", (1,), b"[true]"),
        ("BOOL", (1,), b"[1]"),
        ("BYTES", (1,), b"[1]"),
        ("BYTES", (2, 2), b'[["a", "b"], ["c"]]'),
        ("BYTES", (2, 2), b'[["a", "b", "c"], ["d"]]'),
        ("BYTES", (1, 2), b'["a"]'),
    ],
)
def test_json_that_is_not_of_its_shape_is_refused(datatype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(Malformed):
        from_json(data, datatype, shape)


def test_an_integer_is_a_float_too() -> None:
    assert from_json(b"[1, 2.5]", "FP64", (2,)).tolist() == [1.0, 2.5]


def test_results_that_are_no_arrays() -> None:
    assert array_of(3, "x", None)[0].tolist() == [3]
    assert array_of("a", "x", None)[1] == "BYTES"
    assert array_of(True, "x", None)[1] == "BOOL"
    assert array_of([1, 2], "x", Tensor("FP32"))[0].dtype == np.float32
    assert array_of([1, 2], "x", Tensor("UINT8"))[0].dtype == np.uint8
    assert array_of([b"a\x00"], "x", None)[0].tolist() == [b"a\x00"]
    assert array_of(np.array(["a", "bc"]), "x", None)[1] == "BYTES"
    assert array_of(np.float32(1), "x", None)[0].shape == ()
    assert array_of(np.zeros(2, np.float64), "x", Tensor("FP32", [-1]))[0].dtype == np.float32
    torch = pytest.importorskip("torch")
    array, datatype = array_of(torch.ones(2, dtype=torch.bfloat16, requires_grad=True), "x", None)
    assert datatype == "BF16"
    assert bytes(to_bytes(array, datatype, "x")) == b"\x80\x3f\x80\x3f"


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        (np.zeros(2, np.complex64), None),
        ({"a": 1}, Tensor("FP32")),
        (object(), Tensor("INT32")),
        ([[1], [2, 3]], None),
        (np.zeros(2), Tensor("BYTES")),
        (np.zeros(2), Tensor("INT32")),
        (["a"], Tensor("FP32")),
        ([1.5], Tensor("INT32")),
        ([300], Tensor("UINT8")),
        (np.array([-1]), Tensor("UINT64")),
        (np.array(["2020-01-01"], "datetime64[D]"), None),
    ],
)
def test_results_that_cannot_be_tensors(value: Any, declared: Tensor | None) -> None:
    with pytest.raises(EncodingError, match="output x"):
        array_of(value, "x", declared)


@pytest.mark.parametrize(("value", "datatype"), [([np.nan], "FP32"), ([np.inf], "FP64"), ([b"\xff"], "BYTES")])
def test_what_json_has_no_words_for_is_asked_for_as_bytes(value: Any, datatype: str) -> None:
    array, _ = array_of(value, "x", Tensor(datatype))
    with pytest.raises(ClientError, match="binary_data"):
        to_json(array, datatype, "x")


@pytest.mark.parametrize(
    ("datatype", "shape"), [("FP8", [1]), ("fp32", [1]), ("FP32", [-2]), ("FP32", [1.5]), ("FP32", [1 << 31])]
)
def test_a_tensor_that_is_none(datatype: str, shape: list[Any]) -> None:
    with pytest.raises(ValueError, match="is no"):
        Tensor(datatype, shape)


def test_names_are_shown_in_short() -> None:
    assert tensors.shown("a" * 500) == repr("a" * 100 + "...")

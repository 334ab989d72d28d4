"""Values between stages over a link that others could reach: what may cross comes out as it went in, nothing is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import build
from engine.errors import EncodingError, StartError
from stages import Worker, openipc
from stages.build import examples, load_offline
from stages.compute import Codec
from stages.context import ItemIn
from stages.mixin import RedisShmIPCMixin
from stages.warming import WarmUp, warm_up

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4),
    max_leaves=10,
)


@given(values)
def test_what_messagepack_has_comes_out_as_it_went_in(value: Any) -> None:
    assert openipc.unpack(openipc.pack(value)) == value


@pytest.mark.parametrize("kind", ["?", "u1", "<i8", ">f4", "float16", "complex128"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4)])
def test_arrays_of_numbers_do_too_and_may_be_written_to(kind: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    out = openipc.unpack(openipc.pack({"rows": [array, array.T]}))["rows"]
    for got, sent in zip(out, (array, array.T), strict=True):
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        np.testing.assert_array_equal(got, sent)
        assert got.flags.writeable
    scalar = np.float32(1.5)
    assert type(openipc.unpack(openipc.pack(scalar))) is np.float32


class Custom:
    pass


@pytest.mark.parametrize("value", [Custom(), {"x": object()}, np.array([None]), 2**70, {1, Custom()}])
def test_what_cannot_cross_is_told_with_what_to_do(value: Any) -> None:
    with pytest.raises(EncodingError, match=r"over tcp: .*; give None, .* or leave \[engine\] bind out"):
        openipc.pack(value)


class Bomb:
    went_off = 0

    def __reduce__(self) -> Any:
        return _go_off, ()


def _go_off() -> None:
    Bomb.went_off += 1


class Plain(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Redis(RedisShmIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


@pytest.mark.parametrize("as_parts", [False, True])
def test_nothing_is_unpickled_over_an_open_link(as_parts: bool) -> None:
    worker = Plain()
    worker._is_open = True
    bomb = pickle.dumps(Bomb())
    item = ItemIn(1, (bomb, b"part") if as_parts else bomb, first=False)
    with pytest.raises(ValueError, match=r".+"):
        Codec(worker).decode(item)
    own = Redis()
    own._is_open = True
    with pytest.raises(ValueError, match=r".+"):
        super(RedisShmIPCMixin, own).deserialize_ipc(bomb)  # type: ignore[misc]  # as the mixin calls it
    assert not Bomb.went_off


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xc7\x04\x01\xff\xff\xff\xff", b"\xd4\x07x", pickle.dumps({"x": 1})])
def test_what_is_no_such_value_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        openipc.unpack(data)


def test_an_array_of_objects_is_refused_on_arrival() -> None:
    good = openipc.pack(np.arange(2))
    with pytest.raises(ValueError, match="an array of"):
        openipc.unpack(good.replace(b"<i8", b"|O8"))


def test_an_array_whose_shape_lies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reshape|buffer"):
        openipc.unpack(openipc.pack(np.arange(2, dtype="u1")).replace(b"\x91\x02", b"\x91\x7f"))


@pytest.mark.parametrize("bind", [False, True])
def test_a_stage_whose_results_cannot_cross_is_found_out_by_its_example(tmp_path: Path, bind: bool) -> None:
    (tmp_path / "service_of_sets.py").write_text(
        "from stages import Worker\n"
        "class A(Worker):\n    example = 1\n    def forward(self, data):\n        return Thing()\n"
        "class B(Worker):\n    def forward(self, data):\n        return 1\n"
        "class Thing:\n    pass\n"
    )
    data = {
        "engine": {"bind": "tcp://127.0.0.1:7000", "insecure": True} if bind else {},
        "stage": [{"name": name, "worker": f"service_of_sets:{name.upper()}"} for name in "ab"],
    }
    deployment = build(data, file=tmp_path / "stages.toml", label="stages.toml")
    worker = load_offline(deployment, deployment.stages[0])
    if bind:
        with pytest.raises((StartError, EncodingError), match="over tcp"):
            warm_up(worker, WarmUp(1), examples(worker), lasts={False})
    else:
        warm_up(worker, WarmUp(1), examples(worker), lasts={False})

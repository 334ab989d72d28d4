"""The classes users derive from, used without any server; contexts; the format between stages."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import Any

import msgpack
import numpy
import pytest

from engine.core.meta import pack, pack_head
from engine.errors import DecodingError, EncodingError, StartError
from stages import SSEWorker, Worker, ipc
from stages.build import create
from stages.context import Context, Headers, ItemIn
from stages.mixin import MsgpackMixin


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


# --- offline ---------------------------------------------------------------------------------------------------------


def test_a_worker_is_a_plain_object_offline() -> None:
    worker = Echo()
    assert worker.forward([1, 2]) == [1, 2]
    assert (worker.worker_id, worker.stage, worker.max_batch_size, worker.device) == (1, "", 1, "cpu")
    assert worker.deserialize(worker.serialize({"a": [1, None]})) == {"a": [1, None]}
    assert worker.deserialize_ipc(worker.serialize_ipc({"a": {1, 2}})) == {"a": {1, 2}}


def test_context_is_empty_offline() -> None:
    context = Echo().context(5)
    assert (context.request_id, context.attempt, context.cancelled) == ("", 1, False)
    assert (dict(context.headers), dict(context.query), context.remaining()) == ({}, {}, math.inf)


def test_stream_events_go_nowhere_offline() -> None:
    class Stream(SSEWorker):
        def forward(self, data: Any) -> Any:
            self.send_stream_event("hello")
            return data

    assert Stream().forward(1) == 1
    assert Stream.resp_mime_type == "text/event-stream"


def test_forward_must_be_written() -> None:
    with pytest.raises(NotImplementedError, match="Worker must define forward"):
        Worker().forward(1)


def test_importing_stages_is_light() -> None:
    heavy = "{'zmq', 'torch', 'falcon', 'numpy', 'prometheus_client'}"
    command = f"import sys, stages, stages.local; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'"\xff"', b"[" * 100_000, b"1 2"])
def test_malformed_json_is_a_decoding_error(body: bytes) -> None:
    with pytest.raises(DecodingError):
        Echo().deserialize(body)


def test_what_json_lacks_is_an_encoding_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (object(), loop, {1: object()}):
        with pytest.raises(EncodingError):
            Echo().serialize(value)
    with pytest.raises(EncodingError, match=r"numpy\.int64 is unsupported; call \.item\(\) on it"):
        Echo().serialize(numpy.int64(1))
    with pytest.raises(EncodingError, match=r"numpy\.ndarray is unsupported; call \.tolist\(\) on it"):
        Echo().serialize([numpy.zeros(2)])


class Word(str):
    pass


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (numpy.float64(1.5), b"1.5"),
        ([Word("a")], b'["a"]'),
        ({None: 1, True: 2, 3: 4}, b'{"null":1,"true":2,"3":4}'),
        ("\ud800", b'"\\ud800"'),
        ([math.nan, numpy.float64("nan")], b"[null,null]"),
        ({None: math.inf}, b'{"null":null}'),
    ],
)
def test_a_result_that_the_standard_library_can_encode_is_encoded(value: Any, body: bytes) -> None:
    assert Echo().serialize(value) == body


@pytest.mark.parametrize(
    ("body", "value"),
    [(b'{"x": -Infinity}', {"x": -math.inf}), (b"\xef\xbb\xbf[1]", [1]), (b'"\\ud800"', "\ud800")],
)
def test_a_body_that_the_standard_library_can_decode_is_decoded(body: bytes, value: Any) -> None:
    assert Echo().deserialize(body) == value


class Packed(MsgpackMixin, Echo):
    pass


def test_msgpack_mixin_round_trip() -> None:
    worker = Packed()
    value = {"image": b"\x00\xff", "more": [1.5, "é", None]}
    assert worker.deserialize(worker.serialize(value)) == {"image": b"\x00\xff", "more": (1.5, "é", None)}
    assert worker.resp_mime_type == worker.req_mime_type == "application/msgpack"


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\xa1\xff", b"\x81\x80\x01", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff"],
)
def test_malformed_msgpack_is_a_decoding_error(body: bytes) -> None:
    with pytest.raises(DecodingError):
        Packed().deserialize(body)


def test_what_msgpack_lacks_is_an_encoding_error() -> None:
    deep: list[Any] = []
    deep.append(deep)
    for value in (object(), 2**70, deep, "\ud800"):
        with pytest.raises(EncodingError):
            Packed().serialize(value)
    assert msgpack.unpackb(Packed().serialize((1, 2))) == [1, 2]


# --- between stages --------------------------------------------------------------------------------------------------


def test_small_values_travel_as_one_pickle() -> None:
    np = pytest.importorskip("numpy")
    payload = ipc.pack([np.zeros(10), "x"])
    assert type(payload) is bytes
    ipc.unpack(payload)[0][0] = 1  # and arrive writable


def test_large_buffers_travel_apart() -> None:
    np = pytest.importorskip("numpy")
    value = {"a": np.arange(100_000), "b": np.arange(3)}
    payload = ipc.pack(value)
    assert type(payload) is tuple
    assert len(payload) == 2
    received = ipc.unpack(payload)
    assert (received["a"] == value["a"]).all()
    assert (received["b"] == value["b"]).all()
    assert received["a"].flags.writeable


def test_a_buffer_that_is_filled_again_does_not_change_what_was_packed() -> None:
    np = pytest.importorskip("numpy")
    reused = np.zeros(100_000)
    payload = ipc.pack(reused)
    reused[:] = 7
    assert ipc.unpack(payload).max() == 0


def test_plain_is_one_bytes_whatever_came() -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(100_000)
    assert (ipc.unpack(ipc.plain(ipc.pack(array))) == array).all()
    assert ipc.plain(memoryview(b"abc")) == b"abc"


# --- context ---------------------------------------------------------------------------------------------------------


def test_context_reads_the_request() -> None:
    head = pack_head(b"q=a%20b&q=c&empty=", [(b"X-Tenant", b"acme"), (b"accept", b"a"), (b"Accept", b"b")])
    soon = time.monotonic_ns() + 60 * 10**9
    context = Context(ItemIn(7, b"", meta=pack("r7", head), attempt=2, deadline_ns=soon), {7})
    assert (context.request_id, context.attempt, context.cancelled) == ("r7", 2, True)
    assert context.headers["x-tenant"] == context.headers["X-TENANT"] == "acme"
    assert context.headers["accept"] == "a, b"
    assert dict(context.query) == {"q": "c", "empty": ""}
    assert context.query_string == "q=a%20b&q=c&empty="
    assert 50 < context.remaining() <= 60


def test_remaining_is_never_negative() -> None:
    assert Context(ItemIn(1, b"", deadline_ns=1)).remaining() == 0.0


def test_headers_are_a_mapping() -> None:
    headers = Headers([(b"A", b"1"), (b"B", b"2")])
    assert sorted(headers) == ["a", "b"]
    assert len(headers) == 2
    assert "A" in headers
    assert 1 not in headers
    assert headers.get("c") is None


def test_context_beyond_the_batch_is_an_index_error() -> None:
    worker = Echo()
    worker._items = (ItemIn(1, b""),)
    with pytest.raises(IndexError):
        worker.context(1)


# --- making ----------------------------------------------------------------------------------------------------------


def make(cls: type, size: int = 1, **args: Any) -> Worker:
    return create(cls, stage="s", worker_id=3, max_batch_size=size, device="cuda:1", args=args)


def test_attributes_stand_before_init_runs() -> None:
    class Looking(Echo):
        def __init__(self, extra: str) -> None:
            self.seen = (self.worker_id, self.stage, self.max_batch_size, self.device, extra)

        def setup(self) -> None:
            self.was_set_up = True

    worker = make(Looking, 4, extra="x")
    assert isinstance(worker, Looking)
    assert worker.seen == (3, "s", 4, "cuda:1", "x")
    assert worker.was_set_up


def test_args_that_the_class_does_not_take_are_told_as_the_files() -> None:
    with pytest.raises(StartError, match=r"Echo of stage s does not take its args \(model\): .*takes no arguments"):
        make(Echo, model="x")


@pytest.mark.parametrize(("cls", "reason"), [(dict, "not derived from"), (Worker, "must define forward")])
def test_class_that_is_no_worker(cls: type, reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        make(cls)

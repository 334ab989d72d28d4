"""Between stages: NumBin, and values by way of a real Redis server of the test's own."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from engine.errors import DecodingError, EncodingError, ServerError
from stages.base import Worker
from stages.compute import run_batch
from stages.context import ItemIn
from stages.mixin import NumBinIPCMixin, RedisShmIPCMixin

CAP_S = 20.0


class Arrays(NumBinIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data * 2


class Stored(RedisShmIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


class StoredArrays(RedisShmIPCMixin, NumBinIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


# --- NumBin ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8"])
def test_an_array_comes_back_as_it_was(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    back = Arrays().deserialize_ipc(Arrays().serialize_ipc(array))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_the_runtime_uses_it_on_both_sides() -> None:
    item = ItemIn(1, Arrays().serialize_ipc(np.ones(3)), first=False, last=False)
    (outcome,) = run_batch(Arrays(), [item], max_batch_size=1).outcomes
    assert np.array_equal(Arrays().deserialize_ipc(bytes(outcome.payload)), np.full(3, 2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [[1, 2], "text", None, {"a": np.ones(1)}, np.array([object()])])
def test_anything_but_an_array_of_numbers_is_an_encoding_error(value: Any) -> None:
    with pytest.raises(EncodingError, match="NumBin takes numpy arrays"):
        Arrays().serialize_ipc(value)


def test_an_axis_that_is_too_long_for_it_is_an_encoding_error() -> None:
    with pytest.raises(EncodingError, match="65,536"):
        Arrays().serialize_ipc(np.zeros(65_536, np.uint8))


def test_what_is_no_numbin_is_a_decoding_error() -> None:
    for data in (b"", b"xx", b"\xff" * 30, pickle.dumps([1]), Arrays().serialize_ipc(np.ones(3))[:-4]):
        with pytest.raises(DecodingError, match="NumBin"):
            Arrays().deserialize_ipc(data)


# --- Redis -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server on a unix socket in a folder of its own; nothing of it is left."""
    command = shutil.which("redis-server")
    assert command, "redis-server is needed (Debian: apt-get install redis-server)"
    folder = Path(tempfile.mkdtemp(prefix="sl-redis-"))
    server = subprocess.Popen(
        [command, "--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + CAP_S
        with redis.Redis(unix_socket_path=str(folder / "s")) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert server.poll() is None, f"redis-server ended with {server.returncode}"
                    assert time.monotonic() < end, "redis-server does not answer"
                    time.sleep(0.02)
        yield f"unix://{folder / 's'}"
    finally:
        server.terminate()
        server.wait(CAP_S)
        shutil.rmtree(folder)


@pytest.fixture
def server(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A client of the server, which is empty; workers find the server."""
    monkeypatch.setenv("STAGELINE_REDIS_URL", "")  # put back as it was
    RedisShmIPCMixin.set_redis_url(url)
    with redis.from_url(url) as client:
        client.flushall()
        yield client


def made(cls: type[Worker]) -> Iterator[Any]:
    worker: Any = cls()
    yield worker
    worker._client().close()


@pytest.fixture
def giver(server: redis.Redis) -> Iterator[Any]:
    yield from made(Stored)


@pytest.fixture
def taker(server: redis.Redis) -> Iterator[Any]:
    yield from made(Stored)


def test_a_key_travels_and_the_value_is_found(giver: Any, taker: Any, server: redis.Redis) -> None:
    value = {"image": np.arange(100_000), "name": "n"}
    key = giver.serialize_ipc(value)
    assert key.startswith(b"stageline:ipc:")
    assert len(key) < 64
    assert server.keys() == [key]
    back = taker.deserialize_ipc(key)
    assert back["name"] == "n"
    assert np.array_equal(back["image"], value["image"])


def test_the_value_is_still_there_for_another_try(giver: Any, taker: Any) -> None:
    """The worker that read it may be killed before its result is out."""
    key = giver.serialize_ipc("once")
    assert taker.deserialize_ipc(key) == "once"
    assert taker.deserialize_ipc(key) == "once"


def test_no_two_values_share_a_key(giver: Any, taker: Any) -> None:
    keys = [giver.serialize_ipc(n) for n in range(50)] + [taker.serialize_ipc(n) for n in range(50)]
    assert len(set(keys)) == 100


def test_a_value_expires_soon_after_its_requests_deadline(giver: Any, server: redis.Redis) -> None:
    item = ItemIn(1, b'"value"', last=False, deadline_ns=time.monotonic_ns() + 5 * 10**9)
    (encoded,) = run_batch(giver, [item], max_batch_size=1).outcomes
    assert encoded.status == 200
    left_ms = server.pttl(bytes(encoded.payload))  # type: ignore[arg-type]
    assert 4_000 < left_ms <= 6_000


def test_a_value_without_a_deadline_is_kept_for_its_ttl(giver: Any, server: redis.Redis) -> None:
    assert 590_000 < server.pttl(giver.serialize_ipc(1)) <= 600_000
    giver.redis_ttl_s = 2.0
    assert 1_000 < server.pttl(giver.serialize_ipc(1)) <= 2_000


def test_a_value_that_has_expired_is_the_servers_failure(giver: Any, server: redis.Redis) -> None:
    key = giver.serialize_ipc(1)
    server.delete(key)
    with pytest.raises(ServerError, match="not in Redis any more"):
        giver.deserialize_ipc(key)


def test_the_prefix_can_be_chosen(giver: Any) -> None:
    giver.redis_prefix = "mine:"
    assert giver.serialize_ipc(1).startswith(b"mine:")


def test_it_stores_what_the_next_mixin_makes(server: redis.Redis) -> None:
    for worker in made(StoredArrays):
        key = worker.serialize_ipc(np.ones(3))
        assert server.get(key) == Arrays().serialize_ipc(np.ones(3))
        assert np.array_equal(worker.deserialize_ipc(key), np.ones(3))


def test_without_an_address_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAGELINE_REDIS_URL", raising=False)
    with pytest.raises(RuntimeError, match="set_redis_url"):
        Stored().serialize_ipc(1)


# --- Plasma ----------------------------------------------------------------------------------------------------------


def test_plasma_points_to_the_built_in_shared_memory() -> None:
    with pytest.raises(ImportError, match="shared memory"):
        from stages.mixin import PlasmaShmIPCMixin  # noqa: F401
    with pytest.raises(ImportError, match="shared memory"):
        from engine.mixin import PlasmaShmIPCMixin as _  # noqa: F401


def test_other_names_are_simply_not_there() -> None:
    import stages.mixin

    assert not hasattr(stages.mixin, "NothingMixin")


@pytest.mark.parametrize("name", ["MsgpackMixin", "TypedMsgPackMixin", "NumBinIPCMixin", "RedisShmIPCMixin"])
def test_what_mosec_has_is_found_where_mosec_has_it(name: str) -> None:
    import engine.mixin
    import stages.mixin

    assert getattr(engine.mixin, name) is getattr(stages.mixin, name)

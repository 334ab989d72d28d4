"""The Open Inference Protocol around the stages: its pages, what a request asks for, and the form of its errors."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from fakes import READY, Service, deployment
from running import PATIENCE_S, Running, frontend

from engine.config.schema import OIP, OPENAI, PLAIN, FrontendSection, RouteSection
from engine.core import about
from engine.core.about import About, Boundary
from engine.core.call import Answer
from engine.core.messages import Qos
from engine.core.oip import Asked, Tensor, Terms
from engine.errors import Unavailable
from engine.metrics import Sources, pack, pack_sources
from engine.metrics import counter as counted
from frontend import asking, models, oip
from frontend.protocols import Protocols

INFER = "/v2/models/inference/infer"
BODY = b'{"id": "7", "inputs": [], "parameters": {"timeout": 1000000, "priority": 3}}'
AS_JSON = {"content-type": "application/json"}
X = [Tensor("x", "FP32", [-1, 4]), Tensor("k", "INT64", [1], optional=True)]


def said(inputs: list[Tensor] | None, outputs: list[Tensor] | None) -> bytes:
    return about.pack(About(Boundary("", tensors=inputs), Boundary("", tensors=outputs)))


@pytest.fixture
def service() -> Service:
    made = Service(protocol=OIP)
    made.client.abouts = about.pack_all(
        {"first": said(X, None), "second stage": said(None, [Tensor("y", "BYTES", [-1])])}
    )
    return made


def ask(service: Service, method: str, path: str, body: bytes = b"", **options: Any) -> tuple[int, Any]:
    answer = service.call(method, path, body, **options)
    assert answer.headers["content-type"] == "application/json", answer.text
    return answer.status, json.loads(answer.body)


# --- pages -----------------------------------------------------------------------------------------------------------


def test_the_server_says_what_it_is(service: Service) -> None:
    status, document = ask(service, "GET", "/v2")
    assert status == 200
    assert document["name"] == "fake"
    assert "binary_tensor_data" in document["extensions"]


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_a_model_says_what_it_takes_and_gives(service: Service, version: str) -> None:
    """The inputs are the first stage's, the outputs the last one's."""
    assert ask(service, "GET", f"/v2/models/inference{version}") == (
        200,
        {
            "name": "inference",
            "versions": ["1"],
            "platform": "stageline",
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
                {"name": "k", "datatype": "INT64", "shape": [1]},
            ],
            "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1]}],
        },
    )
    status, config = ask(service, "GET", f"/v2/models/inference{version}/config")
    assert status == 200
    assert config["max_batch_size"] == 0  # shapes are whole
    assert config["input"][1] == {"name": "k", "data_type": "TYPE_INT64", "dims": [1], "optional": True}
    assert config["output"] == [{"name": "y", "data_type": "TYPE_STRING", "dims": [-1]}]


def test_what_stages_have_not_said_is_not_made_up(service: Service) -> None:
    service.client.abouts = about.pack_all({"first": said(X, None)})
    assert ask(service, "GET", "/v2/models/inference")[0] == 503
    service.client.abouts = about.pack_all({"first": b"{", "second stage": b"{"})
    assert ask(service, "GET", "/v2/models/inference")[0] == 503
    service.client.abouts = Unavailable(503, "no")
    assert ask(service, "GET", "/v2/models/inference/config")[0] == 503
    service.client.abouts = about.pack_all({"first": said(None, None), "second stage": said(None, None)})
    assert ask(service, "GET", "/v2/models/inference")[1]["inputs"] == []


def test_whether_it_is_ready(service: Service) -> None:
    assert ask(service, "GET", "/v2/health/live") == (200, {"live": True})
    assert ask(service, "GET", "/v2/health/ready") == (200, {"ready": True})
    assert ask(service, "GET", "/v2/models/inference/ready") == (200, {"name": "inference", "ready": True})
    first, second = READY.stages
    service.view(stages=(msgspec.structs.replace(first, ready=0), second))
    status, document = ask(service, "GET", "/v2/health/ready")
    assert (status, document["ready"]) == (503, False)
    assert isinstance(document["error"], str)
    assert ask(service, "GET", "/v2/models/inference/ready")[0] == 503
    assert ask(service, "GET", "/v2/models/second/ready")[0] == 200  # which has nothing to do with that stage
    assert ask(service, "POST", "/v2/repository/index") == (
        200,
        [
            {"name": "inference", "version": "1", "state": "UNAVAILABLE"},
            {"name": "second", "version": "1", "state": "READY"},
        ],
    )
    assert ask(service, "GET", "/v2/health/live")[0] == 200


def test_statistics_are_the_metrics_of_all_processes(service: Service) -> None:
    service.call("POST", INFER, BODY)
    service.call("POST", INFER, b"{")
    other = [counted("engine_throughput", "", [({"endpoint": INFER, "code": "200"}, 4)])]
    own = [counted("engine_throughput", "", [({"endpoint": INFER, "code": "200"}, 99)])]
    stage = [counted("engine_worker_forward_seconds", "", [({"stage": "first", "connection": "1"}, 2.0)])]
    sources = Sources(pack(stage), frontends=[("fake:1", pack(own)), ("fake:2", pack(other))])
    service.client.sources = pack_sources(sources)
    _, document = ask(service, "GET", "/v2/models/inference/stats")
    (stats,) = document["model_stats"]
    assert (stats["name"], stats["version"], stats["inference_count"]) == ("inference", "1", 5)
    assert stats["inference_stats"]["success"]["count"] == 5
    assert stats["inference_stats"]["fail"]["count"] == 1
    assert stats["inference_stats"]["compute_infer"]["ns"] == 2_000_000_000
    assert [one["name"] for one in ask(service, "GET", "/v2/models/stats")[1]["model_stats"]] == ["inference", "second"]
    service.client.sources = b"no metrics"
    assert ask(service, "GET", "/v2/models/stats")[0] == 503
    service.client.sources = Unavailable(503, "no")
    assert ask(service, "GET", "/v2/models/stats")[0] == 503


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/v2/models/inference/versions/2", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/inference/versions/2/infer", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/foo", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("POST", "/v2/repository/models/inference/load", 501),
        ("POST", "/v2/repository/models/inference/unload", 501),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("POST", "/v2/cudasharedmemory/region/x/register", 501),
        ("GET", "/v2/logging", 501),
        ("GET", "/v2/trace/setting", 501),
        ("GET", "/v2/models/inference/trace/setting", 501),
    ],
)
def test_what_there_is_not_is_said_in_a_form_that_clients_read(
    service: Service, method: str, path: str, status: int
) -> None:
    found, document = ask(service, method, path, b"{}", headers=[("accept", "text/plain")])
    assert found == status
    assert isinstance(document["error"], str)
    assert list(document) == ["error"]


def test_without_such_a_route_there_are_no_such_pages() -> None:
    plain = Service()
    for path in ("/v2", "/v2/health/live", "/v2/models/inference", "/v2/models/stats", "/v2/logging"):
        answer = plain.call("GET", path)
        assert (answer.status, answer.text) == (404, "not found")


def test_looking_is_not_counted_and_a_version_counts_for_its_route(service: Service) -> None:
    for path in ("/v2", "/v2/health/live", "/v2/models/inference/ready"):
        service.call("GET", path)
    service.call("POST", "/v2/models/inference/versions/1/infer", BODY)
    (family,) = [one for one in service.metrics.families() if one.name == "engine_throughput"]
    assert [(sample.labels["endpoint"], sample.value) for sample in family.samples] == [(INFER, 1)]


def test_beside_it_other_protocols_speak_as_they_do() -> None:
    spoken = Protocols({INFER: OIP, "/v2/rerank": PLAIN, "/v1/embeddings": OPENAI})
    assert spoken.of(INFER) == spoken.of("/v2/models/x") == spoken.of("/v2") == spoken.of("/v2/logging") == OIP
    assert spoken.of("/v2/rerank") == PLAIN
    assert spoken.of("/v1/models") == OPENAI
    assert spoken.of("/readyz") == PLAIN
    routes = (RouteSection(INFER, ("first",), protocol=OIP), RouteSection("/v2/rerank", ("first",), protocol=OPENAI))
    assert models.lists(replace(deployment(), routes=routes)) == {}  # its list would be where the models are


# --- requests --------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_goes_with_the_request(service: Service) -> None:
    service.call("POST", INFER, BODY)
    (item,) = service.client.submitted
    assert item.asked == Asked("inference", len(BODY), "7")
    assert item.body == BODY
    assert item.timeout_s == 1.0  # of 3
    assert item.qos == Qos(priority=2)


def test_its_time_is_what_all_that_limit_it_leave(service: Service) -> None:
    late = b'{"inputs": [], "parameters": {"timeout": 99000000}}'
    service.call("POST", INFER, late)
    service.call("POST", INFER, BODY, headers=[("x-request-timeout", "0.5")])
    assert [item.timeout_s for item in service.client.submitted] == [3.0, 0.5]


@pytest.mark.parametrize(
    ("priority", "qos", "found"),
    [
        (0, None, None),
        (1, None, None),
        (2, None, Qos(priority=1)),
        (9, None, Qos(priority=2)),
        (2, Qos(5, 2, b"c"), Qos(5, 2, b"c")),
        (3, Qos(5, 1, b"c"), Qos(5, 2, b"c")),
    ],
)
def test_priorities_are_classes(priority: int, qos: Qos | None, found: Qos | None) -> None:
    assert asking.standing(Terms(priority=priority), qos) == found


def test_a_long_one_is_read_beside_the_event_loop(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    threads = []
    read = asking.read

    def spy(*given: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return read(*given)

    monkeypatch.setattr(asking, "read", spy)
    long = b'{"inputs": [{"data": [' + b"1," * 50_000 + b"1]}]}"
    service.call("POST", INFER, BODY)
    service.call("POST", INFER, long)
    service.call("POST", INFER, BODY + bytes(200_000), headers=[("inference-header-content-length", str(len(BODY)))])
    assert threads == [True, False, True]
    assert service.gate.held == service.gate.pending == 0


def test_an_answer_has_the_type_that_it_brings(service: Service) -> None:
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": "3"}
    service.client.reply = lambda item: Answer(200, item.body, "image/png", headers=headers)
    answer = service.call("POST", INFER, BODY)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["inference-header-content-length"] == "3"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (Answer(500, b"inference internal error"), {"error": "inference internal error"}),
        (Answer(408, b"inference timeout"), {"error": "inference timeout"}),
        (
            Answer(400, b'{"error": "mine", "code": 3}', headers={"content-type": "application/json"}),
            {"error": "mine", "code": 3},
        ),
        (Answer(400, b'{"code": 3}', headers={"content-type": "application/json"}), {"error": '{"code": 3}'}),
        (Answer(418, b"\xff<p>", headers={"content-type": "text/html"}), {"error": "\ufffd<p>"}),
    ],
)
def test_errors_of_workers_are_in_a_form_that_clients_read(service: Service, answer: Answer, body: Any) -> None:
    service.client.reply = lambda item: answer
    assert ask(service, "POST", INFER, BODY) == (answer.status, body)


def test_what_cannot_be_read_holds_nothing(service: Service) -> None:
    assert ask(service, "POST", INFER, b"{")[0] == 400
    assert service.client.submitted == []
    assert service.gate.held == service.gate.pending == 0


# --- both ways in ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    options = {"max_request_size": 200_000, "compression": True, "tells": True, "protocol": OIP}
    with ExitStack() as stack:
        yield [
            stack.enter_context(frontend(tmp_path_factory.mktemp(server), server=server, **options))
            for server in ("lean", "asgi")
        ]


def request(body: bytes, *fields: str, path: str = INFER) -> bytes:
    head = "".join(
        f"{field}\r\n" for field in (f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *fields)
    )
    return head.encode() + b"\r\n" + body


LENGTH = "inference-header-content-length"
LONG = b'{"id": "l", "inputs": [' + b"1," * 40_000 + b"1]}"
BOTH = ("content-encoding: deflate", "accept-encoding: deflate;q=1, identity;q=0")
SAME = {
    "plain": request(BODY),
    "with bytes behind": request(BODY + b"\xff\x00", f"{LENGTH}: {len(BODY)}"),
    "a version": request(BODY, path="/v2/models/second/versions/1/infer"),
    "no JSON": request(b"\xff\x00", f"{LENGTH}: 0"),
    "gzip": request(gzip.compress(BODY, mtime=0), "content-encoding: gzip"),
    "deflate": request(zlib.compress(BODY), "content-encoding: deflate"),
    "deflate, both ways": request(zlib.compress(BODY), *BOTH),
    "long": request(LONG),
    "long, in gzip": request(gzip.compress(LONG, mtime=0), "content-encoding: gzip"),
    "broken": request(b"{"),
    "long and broken": request(b"[" * 80_000),
    "empty": request(b""),
    "a length beyond the body": request(BODY, f"{LENGTH}: 9999"),
    "a negative length": request(BODY, f"{LENGTH}: -1"),
    "two lengths": request(BODY, f"{LENGTH}: 1", f"{LENGTH}: 1"),
    "a length that cuts the JSON": request(BODY, f"{LENGTH}: 5"),
    "a sequence": request(b'{"inputs": [], "parameters": {"sequence_id": 3}}'),
    "shared memory": request(b'{"outputs": [{"name": "a", "parameters": {"shared_memory_region": "r"}}]}'),
    "corrupt": request(b"rubbish", "content-encoding: deflate"),
    "too large": request(b"x" * 200_001),
    "a bad header": request(BODY, "x-request-timeout: soon"),
    "no such model": request(BODY, path="/v2/models/other/infer"),
    "no such path": request(BODY, path="/nope"),
    "bytes that are no request": b"POST /v2/models/inference/infer HTTP/1.1\r\nhost x\r\n\r\n",
}  # fmt: skip
GOOD = (
    "plain",
    "with bytes behind",
    "a version",
    "no JSON",
    "gzip",
    "deflate",
    "deflate, both ways",
    "long",
    "long, in gzip",
)


def look(running: Running, data: bytes) -> tuple[int, dict[str, str], Any]:
    with socket.create_connection(running.address, timeout=PATIENCE_S) as sock:
        sock.sendall(data)
        with sock.makefile("rb") as file:
            status = int(file.readline().split()[1])
            headers: dict[str, str] = {}
            while line := file.readline().strip():
                name, _, value = line.decode().partition(": ")
                # Whether the connection ends behind a refusal depends on how much of the body has come by then.
                if name.lower() not in ("connection", "date", "x-request-id", "server-timing"):
                    headers[name] = value
            body = file.read(int(headers["content-length"]))
    if headers.get("content-encoding") == "deflate":
        body = zlib.decompress(body)
    return status, headers, json.loads(body)


@pytest.mark.parametrize("name", SAME)
def test_both_ways_in_mean_the_same(servers: list[Running], name: str) -> None:
    one, other = (look(running, SAME[name]) for running in servers)
    assert one == other
    status, headers, body = one
    if name in GOOD:
        assert status == 200
        assert body["asked"][0] == ("second" if name == "a version" else "inference")
        assert ("content-encoding" in headers) == ("both" in name)
    else:
        assert status >= 400
        assert headers["content-type"] == "application/json"
        assert list(body) == ["error"]
        assert isinstance(body["error"], str)


def test_the_pages_are_reached_both_ways(servers: list[Running]) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/inference/ready", "/v2"):
        one, other = (look(running, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()) for running in servers)
        assert one == other
        assert one[0] == 200


def test_statistics_of_a_model_that_did_nothing() -> None:
    stats = oip.statistics("m", INFER, ("first",), [], "engine")
    assert stats["inference_stats"]["success"] == {"count": 0, "ns": 0}


def test_compression_off_refuses_deflate_in_its_form() -> None:
    made = Service(protocol=OIP, frontend=FrontendSection(address="127.0.0.1", port=0))
    answer = made.call("POST", INFER, zlib.compress(BODY), headers=[("content-encoding", "deflate")])
    assert (answer.status, json.loads(answer.body)) == (415, {"error": "unsupported content-encoding"})

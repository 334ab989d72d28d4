"""A thousand requests at once, good and bad together: each gets its own answer."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from harness import SERVICES, Deployed, deployed
from load import crowd, right

pytestmark = pytest.mark.unmeasured

REQUESTS = 1000
BAD = {
    "client_error": (400, "bad request"),
    "validation_error": (422, "request validation error"),
    "server_error": (500, "internal error"),
    "encoding_error": (500, "encoding error"),
}


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """A connection each on both sides: more than the usual soft limit of 1,024, which children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def chain(many_descriptors: None) -> Iterator[Deployed]:
    with deployed(SERVICES / "chain.toml", "--timeout", "60") as running:
        yield running


def request(number: int) -> dict[str, Any]:
    """Every third is bad, in turn in each way, at either stage, raised or returned, with a text of its own."""
    body: dict[str, Any] = {"id": number}
    if number % 3 == 0:
        turn = number // 3
        do = list(BAD)[turn % len(BAD)]
        how = "raise" if turn % 2 else "return"
        stage = "first" if turn % 5 < 3 else "second"
        body["acts"] = {stage: {"do": do, "text": f"number {number}", "how": how}}
    return body


def test_a_thousand_at_once_each_get_their_own_answer(chain: Deployed) -> None:
    bodies = [request(number) for number in range(REQUESTS)]
    answers = crowd(f"{chain.url}/both", bodies)
    for number, (body, answer) in enumerate(zip(bodies, answers, strict=True)):
        if "acts" in body:
            ((_, act),) = body["acts"].items()
            status, prefix = BAD[act["do"]]
            assert (answer.status_code, answer.text) == (status, f"{prefix}: number {number}")
        else:
            assert right(body, answer), f"{number}: {answer.status_code} {answer.text}"
    status = chain.status()
    assert all(stage["queued"] == stage["in_flight"] == 0 for stage in status["stages"])


def test_clients_that_come_in_a_burst_stand_in_line(chain: Deployed) -> None:
    """More than the hundred for which asyncio makes room by itself; the others would be sent away for a second."""
    url = urlsplit(chain.url)
    assert url.hostname is not None
    frontends = chain.processes("frontend")
    with ExitStack() as open_ones:
        for process in frontends:
            process.suspend()
            open_ones.callback(process.resume)
        line = [
            open_ones.enter_context(socket.create_connection((url.hostname, url.port), timeout=20.0))
            for _ in range(500)
        ]
        for process in frontends:
            process.resume()
        for waiting in line:
            waiting.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert {waiting.recv(12) for waiting in line} == {b"HTTP/1.1 200"}

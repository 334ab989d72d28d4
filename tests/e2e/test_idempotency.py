"""Tries of one request, by whatever process of the frontend they come, are computed once and told the same."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from harness import SERVICES, Deployed, altered, deployed, wait_for

FRONTENDS = 2


@dataclass(frozen=True)
class Chain:
    """Two stages that keep a journal, behind several processes."""

    deployed: Deployed
    journal: Path

    def begun(self, name: str) -> list[str]:
        """The stages that have begun this request."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [line.split()[0] for line in lines if line.split()[1] == name]

    def counted(self, what: str) -> float:
        return self.deployed.metrics()[f"engine_{what}"]


@contextlib.contextmanager
def started() -> Iterator[Chain]:
    with altered(SERVICES / "chain.toml", workers=str(FRONTENDS)) as file:
        file.write_text(file.read_text().replace("num = 2", "num = 1"))  # nobody else who might compute a slow one too
        journal = file.parent / "journal"
        with deployed(file, env={"STAGELINE_JOURNAL": str(journal)}) as running:
            yield Chain(running, journal)


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with started() as made:
        yield made


def slow(name: str, s: float = 0.5) -> dict[str, Any]:
    return {"id": name, "acts": {"first": {"do": "sleep", "s": s}}}


def test_tries_at_once_and_later_ones_are_one_computation_by_both_ways_in(chain: Chain) -> None:
    content = json.dumps(slow("together")).encode()

    def ask(number: int) -> httpx.Response:
        body = content if number % 2 else iter([content])  # in chunks it is Falcon that answers
        with chain.deployed.client() as client:
            return client.post("/both", content=body, headers={"idempotency-key": "together"})

    joined, replayed = chain.counted("idempotency_joined_total"), chain.counted("idempotency_replayed_total")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    answers += [ask(0), ask(1)]
    assert [answer.status_code for answer in answers] == [200] * 10
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == ["", *["true"] * 9]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 10
    assert chain.begun("together") == ["first", "second"]
    joined = chain.counted("idempotency_joined_total") - joined
    replayed = chain.counted("idempotency_replayed_total") - replayed
    assert (joined + replayed, replayed >= 2) == (9, True)
    assert chain.counted("idempotency_kept") >= 1
    assert chain.counted("idempotency_kept_bytes") > len(answers[0].content)


def test_another_body_is_422_and_a_key_belongs_to_its_route_and_its_client(chain: Chain) -> None:
    with chain.deployed.client() as client:

        def ask(name: str, **headers: str) -> httpx.Response:
            return client.post("/both", json={"id": name}, headers={"idempotency-key": "mine", **headers})

        assert ask("one").json()["id"] == "one"
        other = ask("two")
        assert other.status_code == 422
        assert "idempotency-key" in other.text
        assert ask("two", authorization="Bearer two").json()["id"] == "two"
        assert ask("one").headers["idempotent-replayed"] == "true"
        for bad in ("", "x" * 256):
            assert client.post("/both", json={}, headers={"idempotency-key": bad}).status_code == 400


def test_an_error_of_the_items_own_is_kept_and_one_of_the_service_is_not(chain: Chain) -> None:
    with chain.deployed.client() as client:
        for do, status, times in (("client_error", 400, 1), ("server_error", 500, 2)):
            body = {"id": do, "acts": {"first": {"do": do, "text": "so it is"}}}
            first, again = [client.post("/both", json=body, headers={"idempotency-key": do}) for _ in range(2)]
            assert first.status_code == again.status_code == status
            assert first.text == again.text
            assert chain.begun(do) == ["first"] * times


def test_a_killed_frontend_leaves_the_computation_to_the_next_try() -> None:
    with started() as chain:
        gate = chain.journal.with_name("gate")  # not a time: finding the victim takes longer than any on a busy machine
        body = json.dumps({"id": "orphan", "acts": {"first": {"do": "wait", "gate": str(gate)}}}).encode()
        head = f"POST /both HTTP/1.1\r\nhost: x\r\nidempotency-key: orphan\r\ncontent-length: {len(body)}\r\n\r\n"
        where = urlsplit(chain.deployed.url)
        with socket.create_connection((where.hostname, where.port)) as first:
            first.sendall(head.encode() + body)
            wait_for("its computation", lambda: chain.begun("orphan"))
            (victim,) = wait_for("its process", lambda: serving(chain, first.getsockname()[1]))
            victim.kill()
            first.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert first.recv(1) == b""
        with chain.deployed.client() as client, ThreadPoolExecutor(1) as pool:
            again = pool.submit(client.post, "/both", content=body, headers={"idempotency-key": "orphan"})
            wait_for("the next try", lambda: chain.counted("idempotency_joined_total") == 1)
            gate.touch()
            answer = again.result(30)
        assert answer.status_code == 200, answer.text
        assert answer.headers["idempotent-replayed"] == "true"
        assert chain.begun("orphan") == ["first", "second"]


def serving(chain: Chain, port: int) -> list[psutil.Process]:
    """The process of the frontend to which the connection from this port goes; none when the system's table of
    connections, which changes while it is read, did not show it."""
    return [
        process
        for process in chain.deployed.processes("frontend")
        if any(one.raddr and one.raddr.port == port for one in process.net_connections("tcp"))
    ]

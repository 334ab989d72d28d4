"""The access log: its lines, and that whoever reads them cannot hold the service up."""

from __future__ import annotations

import asyncio
import json
import os
import select
from pathlib import Path
from typing import Any

import pytest
from fakes import Service
from leanbench import Bench, StreamBench, plain, run, settle

from engine.log import Output
from frontend.accesslog import AccessLog, _pieces, line, peer, times_of

ABOUT: dict[str, Any] = {
    "client": "10.0.0.7",
    "method": "POST",
    "path": "/inference",
    "status": 200,
    "came": 8,
    "sent": 14,
    "took_s": 0.0123,
    "request_id": "abc",
    "timing": 'encode-queue;dur=1.20;desc="full", encode-batch;dur=0.30, encode;dur=8.00, total;dur=12.30',
    "reason": "",
}


def test_a_line_of_text() -> None:
    assert line("text", 1_000_000_000.25, **ABOUT) == (
        "2001-09-09T01:46:40.250Z 10.0.0.7 POST /inference 200 8B 14B 12.3ms "
        "encode-queue=1.2(full) encode-batch=0.3 encode=8 id=abc"
    )


def test_a_line_of_json() -> None:
    assert json.loads(line("json", 1_000_000_000.25, **ABOUT)) == {
        "time": "2001-09-09T01:46:40.250Z",
        "client": "10.0.0.7",
        "method": "POST",
        "path": "/inference",
        "status": 200,
        "request_bytes": 8,
        "response_bytes": 14,
        "ms": 12.3,
        "request_id": "abc",
        "stages_ms": {"encode-queue": 1.2, "encode-batch": 0.3, "encode": 8.0},
        "why": {"encode-queue": "full"},
    }


def test_who_came_with_a_key_is_named() -> None:
    assert " key=batch id=abc" in line("text", 0.0, **ABOUT, key="batch")
    assert json.loads(line("json", 0.0, **ABOUT, key="batch"))["key"] == "batch"


def test_a_refusal_says_why() -> None:
    refused = {**ABOUT, "status": 429, "timing": 'refused;desc="late";dur=300, allowed;dur=100', "reason": "late"}
    told = json.loads(line("json", 0.0, **refused))
    assert (told["status"], told["reason"], told["why"]) == (429, "late", {"refused": "late"})
    assert "reason=late" in line("text", 0.0, **refused)


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_client_says_begins_no_line_of_its_own(form: str) -> None:
    made = line(form, 0.0, **{**ABOUT, "path": "/a\n2001 forged \x1b[31m\u2028", "request_id": 'x"\r\n'})
    assert made.splitlines() == [made]
    assert "\x1b" not in made


def test_times_without_any_are_none() -> None:
    assert times_of("") == ({}, {})


@pytest.mark.parametrize(
    ("address", "name"), [(("::1", 5, 0, 0), "::1"), (["1.2.3.4", 5], "1.2.3.4"), ("", ""), (None, "")]
)
def test_a_peer_is_its_address(address: object, name: str) -> None:
    assert peer(address) == name


def written(work: Any, file: Path, form: str = "json") -> list[dict[str, Any]]:
    """What ``work`` has told, with an access log into a file."""
    with file.open("wb") as out:
        access = AccessLog(form, Output(out.fileno()))
    asyncio.run(work(access))
    access.flush()
    access._output.let_go()
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_lines_of_one_turn_are_written_together_at_its_end(tmp_path: Path) -> None:
    async def two(access: AccessLog) -> None:
        access.note(**ABOUT)
        access.note(**ABOUT)
        assert (tmp_path / "log").read_bytes() == b""
        await asyncio.sleep(0)
        assert len((tmp_path / "log").read_text().splitlines()) == 2

    assert len(written(two, tmp_path / "log")) == 2


def test_a_reader_that_takes_nothing_costs_lines() -> None:
    reading, writing = os.pipe()
    try:
        access = AccessLog("text", Output(writing))

        async def many() -> None:
            for _ in range(5000):
                access.note(**ABOUT)

        asyncio.run(many())
        access.flush()
        assert 0 < access.lost < 5000
    finally:
        os.close(reading)
        access.note = None  # type: ignore[assignment]  # nobody writes any more
        access._output.let_go()
        os.close(writing)


def test_lines_are_written_whole_however_many_there_are(tmp_path: Path) -> None:
    """A pipe takes PIPE_BUF bytes at once, and other processes write to it as well."""
    pieces = list(_pieces([f"line {number} " + "x" * 90 for number in range(1000)]))
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece, _ in pieces)
    assert sum(count for _, count in pieces) == 1000
    assert [piece.count(b"\n") for piece, _ in pieces] == [count for _, count in pieces]
    (long,) = _pieces(["x" * 10_000])
    assert long == (b"x" * 10_000 + b"\n", 1)


def test_a_reader_that_has_gone_costs_lines() -> None:
    reading, writing = os.pipe()
    access = AccessLog("text", Output(writing))
    os.close(reading)
    os.close(writing)

    async def one() -> None:
        access.note(**ABOUT)

    asyncio.run(one())
    access.flush()
    access._output.let_go()
    assert access.lost == 1


def test_by_the_application_routes_and_refusals_are_told_and_probes_are_not(tmp_path: Path) -> None:
    service = Service()
    with (tmp_path / "log").open("wb") as out:
        service.metrics.access = AccessLog("json", Output(out.fileno()))
    service.call("POST", "/inference", b"{}", headers=[("x-request-id", "mine")])
    service.call("GET", "/healthz")
    service.call("GET", "/nowhere")
    service.metrics.access.flush()
    service.metrics.access._output.let_go()
    told = [json.loads(text) for text in (tmp_path / "log").read_text().splitlines()]
    assert [(one["method"], one["path"], one["status"]) for one in told] == [
        ("POST", "/inference", 200),
        ("GET", "/nowhere", 404),
    ]
    assert told[0]["request_id"] == "mine"
    assert told[0]["request_bytes"] == 2


class Told(AccessLog):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def note(self, **about: Any) -> None:
        self.told.append(about)


def test_the_short_way_tells_the_same() -> None:
    async def scenario() -> None:
        bench = Bench()
        access = bench.shared.access = Told()
        bench.feed(plain(b"1234", "x-request-id: mine"))
        await settle()
        assert [(one["status"], one["came"], one["request_id"], one["client"]) for one in access.told] == [
            (200, 4, "mine", "192.0.2.1")
        ]
        assert access.told[0]["sent"] == len(bench.replies[0][1])
        assert "total;dur=" in access.told[0]["timing"]
        bench.gate.draining = True
        bench.feed(plain(b"1234"))
        assert (access.told[1]["status"], access.told[1]["reason"]) == (503, "draining")
        assert access.told[1]["sent"] == len(bench.replies[1][1])

    run(scenario())


def test_the_short_way_tells_of_streams_and_of_clients_that_leave() -> None:
    async def scenario() -> None:
        bench = StreamBench()
        access = bench.shared.access = Told()
        bench.send(b"data: 1\n\n")
        bench.end()
        await settle()
        assert [one["status"] for one in access.told] == [200]
        assert access.told[0]["sent"] >= len(b"data: 1\n\n")
        bench.feed(plain(b"1"))
        bench.connection.connection_lost(None)
        assert (access.told[1]["status"], access.told[1]["reason"]) == (499, "client_gone")

    run(scenario())

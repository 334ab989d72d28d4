"""More connections than descriptors: idle ones make room, and nobody's request fails for it."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from running import frontend

from frontend.crowd import AT_ONCE, LOOK, SPARE, Crowd

FULL = 1000 - SPARE


@dataclass(eq=False)
class One:
    since: float
    idle: bool = True


def since(one: One) -> float:
    return one.since


def test_the_longest_idle_make_room() -> None:
    crowd = Crowd(lambda: 1000)
    waiting = [One(float(number), number % 2 == 0) for number in reversed(range(100))]
    ended = crowd.admit(FULL, lambda: waiting, since)
    assert ended is not None
    assert [one.since for one in ended] == [2.0 * number for number in range(AT_ONCE)]
    assert (crowd.ended, crowd.refused) == (AT_ONCE, 0)


def test_where_none_is_idle_new_ones_are_refused_and_not_everybody_is_looked_at_for_each() -> None:
    crowd, looks = Crowd(lambda: 1000), 0

    def busy() -> list[One]:
        nonlocal looks
        looks += 1
        return [One(0.0, idle=False)]

    assert [crowd.admit(FULL, busy, since) for _ in range(40)] == [None] * 40
    assert (crowd.ended, crowd.refused, looks) == (0, 40, 40 * LOOK // FULL)


def test_of_many_at_once_each_takes_one_place_and_the_last_descriptors_stay_free() -> None:
    """A queue of new connections is taken in one turn of the loop, in which none that was ended is gone yet."""
    crowd, waiting = Crowd(lambda: 1000), [One(float(number)) for number in range(FULL)]
    gone: list[One] = []
    admitted = 0
    for _ in range(200):
        ended = crowd.admit(FULL + admitted, lambda: waiting, since)
        gone += ended or []
        admitted += ended is not None
    assert admitted == SPARE - SPARE // 4
    assert len(gone) == len(set(gone)) == admitted
    assert crowd.refused == 200 - admitted


@pytest.mark.parametrize(("limit", "most"), [(1024, 1024 - SPARE), (100, 75)])
def test_some_descriptors_stay_free(limit: int, most: int) -> None:
    crowd = Crowd(lambda: limit)
    assert crowd.admit(most - 1, list, since) == []
    assert crowd.admit(most, list, since) is None


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits other processes")
@pytest.mark.parametrize("server", ["lean", "asgi"])
def test_idle_connections_make_nobody_elses_request_fail(tmp_path: Path, server: str) -> None:
    with frontend(tmp_path, server=server) as running, ExitStack() as stack:
        worker = running.events.what("started")["pid"]
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (200, 200))
        with httpx.Client(base_url=running.url, timeout=20) as client:
            for number in range(300):
                stack.enter_context(socket.create_connection(running.address, timeout=20))
                if server == "lean" and number % 10 == 0:  # gunicorn's do not say which is idle for how long
                    assert client.post("/inference", content=b"kept").content == b"kept"
            for _ in range(20):
                fresh = httpx.post(f"{running.url}/inference", content=b"fresh", timeout=20)
                assert (fresh.status_code, fresh.content) == (200, b"fresh")
            assert 'connections_dropped_total{which="idle"}' in client.get("/metrics").text
        assert running.text().count("as many connections as there are descriptors") == 1
        assert "Traceback" not in running.text()

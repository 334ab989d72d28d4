"""Stopping is orderly, bounded, and leaves no process: asked, asked twice, or killed."""

from __future__ import annotations

import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
from harness import SERVICES, deployed, up, wait_for
from load import Answer, crowd, right

CHAIN = SERVICES / "chain.toml"


def slow(number: int, seconds: float) -> dict[str, object]:
    return {"id": number, "acts": {"second": {"do": "sleep", "s": seconds}}}


def test_sigterm_under_load_answers_every_running_request_and_exits_0() -> None:
    with deployed(CHAIN) as running:
        bodies = [slow(number, 0.05) for number in range(100)]
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.extend(crowd(f"{running.url}/both", bodies)))
        asking.start()
        try:
            # Every request has been admitted, some are still being computed: 100 take 2.5 s.
            wait_for("100 admitted requests", lambda: _submitted(running.metrics()) >= 100)
            began = time.monotonic()
            code = running.terminate()
        finally:
            asking.join(60)
        assert code == 0, running.tail()
        assert time.monotonic() - began < 10 + 6
        assert len(answers) == 100
        assert [a.text for b, a in zip(bodies, answers, strict=True) if not right(b, a)] == []


def _submitted(metrics: dict[str, float]) -> float:
    """Requests that the frontend has answered or the broker holds."""
    done = sum(value for name, value in metrics.items() if name.startswith("engine_throughput_total"))
    return done + metrics["engine_remaining_task"]


def test_sigint_stops_like_sigterm() -> None:
    with deployed(CHAIN) as running:
        running.signal(signal.SIGINT)
        assert running.exited() == 0


def test_a_request_that_arrives_during_the_drain_gets_an_answer() -> None:
    with deployed(CHAIN) as running:
        where = urlsplit(running.url)
        body = b'{"id": 1}'
        head = b"POST /both HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as late:
            late.sendall(head)
            busy = threading.Thread(target=crowd, args=(f"{running.url}/both", [slow(1, 2.0)]))
            busy.start()
            try:
                wait_for("a running request", lambda: running.metrics()["engine_remaining_task"] >= 1)
                running.signal(signal.SIGTERM)
                wait_for("the end of accepting", lambda: not _accepts(where.hostname or "", where.port or 0))
                late.sendall(body)
                answer = late.recv(65536)
            finally:
                busy.join(30)
        status = int(answer.split()[1])
        assert status in (200, 503), answer
        if status == 503:
            assert b"retry-after" in answer.lower()
        assert running.exited() == 0


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_second_sigint_stops_at_once() -> None:
    with deployed(CHAIN) as running:
        busy = threading.Thread(target=_ask_in_vain, args=(running.url,))
        busy.start()
        try:
            wait_for("a running request", lambda: running.metrics()["engine_remaining_task"] >= 1)
            running.signal(signal.SIGINT)
            wait_for("the drain", lambda: "draining" in running.log)
            began = time.monotonic()
            running.signal(signal.SIGINT)
            running.exited()
            assert time.monotonic() - began < 4
        finally:
            busy.join(30)
        running.gone(within_s=2)


def _ask_in_vain(url: str) -> None:
    try:
        httpx.post(f"{url}/both", json=slow(1, 9.0), timeout=20, trust_env=False)
    except httpx.HTTPError:
        pass  # the connection is cut, as asked


def test_a_request_longer_than_the_grace_does_not_hold_the_stop() -> None:
    with deployed(CHAIN, "--grace", "1") as running:
        busy = threading.Thread(target=_ask_in_vain, args=(running.url,))
        busy.start()
        try:
            wait_for("a running request", lambda: running.metrics()["engine_remaining_task"] >= 1)
            began = time.monotonic()
            running.signal(signal.SIGTERM)
            running.exited()
            assert time.monotonic() - began < 1 + 7
        finally:
            busy.join(30)
        running.gone(within_s=2)


def test_kill_9_of_the_supervisor_leaves_no_process() -> None:
    with deployed(CHAIN) as running:
        assert len(running.processes()) >= 7  # supervisor, broker, frontend and its worker, four workers
        running.signal(signal.SIGKILL)
        assert running.exited() == -signal.SIGKILL
        running.gone()


def test_a_deployment_starts_again_where_one_was_killed() -> None:
    with deployed(CHAIN) as running:
        running.signal(signal.SIGKILL)
        running.exited()
        running.gone()
        again = up(CHAIN, folder=running.folder)
        try:
            assert httpx.post(f"{again.url}/both", json={"id": 1}, trust_env=False).status_code == 200
            assert again.terminate() == 0
            again.gone()
        finally:
            again.kill()

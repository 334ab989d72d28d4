"""The frontend as a process: starting, stopping, worker processes that die."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from running import Raw, Running, frontend, launched, post, wait_until

from engine.errors import StartError
from engine.exitcodes import ExitCode
from frontend.listening import PortInUse, listen, url, where


@pytest.fixture(params=["lean", "asgi"])
def server(request: pytest.FixtureRequest) -> str:
    """Who reads HTTP/1.1; what is promised of stopping and dying holds for both."""
    chosen: str = request.param
    return chosen


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# --- listening -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "start"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("localhost", "http://localhost:"),
        ("0.0.0.0", "http://127.0.0.1:"),
        ("::1", "http://[::1]:"),
        ("::", "http://[::1]:"),
    ],
)
def test_names_and_addresses_of_both_families_are_listened_on(address: str, start: str) -> None:
    if ":" in address and not _has_ipv6():
        with pytest.raises(StartError):
            listen(address, 0)
        return
    sockets = listen(address, 0)
    try:
        found = url(address, sockets[0])
        assert found.startswith(start)
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        port = int(found.rpartition(":")[2])
        socket.create_connection((found[7:].rpartition(":")[0].strip("[]"), port), timeout=5).close()
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("0.0.0.0", "all IPv4 addresses, 0.0.0.0"),
        ("0", "all IPv4 addresses, 0.0.0.0"),
        ("::", "all addresses, [::]"),
        ("127.0.0.1", ""),
        ("127.1", "127.0.0.1"),
        ("::1", ""),
    ],
)
def test_where_it_listens_is_said_where_the_url_does_not(address: str, said: str) -> None:
    if ":" in address and not _has_ipv6():
        return
    sockets = listen(address, 0)
    try:
        assert where(address, sockets) == said
        if said.startswith("all addresses"):  # whatever the system's rule: both families
            socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1]), timeout=5).close()
    finally:
        for sock in sockets:
            sock.close()


def test_the_addresses_of_a_name_are_said() -> None:
    found = [listen("127.0.0.1", 0), listen("127.0.0.2", 0)]
    try:
        assert where("service", [sock for sockets in found for sock in sockets]) == "127.0.0.1 and 127.0.0.2"
    finally:
        for sockets in found:
            sockets[0].close()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_port_in_use_is_said_so() -> None:
    (first,) = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    try:
        with pytest.raises(PortInUse, match=f"port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", port)
    finally:
        first.close()


@pytest.mark.parametrize("address", ["no.such.host.invalid", "203.0.113.1", "a" * 300])
def test_an_address_that_is_not_ours_cannot_be_listened_on(address: str) -> None:
    with pytest.raises(StartError):
        listen(address, 0)


def test_a_process_whose_port_is_in_use_exits_busy_with_a_reason(tmp_path: Path) -> None:
    (taken,) = listen("127.0.0.1", 0)
    try:
        with launched(tmp_path, port=taken.getsockname()[1]) as running:
            assert "is in use" in running.status.wait(lambda line: line["event"] == "failed")["reason"]
            assert running.process.wait(20) == ExitCode.BUSY
            assert "Traceback" not in running.text()
            assert "is in use" not in running.text()  # whoever was notified tells it, once
    finally:
        taken.close()


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_answers_what_is_under_way_and_ends_idle_connections(server: str, tmp_path: Path, number: int) -> None:
    with frontend(tmp_path, server=server, keepalive=3600.0, grace=20.0) as running:
        with running.connect() as idle, running.connect() as fresh, running.connect() as busy:
            assert idle.send(post(b"hello")).reply().status == 200
            busy.send(post(b"after 0.5"))
            running.events.what("submitted", body="after 0.5")
            began = time.monotonic()
            running.process.send_signal(number)
            reply = busy.reply()
            assert (reply.status, reply.body, reply.closes) == (200, b"after 0.5", True)
            assert busy.at_end()
            assert idle.at_end()
            assert fresh.at_end()
        assert running.process.wait(20) == ExitCode.OK
        assert time.monotonic() - began < 10, "idle connections held the drain"
        running.events.what("closed")
        assert "Traceback" not in running.text()


def test_a_terminals_interrupt_to_the_whole_group_drains_as_well(tmp_path: Path) -> None:
    with frontend(tmp_path, grace=20.0) as running, running.connect() as busy:
        busy.send(post(b"after 0.5"))
        running.events.what("submitted", body="after 0.5")
        os.killpg(running.process.pid, signal.SIGINT)
        assert busy.reply().body == b"after 0.5"
        assert running.process.wait(20) == ExitCode.OK


def test_a_request_that_arrives_while_draining_is_503(server: str, tmp_path: Path) -> None:
    with frontend(tmp_path, server=server, grace=20.0) as running, running.connect() as raw, running.connect() as busy:
        half = post(b"late")
        busy.send(post(b"after 2"))
        raw.send(half[:20])
        running.events.what("submitted", body="after 2")
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: _refuses(running))
        reply = raw.send(half[20:]).reply()
        assert (reply.status, reply.closes, reply.headers["retry-after"]) == (503, True, "1")
        assert busy.reply().status == 200
        assert running.process.wait(20) == ExitCode.OK


def _refuses(running: Running) -> bool:
    try:
        running.connect().sock.close()
    except OSError:
        return True
    return False


def test_an_idle_http2_connection_does_not_hold_the_drain(tmp_path: Path) -> None:
    with (
        frontend(tmp_path, keepalive=3600.0, grace=20.0) as running,
        httpx.Client(http1=False, http2=True, base_url=running.url, timeout=20) as client,
    ):
        assert client.get("/healthz").status_code == 200
        slow: list[httpx.Response] = []
        thread = in_background(lambda: slow.append(client.post("/inference", content=b"after 0.5")))
        running.events.what("submitted", body="after 0.5")
        began = time.monotonic()
        assert running.stop() == ExitCode.OK
        thread.join()
        assert slow[0].content == b"after 0.5"
        assert time.monotonic() - began < 10


def test_what_is_not_answered_within_the_grace_is_given_up(server: str, tmp_path: Path) -> None:
    with frontend(tmp_path, server=server, grace=0.3, timeout=60.0) as running, running.connect() as raw:
        raw.send(post(b"hang"))
        running.events.what("submitted", body="hang")
        began = time.monotonic()
        assert running.stop() == ExitCode.OK
        assert time.monotonic() - began < 10
        assert raw.at_end()


def test_a_second_interrupt_stops_at_once(server: str, tmp_path: Path) -> None:
    with frontend(tmp_path, server=server, grace=60.0, timeout=60.0) as running, running.connect() as raw:
        raw.send(post(b"hang"))
        running.events.what("submitted", body="hang")
        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: _refuses(running))
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(15) == ExitCode.OK


@pytest.mark.parametrize("where", ["fork", "load", "start"])
def test_a_worker_process_that_is_told_to_stop_while_it_starts_stops(where: str, tmp_path: Path) -> None:
    """Before its handlers are installed, before its event loop runs, and as soon as that does. A lost signal would be
    noticed by nobody: the process would go on serving, and its replacement never come."""
    with frontend(tmp_path, term_at=where, grace=20.0) as running:
        first = running.events.what("started")["pid"]
        assert running.events.what("closed")["pid"] == first
        assert running.events.what("started")["pid"] != first
        assert httpx.post(f"{running.url}/inference", content=b"on", timeout=20).content == b"on"
        assert running.stop() == ExitCode.OK


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_between_the_forks_of_many_workers_is_not_kept_waiting(tmp_path: Path, number: int) -> None:
    with launched(tmp_path, workers=64, grace=20.0) as running:
        running.events.what("started")
        assert running.stop(number) == ExitCode.OK
        assert len([line for line in running.events.rest() if line["what"] == "started"]) < 63  # it was not the last
        assert "Traceback" not in running.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_between_the_forks_of_a_reload_is_like_any_other(tmp_path: Path, number: int) -> None:
    with frontend(tmp_path, workers=2, grace=20.0, stop_at=(3, number)) as running, running.connect() as busy:
        busy.send(post(b"after 0.5"))
        running.events.what("submitted", body="after 0.5")
        running.process.send_signal(signal.SIGHUP)
        reply = busy.reply()
        assert (reply.status, reply.body) == (200, b"after 0.5")
        assert running.process.wait(20) == ExitCode.OK
        assert len([line for line in running.events.rest() if line["what"] == "started"]) <= 3, "it went on"
        assert "Traceback" not in running.text()


# --- worker processes ------------------------------------------------------------------------------------------------


def workers(running: Running) -> set[int]:
    return {child.pid for child in psutil.Process(running.process.pid).children()}


def test_ready_is_said_once_when_all_workers_listen(tmp_path: Path) -> None:
    with frontend(tmp_path, workers=3) as running:
        started = {running.events.what("started")["pid"] for _ in range(3)}
        assert started == workers(running)
        assert running.stop() == ExitCode.OK
        with pytest.raises(AssertionError, match="no such line"):
            running.status.wait(lambda line: line["event"] == "ready", timeout_s=1.0)


def test_a_worker_that_dies_is_replaced_and_the_others_go_on(server: str, tmp_path: Path) -> None:
    with frontend(tmp_path, server=server, workers=2) as running:
        before = {running.events.what("started")["pid"] for _ in range(2)}
        with running.connect() as raw:
            raw.send(post(b"die"))
            assert _cut(raw)
        replacement = running.events.what("started")["pid"]
        assert replacement not in before
        wait_until(lambda: len(workers(running)) == 2)
        for _ in range(10):
            assert httpx.post(f"{running.url}/inference", content=b"on", timeout=20).content == b"on"


def _cut(raw: Raw) -> bool:
    try:
        return raw.at_end()
    except ConnectionResetError:
        return True


def test_workers_die_with_their_master(tmp_path: Path) -> None:
    with frontend(tmp_path, workers=2) as running:
        pids = workers(running)
        running.process.kill()
        running.process.wait(20)
        wait_until(lambda: not any(psutil.pid_exists(pid) and _lives(pid) for pid in pids))


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_written_beside_the_log(tmp_path: Path) -> None:
    with frontend(tmp_path) as running:
        assert httpx.get(f"{running.url}/healthz", timeout=20).status_code == 200
        assert running.stop() == ExitCode.OK
        assert os.listdir(tmp_path) == ["frontend.log"]
        assert all(line.startswith("{") for line in running.text().splitlines())


# --- stopping behind a load balancer, and with a full accept queue ---------------------------------------------------


def test_new_requests_are_refused_in_words_for_the_delay_and_only_then_is_the_port_closed(
    server: str, tmp_path: Path
) -> None:
    with frontend(tmp_path, server=server, grace=20.0, drain_delay=1.5) as running, running.connect() as busy:
        with running.connect() as kept:
            assert kept.send(post(b"before")).reply().status == 200
            busy.send(post(b"after 3"))
            running.events.what("submitted", body="after 3")
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: _is_draining(running))
            for raw in (kept, running.connect()):  # one that was idle, and a new one
                with raw:
                    reply = raw.send(post(b"late")).reply()
                    assert (reply.status, reply.closes, reply.headers["retry-after"]) == (503, True, "1")
                    assert raw.at_end()
        wait_until(lambda: _refuses(running))
        assert busy.reply().body == b"after 3"
        assert running.process.wait(20) == ExitCode.OK
        assert "Traceback" not in running.text()


def _is_draining(running: Running) -> bool:
    """By /readyz: the first thing that says so, while the port is still open."""
    with running.connect() as raw:
        reply = raw.send(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").reply()
        return reply.status == 503 and b'"draining":true' in reply.body


def test_a_second_interrupt_does_not_wait_for_the_delay(tmp_path: Path) -> None:
    with frontend(tmp_path, grace=60.0, drain_delay=60.0) as running:
        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: _is_draining(running))
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(15) == ExitCode.OK


@pytest.mark.parametrize("first", ["master", "workers"])  # to hear of it
@pytest.mark.parametrize("count", [1, 2])
def test_who_stands_in_the_accept_queue_is_served(server: str, count: int, first: str, tmp_path: Path) -> None:
    """A hundred connections made while nobody accepts, their requests sent; then all processes are told to stop."""
    with frontend(tmp_path, server=server, workers=count, grace=20.0) as running:
        pids = workers(running)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        queue = [running.connect() for _ in range(100)]
        try:
            for raw in queue:
                raw.send(post(b"in the queue"))
            running.process.send_signal(signal.SIGTERM)
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            replies = [raw.reply() for raw in queue]
        finally:
            for raw in queue:
                raw.sock.close()
        assert {reply.status for reply in replies} == {200}, "who got a connection does not look elsewhere"
        assert running.process.wait(20) == ExitCode.OK


def _has_heard(pid: int) -> bool:
    """Whether SIGTERM waits no more for that process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True  # it has ended
    pending = next(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd"))
    return not pending >> (signal.SIGTERM - 1) & 1


def test_one_worker_process_that_stops_leaves_the_port_to_the_others(server: str, tmp_path: Path) -> None:
    with frontend(tmp_path, server=server, workers=2, drain_delay=30.0) as running:
        pids = {running.events.what("started")["pid"] for _ in range(2)}
        os.kill(min(pids), signal.SIGTERM)
        running.events.what("closed", pid=min(pids))
        running.events.what("started")
        for _ in range(10):
            assert httpx.post(f"{running.url}/inference", content=b"on", timeout=20).content == b"on"


def test_two_frontends_that_replace_each_other_behind_a_balancer_lose_nothing(tmp_path: Path) -> None:
    """The balancer sends to whoever is ready and tries the other one where a request was refused."""
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    with ExitStack() as stack:
        turn = [
            stack.enter_context(frontend(folder, drain_delay=0.3, grace=20.0, forgets=True)) for folder in folders[:2]
        ]
        done = threading.Event()
        lost: list[object] = []
        answered = 0

        def balance() -> None:
            nonlocal answered
            number = 0
            while not done.is_set():
                number += 1
                for attempt in range(20):
                    one = turn[(number + attempt) % 2]
                    try:
                        with one.connect() as raw:
                            reply = raw.send(post(b"%d" % number)).reply()
                    except ConnectionRefusedError:
                        continue  # nothing was sent
                    except OSError as error:
                        lost.append(error)
                        break
                    if reply.status == 503:
                        continue
                    answered += reply.body == b"%d" % number
                    break
                else:
                    lost.append(number)

        threads = [in_background(balance) for _ in range(4)]
        try:
            for position, folder in enumerate(folders[2:]):
                old = turn[position]
                turn[position] = stack.enter_context(frontend(folder, drain_delay=0.3, grace=20.0, forgets=True))
                assert old.stop() == ExitCode.OK
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert lost == []
        assert answered > 20

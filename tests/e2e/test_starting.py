"""What goes wrong at the start is said in full, with a named exit code, and leaves nothing running."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
from harness import ENGINE, SERVICES, deployed, environment, free_ports, up, wait_for, write_service

from engine.exitcodes import ExitCode

ONE_STAGE = """
[engine]
name = "one"
[[stage]]
name = "only"
worker = "actor:{worker}"
{more}
"""


@pytest.fixture
def service(folder: Path) -> Path:
    shutil.copy(SERVICES / "actor.py", folder / "actor.py")
    return folder


def one_stage(folder: Path, worker: str, more: str = "") -> Path:
    return write_service(folder, ONE_STAGE.format(worker=worker, more=more))


def engine(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ENGINE, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment("x", env)
    )


@pytest.mark.parametrize(
    ("worker", "reason", "line"),
    [
        ("BadInit", "weights.bin is not there", "raise FileNotFoundError"),
        ("BadWarmUp", "the example does not fit", "raise ZeroDivisionError"),
        ("Missing", "Missing", ""),
    ],
)
def test_a_worker_that_cannot_start_fails_the_deployment(service: Path, worker: str, reason: str, line: str) -> None:
    running = up(one_stage(service, worker), folder=service, wait=False)
    try:
        assert running.exited(within_s=40) == ExitCode.START, running.tail()
        assert reason in running.log
        assert line in running.log, "the user's own traceback"
        assert "is ready" not in running.out
        running.gone(within_s=2)
    finally:
        running.kill()


def test_a_module_that_fails_to_import_shows_its_own_traceback(folder: Path) -> None:
    file = write_service(folder, ONE_STAGE.format(worker="X", more="").replace("actor:", "broken:"), code="")
    (folder / "broken.py").write_text("import a_package_that_nobody_has\n")
    running = up(file, folder=folder, wait=False)
    try:
        assert running.exited(within_s=40) == ExitCode.START
        assert "import a_package_that_nobody_has" in running.log
    finally:
        running.kill()


def test_a_port_in_use_is_said_with_address_and_port(service: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        running = up(one_stage(service, "Checked"), "--port", str(port), folder=service, wait=False)
        try:
            assert running.exited() == ExitCode.BUSY, running.tail()
            assert str(port) in running.log + running.out
            running.gone(within_s=2)
        finally:
            running.kill()


def test_one_deployment_of_a_name_runs_at_a_time() -> None:
    with deployed(SERVICES / "table.toml") as first:
        second = up(SERVICES / "table.toml", folder=first.folder, wait=False)
        try:
            assert second.exited() == ExitCode.BUSY, second.tail()
            assert str(first.pid) in second.log
        finally:
            second.kill()
        with first.client() as client:
            assert client.post("/both", json={"id": 1}).status_code == 200


def test_every_configuration_error_is_told_at_once(folder: Path) -> None:
    file = write_service(
        folder,
        """
[frontend]
port = "eighty"
workerz = 2
[[stage]]
name = "a"
worker = "nothing"
max_batch_sise = 8
[[route]]
path = "/metrics"
stages = ["a", "b"]
""",
    )
    told = engine("up", str(file))
    assert told.returncode == ExitCode.CONFIG
    for expected in ("port", "workerz", "workers", "max_batch_sise", "max_batch_size", "/metrics", "b"):
        assert expected in told.stderr
    assert len([line for line in told.stderr.splitlines() if "stages.toml" in line]) >= 5
    assert "Traceback" not in told.stderr


def test_a_file_that_is_not_there(folder: Path) -> None:
    told = engine("up", str(folder / "nowhere.toml"))
    assert told.returncode == ExitCode.CONFIG
    assert "nowhere.toml" in told.stderr
    assert "Traceback" not in told.stderr


def test_an_unknown_flag_and_an_abbreviated_one_are_refused() -> None:
    for flag in ("--prot", "--log-lev"):
        assert engine("up", str(SERVICES / "table.toml"), flag, "1").returncode == ExitCode.USAGE


@pytest.mark.parametrize("command", ["", "up", "check", "broker", "frontend", "worker", "status"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    told = engine(*filter(None, [command]), "--help")
    assert told.returncode == 0
    assert f"engine {command}".strip() in told.stdout


def test_nobody_answers_status() -> None:
    told = engine("status", str(SERVICES / "table.toml"), "--run-dir", "/tmp/sl-there-is-none")
    assert told.returncode == ExitCode.UNREACHABLE
    assert "Traceback" not in told.stderr


def test_flags_override_the_environment_which_overrides_the_file() -> None:
    env = {"ENGINE_CAPACITY": "7", "ENGINE_MAX_REQUEST_SIZE": "100"}
    with deployed(SERVICES / "table.toml", "--capacity", "5", env=env) as running, running.client() as client:
        assert running.status()["capacity"] == 5
        assert client.post("/both", content=b"x" * 101).status_code == 413


def test_the_frontend_tells_the_truth_while_workers_load(service: Path) -> None:
    """Not ready until the slowest worker has loaded; until then requests get 503 with Retry-After."""
    port = free_ports(1)
    file = one_stage(service, "Actor", 'args = { name = "only", load_s = 6.0 }')
    running = up(file, "--port", str(port), folder=service, wait=False)
    url = f"http://127.0.0.1:{port}"
    try:

        def ready() -> httpx.Response | None:
            try:
                return httpx.get(f"{url}/readyz", trust_env=False)
            except httpx.HTTPError:
                return None

        first = wait_for("an answer", ready)
        assert first.status_code == 503

        def refused() -> httpx.Response | None:
            # A worker that is only just away is waited for; one that takes long to come is not.
            answer = httpx.post(
                f"{url}/inference", json={"id": 1}, headers={"x-request-timeout-ms": "100"}, trust_env=False
            )
            return answer if answer.status_code == 503 else None

        early = wait_for("a refusal", refused, within_s=5.0)
        assert int(early.headers["retry-after"]) >= 1
        running.wait_ready()
        assert running.url == url
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        assert httpx.post(f"{url}/inference", json={"id": 1}, trust_env=False).status_code == 200
        assert running.terminate() == 0
    finally:
        running.kill()


def test_the_last_lines_say_where_it_listens_and_what_to_try(service: Path) -> None:
    with deployed(one_stage(service, "Checked")) as running:
        ready, trial, page, look = running.out.strip().splitlines()[-4:]
        assert page == f"page: {running.url}/ui/"
        assert ready.startswith(f"one is ready: {running.url}")
        assert trial.startswith("try: curl ")
        assert f"{running.url}/inference" in trial
        assert """-d '{"id":"example"}'""" in trial, "the first stage's own example"
        told = subprocess.run(
            ["/bin/sh", "-c", f"{trial.removeprefix('try: ')}; {look.removeprefix('look: ')}"],
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert told.stdout.startswith('{"id":"example"}one: up for ')


def test_check_runs_the_examples_without_a_deployment(service: Path) -> None:
    file = one_stage(service, "Checked")
    told = engine("check", str(file))
    assert told.returncode == 0, told.stderr
    assert "only" in told.stdout
    told = engine("check", str(file), "--json")
    assert told.returncode == 0
    assert json.loads(told.stdout)


@pytest.mark.parametrize("worker", ["BadInit", "BadWarmUp"])
def test_check_fails_with_the_users_traceback(service: Path, worker: str) -> None:
    told = engine("check", str(one_stage(service, worker)))
    assert told.returncode == ExitCode.START
    assert "Traceback" in told.stderr


def test_each_worker_gets_its_own_environment_and_no_other() -> None:
    asked = {"names": ["FLAVOUR", "ONLY_PLAIN"]}
    env = {name: value for name, value in os.environ.items() if name in ("FLAVOUR", "ONLY_PLAIN")}
    assert not env
    with deployed(SERVICES / "where.toml") as running, running.client() as client:
        plain = client.post("/plain?a=1&b=x%20y", json=asked, headers={"x-flavour": "salt"}).json()
        assert plain["env"] == {"FLAVOUR": "plain", "ONLY_PLAIN": "1"}
        assert plain["worker_id"] == 1
        assert plain["query"] == {"a": "1", "b": "x y"}
        assert plain["header"] == "salt"
        dealt: dict[int, str] = {}
        stop = threading.Event()

        def both() -> bool:
            got = client.post("/dealt", json=asked).json()
            assert got["env"]["ONLY_PLAIN"] is None
            assert got["device"] == "cpu"
            dealt[got["worker_id"]] = got["env"]["FLAVOUR"]
            return len(dealt) == 2 or stop.is_set()

        wait_for("an answer of each worker", both)
        assert dealt == {1: "sweet", 2: "sour"}

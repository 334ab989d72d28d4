"""A stop at any instant of a start ends it in a moment: of a whole deployment, and of each kind of process by itself.

The instants are spread over the time that a start takes, from the interpreter's first line on; where exactly each falls
differs from run to run, and must not matter. A stop that is lost shows itself by far: the process then runs for ever,
or until its supervisor kills it when the grace is over.
"""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Deployed, Running, short_folder, up, wait_for, write_service

# Python imports what counts lines before the command's first line, and an interrupt can get lost in an import.
pytestmark = pytest.mark.unmeasured

STOPS = 8  # of each kind
AT_ONCE = 2  # side by side, so that the instants shift against each other
MOMENT_S = 4.0  # a second where the machine is idle
GRACE_S = 30

TOML = f"""
[engine]
name = "stopped"
grace = {GRACE_S}

[frontend]
workers = 2

[[stage]]
name = "slow"
worker = "service:Slow"
num = 2
"""

# Each part of a start takes a while; warming up does not let itself be interrupted.
SERVICE = """
import time
from engine import Worker

time.sleep(0.15)

class Slow(Worker):
    example = {"x": 1}

    def __init__(self):
        time.sleep(0.15)

    def forward(self, data):
        end = time.monotonic() + 0.15
        while time.monotonic() < end:
            try:
                time.sleep(0.01)
            except BaseException:
                pass
        return data
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_service(tmp_path_factory.mktemp("stopped"), TOML, SERVICE)


def stopped_after(running: Running, delay_s: float, number: signal.Signals) -> None:
    """SIGTERM ``delay_s`` after its start: it ends soon, by itself, and nothing of it is left."""
    time.sleep(delay_s)  # the instant is what the test is about
    assert running.process.poll() is None, f"it ended by itself\n{running.tail()}"
    began = time.monotonic()
    running.signal(number)
    code = running.exited(within_s=GRACE_S + 20)
    took_s = time.monotonic() - began
    assert took_s < MOMENT_S, f"a stop {delay_s:.2f} s after the start took {took_s:.1f} s\n{running.tail()}"
    # Before a process has taken over its signals, the system's own action ends it, or Python's for an interrupt.
    assert code in (0, -number, 1 if number == signal.SIGINT else 0), running.tail()
    running.gone()


def test_a_deployment_that_starts_is_stopped_in_a_moment(file: Path) -> None:
    with short_folder() as folder:
        began = time.monotonic()
        whole = up(file, folder=folder)
        took_s = time.monotonic() - began
        assert whole.terminate() == 0

    def one(step: int) -> None:
        with short_folder() as folder:
            running = up(file, folder=folder, wait=False)
            try:
                stopped_after(running, took_s * step / STOPS, (signal.SIGTERM, signal.SIGINT)[step % 2])
            finally:
                running.kill()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(STOPS)))


BY_HAND = {
    "broker": (["broker"], "broker ready"),
    "frontend": (["frontend"], "listening"),
    "worker": (["worker", "--stage", "slow", "--slot", "1"], "worker is warm"),
    "workers": (["worker", "--stage", "slow"], "every process is ready"),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_process_that_starts_is_stopped_in_a_moment(kind: str, file: Path) -> None:
    (command, *which), ready = BY_HAND[kind]

    def launched(folder: Path) -> Running:
        where = ["--address", "127.0.0.1", "--port", "0"] if command == "frontend" else []
        return Deployed([command, str(file), *which, *where, "--run-dir", str(folder / "run")], folder=folder)

    with short_folder() as folder:
        began = time.monotonic()
        first = launched(folder)
        try:
            wait_for(ready, lambda: ready in first.log, within_s=60.0)
            took_s = time.monotonic() - began
            assert first.terminate() == 0, first.tail()
        finally:
            first.kill()

    def one(step: int) -> None:
        with short_folder() as folder:
            running = launched(folder)
            try:
                stopped_after(running, took_s * step / STOPS, signal.SIGTERM)
            finally:
                running.kill()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(STOPS)))

"""A plain script with `Server().append_worker(...)` and `run()`: the same deployment, with the same flags."""

from __future__ import annotations

import sys
from pathlib import Path

from harness import Deployed

SCRIPT = """
import argparse

from engine import Runtime, Server, ValidationError, Worker


class Double(Worker):
    def forward(self, data):
        if not isinstance(data, int):
            raise ValidationError("not a number")
        return data * 2


class Sum(Worker):
    def forward(self, data):
        return [number + 1 for number in data]


if __name__ == "__main__":
    own = argparse.ArgumentParser()
    own.add_argument("--own", default="")
    print("own flag:", own.parse_known_args()[0].own, flush=True)
    shared = Runtime(Sum, num=1, max_batch_size=4, max_wait_time=1)
    server = Server()
    server.register_runtime({"/double": [Runtime(Double), shared], "/sum": [shared]})
    server.run()
"""


def start(folder: Path, script: str, *flags: str) -> Deployed:
    file = folder / "app.py"
    file.write_text(script)
    where = ["--address", "127.0.0.1", "--port", "0", "--path", str(folder / "run")]
    return Deployed([str(file), *where, *flags], folder=folder, command=(sys.executable,))


def test_a_script_serves_its_routes_and_keeps_its_own_flags(folder: Path) -> None:
    running = start(folder, SCRIPT, "--own", "kept", "--max-request-size", "100")
    try:
        running.wait_ready()
        assert "own flag: kept" in running.out
        with running.client() as client:
            assert client.post("/double", json=20).json() == 41
            assert client.post("/sum", json=20).json() == 21
            answer = client.post("/double", json="x")
            assert (answer.status_code, answer.text) == (422, "request validation error: not a number")
            assert client.post("/sum", content=b"1" * 101).status_code == 413
        assert running.terminate() == 0, running.tail()
        running.gone(within_s=2)
    finally:
        running.kill()


def test_a_script_whose_worker_cannot_start_exits_with_the_reason(folder: Path) -> None:
    broken = SCRIPT.replace("class Sum(Worker):", "class Sum(Worker):\n    def setup(self):\n        1 / 0\n")
    running = start(folder, broken)
    try:
        assert running.exited(within_s=40) == 4, running.tail()
        assert "ZeroDivisionError" in running.log
        running.gone(within_s=2)
    finally:
        running.kill()

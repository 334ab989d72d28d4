"""Two brokers on hosts of their own, each with its workers: one of them can be cut off, or its broker killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from os import kill
from pathlib import Path

import pytest
from harness import wait_for

from engine.core.liveness import LIMIT_S
from hosts import lab
from hosts.lab import Lab
from hosts.rows import SLACK_S
from hosts.scene import HERE, HTTP, PORT, TEXT, Scene, Tally

pytestmark = pytest.mark.unmeasured

HOSTS = ("front", "one", "two")
RATE = 40.0
BEFORE_S, FAULT_S, AFTER_S = 0.5, 3.2, 1.0
WORST_S = LIMIT_S + 0.1 + SLACK_S  # the computing included


@pytest.fixture(scope="module")
def cells() -> Iterator[Scene]:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        made = Lab(HOSTS)
        scene = Scene(made, folder, stack)
        stack.callback(scene.reap)
        stack.enter_context(made)
        brokers = [f"{made[name].address}:{PORT}" for name in HOSTS[1:]]
        text = TEXT.format(broker="0.0.0.0", port=PORT, http=HTTP, timeout=3.0, stage_timeout=60.0, ms=10.0)
        scene.file.write_text(text.replace("insecure", f"broker = {json.dumps(brokers)}\ninsecure"))
        shutil.copy(HERE / "service.py", folder)
        scene.start("front", "frontend")
        for name, broker in zip(HOSTS[1:], brokers, strict=True):
            scene.start(name, "up", "--only", "broker,prep,encode", "--broker", broker)
        wait_for("both cells", lambda: ready(scene) == [2, 4], within_s=60)
        yield scene


def ready(scene: Scene) -> list[int]:
    """Workers of each stage, of all cells that the frontend hears."""
    told = subprocess.run(
        scene.lab["front"].command("curl", "-s", f"http://127.0.0.1:{HTTP}/readyz"),
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    return [stage["ready"] for stage in json.loads(told)["stages"]] if told.startswith("{") else []


def lossless(tally: Tally) -> None:
    assert tally.lost == 0, tally.statuses
    assert tally.wrong == 0
    assert tally.worst_s < WORST_S


@pytest.mark.skipif(bool(lab.impossible()), reason=f"no hosts: {lab.impossible()}")
def test_a_cell_that_is_cut_off_costs_no_request(cells: Scene) -> None:
    end = cells.begin(RATE, BEFORE_S + FAULT_S + AFTER_S)
    time.sleep(BEFORE_S)
    cells.lab.cut("one")
    time.sleep(FAULT_S)
    cells.lab.heal()
    lossless(end())
    wait_for("both cells", lambda: ready(cells) == [2, 4], within_s=20)


@pytest.mark.skipif(bool(lab.impossible()), reason=f"no hosts: {lab.impossible()}")
def test_a_broker_that_is_killed_costs_no_request(cells: Scene) -> None:
    end = cells.begin(RATE, BEFORE_S + AFTER_S)
    time.sleep(BEFORE_S)
    (broker,) = cells.lab["two"].pids("broker", "--parent")
    kill(broker, signal.SIGKILL)
    lossless(end())
    wait_for("both cells", lambda: ready(cells) == [2, 4], within_s=20)

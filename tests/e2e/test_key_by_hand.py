"""A deployment over tcp with a key: replaced under load without a failed request, and shown nowhere."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import ENGINE, Running, environment, wait_for
from load import Load
from test_by_hand import ByHand

pytestmark = pytest.mark.unmeasured

FIRST_LINE = "the key file has another first line"


def new_key(folder: Path, name: str) -> str:
    """The line of a key that the command has made."""
    made = folder / name
    subprocess.run([ENGINE, "keys", "new", str(made)], check=True, stdout=subprocess.DEVNULL, timeout=60)
    return made.read_text().splitlines()[-1]


def write(path: Path, *lines: str) -> None:
    """In one stroke, as whoever brings files to hosts does it."""
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_text("\n".join(lines) + "\n")
    new.rename(path)


def places(folder: Path, running: Sequence[Running]) -> dict[str, bytes]:
    """Whatever others may see of a deployment: its files but for the keys, its processes, what it says."""
    found = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".key"}
    for process in [process for one in running for process in one.processes()]:
        for what in ("cmdline", "environ"):
            found[f"{process.pid} {what}"] = Path(f"/proc/{process.pid}/{what}").read_bytes()
    return found


def test_a_key_is_replaced_under_load_and_shows_itself_nowhere(folder: Path) -> None:
    one, two = (new_key(folder, name) for name in ("one.key", "two.key"))
    peers, broker = folder / "deployment.key", folder / "broker.key"  # of two hosts
    write(peers, one)
    write(broker, one)
    with ExitStack() as stack:
        by_hand = ByHand(folder, stack)
        by_hand.file.write_text(by_hand.file.read_text().replace("insecure = true", 'key = "deployment.key"'))
        parts = by_hand.parts()
        running = {"broker": by_hand.start(*parts.pop("broker"), "--key", str(broker))}
        running |= {name: by_hand.start(*flags) for name, flags in parts.items()}
        wait_for("readiness", by_hand.ready, within_s=60)
        with Load(f"{by_hand.url}/both", threads=4) as load:
            load.flow(50)
            write(peers, one, two)  # nobody needs to be told
            write(broker, one, two)
            load.flow(50)
            write(broker, two, one)
            wait_for("the broker's new key", lambda: FIRST_LINE in running["broker"].log)
            load.flow(200)
            write(peers, two)
            write(broker, two)
            late = by_hand.start("worker", "--stage", "first", "--slot", "2")
            load.flow(50)
            for key, code in ((peers, 0), (folder / "one.key", 3)):
                told = subprocess.run(
                    [ENGINE, "status", str(by_hand.file), "--key", str(key)],
                    capture_output=True,
                    env=environment("x") | {"ENGINE_LOG_LEVEL": "debug"},
                    timeout=60,
                    check=False,
                )
                assert (told.returncode == 0) is (code == 0), told.stderr
                (folder / f"status-{code}.out").write_bytes(told.stdout + told.stderr)
        assert load.wrong == []
        assert load.slowest_s < 3.0
        assert running["broker"].log.count(FIRST_LINE) == 1
        assert "insecure" not in running["broker"].log
        shown = places(folder, [*running.values(), late])
        for secret in (one, two):
            hidden = secret.partition(":")[2].encode()
            assert [where for where, text in shown.items() if hidden[:16] in text] == []

"""A start on a terminal, as whoever sits before it sees it: an emulator reads what is written."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyte
from harness import ENGINE, environment, free_ports, marked, wait_for, write_service

TOML = """
[engine]
name = "watched"
[frontend]
address = "127.0.0.1"
[[stage]]
name = "slow"
worker = "service:Slow"
num = 2
"""
SERVICE = """
import os, sys, time
from pathlib import Path
from engine import Worker

class Slow(Worker):
    example = {"x": 1}

    def __init__(self):
        super().__init__()
        print("raw text of a library", flush=True)
        sys.stderr.write("Downloading: 10%\\rDownloading: 20%\\n")
        while not Path(__file__).with_name("go").exists():
            time.sleep(0.02)
        if os.environ.get("FAILS"):
            raise FileNotFoundError("weights.bin is not there")

    def forward(self, data):
        print("computing", data["x"], flush=True)
        return data
"""
# A terminal of its own, so that Ctrl-C reaches it as from a keyboard.
LAUNCH = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Seat:
    """A terminal of 100 columns and a command on it."""

    def __init__(self, *command: str, rows: int = 60, **env: str) -> None:
        self.screen = pyte.HistoryScreen(100, rows, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self.master, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 100, 0, 0))
        self.modes = termios.tcgetattr(terminal)
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *command],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env=environment(self.mark, {"TERM": "xterm", **env}),
        )
        self._terminal = terminal
        self.data = b""

    def shown(self) -> list[str]:
        """The lines on the screen now."""
        while select.select([self.master], [], [], 0.02)[0]:
            data = os.read(self.master, 65536)
            self.data += data
            self._stream.feed(data)
        return [line.rstrip() for line in self.screen.display]

    def line(self, start: str) -> str:
        return next((line for line in self.shown() if line.strip().startswith(start)), "")

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def ended(self) -> int:
        wait_for("its end", lambda: self.shown() and self.process.poll() is not None)
        self.shown()
        return self.process.returncode

    def close(self) -> None:
        assert termios.tcgetattr(self._terminal) == self.modes
        for process in marked(self.mark):
            process.kill()
        self.process.wait(10)
        os.close(self._terminal)
        os.close(self.master)


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def seated(folder: Path, **env: str) -> Iterator[tuple[Seat, int]]:
    file, port = write_service(folder, TOML, SERVICE), free_ports(1)
    seat = Seat(ENGINE, "up", str(file), "--port", str(port), "--run-dir", str(folder / "run"), **env)
    try:
        yield seat, port
    finally:
        seat.close()


def test_each_part_has_a_line_that_moves_and_then_the_log_is_shown(folder: Path) -> None:
    with seated(folder, ENGINE_LOG_FORMAT="text") as (seat, port):
        wait_for("loading", lambda: "0/2  loading" in seat.line("slow"))
        before = seat.line("slow")
        wait_for("its time to move", lambda: seat.line("slow") != before)
        wait_for("the frontend", lambda: "ready" in seat.line("frontend") and "MiB" in seat.line("frontend"))
        shown = [line for line in seat.shown() if line]
        assert shown[0] == "watched is starting"
        assert [line.split()[0] for line in shown[1:]] == ["broker", "slow", "frontend"]
        seat.press(b"\x13")  # Ctrl-S: it takes nothing, and nobody waits for it
        (folder / "go").touch()
        wait_for("readiness", lambda: is_ready(port))
        seat.press(b"\x11")
        wait_for("the last line", lambda: seat.line("log:"))
        assert "2/2  ready" in seat.line("slow")
        assert "is ready: http://127.0.0.1" in seat.line("watched is ready")
        assert "curl" in seat.line("try:")
        assert not [line for line in seat.shown() if "raw text" in line or "Downloading" in line or "warm" in line]
        assert seat.shown()[0].startswith("watched has started in")

        log = Path(seat.line("log:").removeprefix("log:").strip())
        assert log == folder / "run" / "stageline.log"
        assert log.read_text().count("raw text of a library") == 2
        assert httpx.post(f"http://127.0.0.1:{port}/inference", json={"x": 42}, trust_env=False).json() == {"x": 42}
        wait_for("what forward prints", lambda: seat.line("computing 42"))

        again = [ENGINE, "reload", str(folder / "stages.toml"), "--run-dir", str(folder / "run")]
        assert subprocess.run(again, env=environment("x"), timeout=60, check=False).returncode == 0
        wait_for("the log of it", lambda: seat.line("computing 1") and any("changed" in line for line in seat.shown()))

        seat.press(b"\x03")
        assert seat.ended() == 0
        assert "SIGINT: draining" in "".join(seat.shown())
        assert seat.shown()[0].startswith("watched has started in"), "nothing was overwritten"
        assert log.exists()
        assert sorted(path.name for path in log.parent.iterdir()) == [log.name]


def test_a_start_that_fails_says_why_and_where_the_rest_is(folder: Path) -> None:
    (folder / "go").touch()
    with seated(folder, FAILS="yes", NO_COLOR="1") as (seat, _):
        assert seat.ended() == 4
        assert "FileNotFoundError: weights.bin is not there" in seat.line("slow")
        told = seat.shown()
        assert any("error" in line and "could not start" in line for line in told)
        assert any("raise FileNotFoundError" in line for line in told)
        assert seat.line("watched did not start")
        assert not [line for line in told if "raw text" in line]
        last = [line for line in told if line][-1]
        assert last == f"log:  {folder / 'run' / 'stageline.log'}"
        assert b"\x1b[3" not in seat.data, "no colour"


def test_a_stop_while_it_starts_leaves_the_terminal_as_it_was(folder: Path) -> None:
    with seated(folder) as (seat, _):
        wait_for("loading", lambda: "loading" in seat.line("slow"))
        seat.press(b"\x03")
        assert seat.ended() == 0
        assert seat.line("watched was stopped while it started")
        assert b"\x1b[?" not in seat.data, "no mode was changed"


def test_without_cursor_movement_there_are_plain_lines(folder: Path) -> None:
    (folder / "go").touch()
    with seated(folder, TERM="dumb", NO_COLOR="1") as (seat, _):
        wait_for("readiness", lambda: seat.line("watched is ready"))
        assert b"\x1b" not in seat.data
        assert any("broker ready" in line for line in seat.shown())
        seat.process.send_signal(signal.SIGTERM)
        assert seat.ended() == 0
        assert not (folder / "run").exists()

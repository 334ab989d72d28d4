"""Writing to what its reader may leave full: pipes, and terminals, which take less than poll lets one believe."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import sink
from engine.sink import Sink

PATIENCE_S = 30.0
ROOMS = (0, 1, 100, 3000)  # bytes that are left on a terminal, or a little more


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A terminal that nobody reads: who would, and the terminal."""
    master, terminal = os.openpty()
    yield master, terminal
    os.close(master)
    os.close(terminal)


def fill(terminal: int, room: int = 0) -> None:
    """But for about ``room`` bytes."""
    fd = os.open(os.ttyname(terminal), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        with open(fd, "wb", buffering=0, closefd=False) as file:
            if room:
                other, measured = os.openpty()
                fill(measured)
                most = len(drained(other))
                os.close(measured)
                os.close(other)
                file.write(b"f" * (most - room))
                return
            # The kernel hands it on at leisure, which makes room once more.
            while file.write(b"f") or select.select([], [fd], [], 0.05)[1]:
                pass
    finally:
        os.close(fd)


def drained(master: int) -> bytes:
    """All that was written: the kernel hands it on at leisure, so that it may come in parts."""
    data = b""
    while select.select([master], [], [], 0.1)[0]:
        data += os.read(master, 65536)
    return data


@pytest.mark.parametrize("may_open", [True, False])
@pytest.mark.parametrize("room", ROOMS)
def test_a_terminal_that_nobody_reads_takes_what_it_can_and_is_not_waited_for(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch, room: int, may_open: bool
) -> None:
    master, terminal = ends
    if not may_open:
        monkeypatch.setattr(sink, "_opened", lambda terminal: None)
    fill(terminal, room)
    made = Sink(terminal)
    try:
        text = b"one\ntwo\nthree\n" * 2000
        taken = made.write(text, 0.01)
        assert taken < len(text)
        assert made.write(text[taken:]) == 0
        # Of what a reader gets nothing is missing, and nothing there twice.
        got = drained(master)
        while taken < len(text):
            taken += made.write(text[taken:])
            got += drained(master)
        assert (got + drained(master)).replace(b"\r\n", b"\n").lstrip(b"f") == text
    finally:
        os.close(made.fd)


def test_the_descriptor_that_others_have_goes_on_waiting(ends: tuple[int, int]) -> None:
    _, terminal = ends
    made = Sink(terminal)
    assert os.get_blocking(terminal)
    assert not os.get_inheritable(made.fd)
    os.close(made.fd)


def test_a_pipe_takes_what_fits_and_no_more() -> None:
    reading, writing = os.pipe()
    made = Sink(writing)
    try:
        text = b"x" * 1_000_000
        taken = made.write(text, 0.01)
        assert 0 < taken < len(text)
        assert len(os.read(reading, len(text))) == taken
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            made.write(text)
    finally:
        os.close(made.fd)
        os.close(writing)


def test_what_somebody_reads_in_time_is_taken_whole(tmp_path: Path) -> None:
    text = b"y" * 1_000_000
    with (tmp_path / "read").open("wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as child:
        assert child.stdin is not None
        made = Sink(child.stdin.fileno())
        assert made.write(text, PATIENCE_S) == len(text)
        os.close(made.fd)
        child.stdin.close()
        child.wait(PATIENCE_S)
    assert (tmp_path / "read").read_bytes() == text


def run(code: str, terminal: int, *arguments: str) -> str:
    """What it says on stdout, with the terminal as its stderr; it is to end by itself."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=terminal,
        timeout=PATIENCE_S,
        check=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_the_log_on_a_terminal_that_nobody_reads_stops_nobody(ends: tuple[int, int], room: int) -> None:
    master, terminal = ends
    fill(terminal, room)
    code = """
from engine import log
log.setup("broker")
for n in range(100):
    log.get_logger().info("line %d %s", n, "x" * 5000)
print(log.lost_lines())
"""
    assert int(run(code, terminal)) >= 98
    drained(master)


def test_the_lines_on_a_terminal_that_is_read_again_begin_anew(ends: tuple[int, int]) -> None:
    master, terminal = ends
    fill(terminal)
    while not select.select([], [terminal], [], 0.05)[1]:  # room for something, and not for all
        os.read(master, 256)
    code = """
import os, sys
from engine.log import Output
output = Output(2)
output.write(b"torn " + b"x" * 30000 + b"\\n")
print(output.lost, flush=True)
sys.stdin.readline()
output.write(b"whole\\n")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=terminal
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
        data = drained(master)
        child.stdin.close()
        child.wait(PATIENCE_S)
    torn = data.lstrip(b"f")
    assert torn
    assert (b"torn " + b"x" * 30000).startswith(torn)
    assert drained(master) == b"\r\nwhole\r\n"


@pytest.mark.parametrize("room", ROOMS)
def test_the_screen_on_a_terminal_that_nobody_reads_stops_nobody_and_its_log_is_bounded(
    ends: tuple[int, int], tmp_path: Path, room: int
) -> None:
    master, terminal = ends
    fill(terminal, room)
    code = """
import os, sys
from pathlib import Path
from engine.config import build
from engine.supervisor.logfile import LogFile
from engine.supervisor.screen import Screen
file = Path(sys.argv[1]) / "stages.toml"
stage = {"name": "encode", "worker": "service:Encode"}
deployment = build({"stage": [stage]}, file=file, label="it", flags={}, environ={})
with Screen(deployment, {}, [], LogFile(file.parent, most=10_000)) as screen:
    screen.say("it is ready")
    largest = 0
    for _ in range(100):
        os.write(2, b"z" * 999 + b"\\n")
        screen.look({})
        largest = max(largest, os.fstat(2).st_size)
    print(largest, flush=True)
"""
    said = run(code, terminal, str(tmp_path)).split()
    assert int(said[-1]) <= 11_000
    drained(master)


def test_what_is_said_on_a_stdout_that_nobody_reads_is_in_the_log(ends: tuple[int, int]) -> None:
    _, terminal = ends
    fill(terminal)
    code = """
from engine import log
from engine.supervisor.screen import to_stdout
log.setup("supervisor")
to_stdout("it is ready")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=terminal, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=True
    )
    assert b"it is ready" in done.stderr

"""The log of a deployment on a terminal: what is new in it, its bounds, and what was there before."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.supervisor.logfile import BEHIND_MOST, READ_MOST, LogFile
from engine.supervisor.rundir import FORMER_LOG, LOG


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LogFile]:
    made = LogFile(tmp_path, most=1000)
    yield made
    made.close()


def test_only_whole_lines_are_new_until_nobody_writes_any_more(file: LogFile) -> None:
    os.write(file.fd, b"one\ntw")
    assert file.lines() == [b"one"]
    assert file.lines() == []
    os.write(file.fd, b"o\nthr")
    assert file.lines() == [b"two"]
    assert file.last() == [b"thr"]
    assert file.last() == []


def test_it_is_private_and_the_log_before_is_kept_once(tmp_path: Path) -> None:
    for number in range(3):
        made = LogFile(tmp_path)
        os.write(made.fd, f"start {number}\n".encode())
        made.close()
    assert (tmp_path / LOG).read_text() == "start 2\n"
    assert (tmp_path / FORMER_LOG).read_text() == "start 1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOG, FORMER_LOG]
    assert stat.S_IMODE((tmp_path / LOG).stat().st_mode) == 0o600


def test_one_that_is_full_begins_again_and_whoever_writes_to_it_goes_on(file: LogFile, tmp_path: Path) -> None:
    writer = os.open(file.path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(writer, b"x" * 999 + b"\n")
        assert file.lines() == [b"x" * 999]
        assert file.path.stat().st_size == 0
        assert (tmp_path / FORMER_LOG).stat().st_size == 1000
        os.write(writer, b"more\n")
        assert file.lines() == [b"more"]
        assert file.path.read_bytes() == b"more\n"
    finally:
        os.close(writer)


def test_what_is_put_away_before_it_was_read_is_told_and_glued_to_nothing(file: LogFile, tmp_path: Path) -> None:
    os.write(file.fd, b"half a li")
    assert file.lines() == []
    os.write(file.fd, b"ne\n" + b"x" * 1999 + b"\n")
    file.bound()
    assert file.path.stat().st_size == 0
    os.write(file.fd, b"another\n")
    assert file.lines() == [f"... {9 + 3 + 2000} bytes more in {tmp_path / FORMER_LOG}".encode(), b"another"]
    assert file.lines() == []


def test_what_is_put_away_when_it_was_read_is_shown_whole(file: LogFile) -> None:
    os.write(file.fd, b"x" * 999 + b"\nhalf a li")
    assert file.lines() == [b"x" * 999]
    assert file.path.stat().st_size == 0
    os.write(file.fd, b"ne\n")
    assert file.lines() == [b"half a line"]


def test_what_it_is_full_of_is_read_before_it_is_put_away(tmp_path: Path) -> None:
    made = LogFile(tmp_path, most=2 * READ_MOST)
    try:
        lines = [b"%07d" % number for number in range(3 * READ_MOST // 8)]
        os.write(made.fd, b"\n".join(lines) + b"\n")
        assert made.lines() == lines
        assert made.path.stat().st_size == 0
    finally:
        made.close()


def test_after_somebody_has_emptied_it_what_follows_is_shown(file: LogFile) -> None:
    os.write(file.fd, b"one\ntwo\nhalf a li")
    assert file.lines() == [b"one", b"two"]
    os.truncate(file.path, 0)
    os.write(file.fd, b"three\n")
    assert file.lines() == [b"three"]


def test_of_a_flood_the_end_is_read(tmp_path: Path) -> None:
    made = LogFile(tmp_path)
    try:
        for _ in range(BEHIND_MOST // 1000 + 1):
            os.write(made.fd, b"y" * 999 + b"\n")
        os.write(made.fd, b"the last\n")
        first, *others = made.lines()
        assert b"bytes more in" in first
        assert others[-1] == b"the last"
        assert sum(len(line) + 1 for line in others) <= READ_MOST
    finally:
        made.close()


def test_a_line_that_never_ends_is_held_no_longer_than_needs_be(tmp_path: Path) -> None:
    made = LogFile(tmp_path)
    try:
        seen = b""
        for _ in range(3):
            os.write(made.fd, b"z" * (READ_MOST - 1))
            seen += b"".join(made.lines())
        assert len(seen) >= READ_MOST
    finally:
        made.close()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / LOG).symlink_to(victim)
    with pytest.raises(OSError):
        LogFile(tmp_path)
    assert victim.read_text() == "mine"

"""``engine status`` of what a broker of today says, and looking again and again: on a terminal and on a pipe."""

from __future__ import annotations

import json
import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte
import pytest

from engine import cli, status
from engine.commands import top as command
from engine.commands import watching
from engine.errors import Unavailable
from engine.exitcodes import ExitCode
from engine.top import Top, sparkline

WORKER: dict[str, Any] = {
    "slot": 1, "pid": 1234567, "state": "ready", "batches": 123456, "items": 1234567, "in_flight": 3,
    "device": "cuda:0", "device_bytes": 3 << 30, "node": "gpu-host-1", "deaths": 2, "resident_bytes": 5 << 30,
    "lately": {"items_s": 1234.5, "batches_s": 40.0, "busy": 0.93, "cpu": 1.02},
}  # fmt: skip
STAGE: dict[str, Any] = {
    "name": "encode-image", "wanted": 8, "ready": 7, "starting": 1, "queued": 1234, "queued_bytes": 200 << 20,
    "oldest_ms": 1234.0, "in_flight": 512, "batches_by_reason": {"full": 123456}, "mean_batch": 31.9, "deaths": 12,
    "replayed": 345, "demand_workers": 7.9, "workers": [WORKER], "deaths_by_cause": {"oom": 12},
    "lately": {
        "items_s": 9876.5, "batches_s": 310.2, "mean_batch": 31.8, "busy": 0.97, "batches": 1000,
        "reasons": {"full": 900, "idle": 80, "wait": 20}, "queue": {"p50_ms": 12.3, "p99_ms": 123.4},
        "compute": {"p50_ms": 20.1, "p99_ms": 25.4},
    },
}  # fmt: skip
TOLD: dict[str, Any] = {
    "name": "search", "uptime_s": 90.0, "admitted": 5, "capacity": 1024, "threads": "one", "stages": [STAGE],
    "rates": {"answered_s": 9870.0, "failed_s": 1.5, "refused_s": 12.0},
    "routes": [
        {
            "path": "/v1/embeddings", "stages": ["encode-image"], "answers": {"200": 1234567, "422": 12},
            "answers_s": 9870.0, "p50_ms": 45.6, "p99_ms": 234.5,
        }
    ],
    "frontends": [
        {
            "name": "host-1:1234", "pid": 1234, "pending": 4, "url": "http://127.0.0.1:8000", "node": "host-1",
            "version": "0.1.0", "resident_bytes": 80 << 20, "cpu": 0.5,
        }
    ],
    "brokers": [{"pid": 99, "node": "host-1", "version": "0.1.0", "log": "/run/x/stageline.log", "cpu": 0.25}],
    "errors": [
        {
            "age_s": 3.0, "stage": "encode-image", "route": "/v1/embeddings", "status": 500, "count": 7,
            "message": "internal error: \x1b[2J" + "too much " * 30, "requests": ["6f1c0e", "older"],
        }
    ],
}  # fmt: skip


def table(**changes: Any) -> list[str]:
    return status.table(json.dumps(TOLD | changes).encode()).splitlines()


def test_what_happens_lately_fits_in_100_columns() -> None:
    lines = table()
    assert max(map(len, lines)) <= 100, max(lines, key=len)
    text = "\n".join(lines)
    assert "http://127.0.0.1:8000, log: /run/x/stageline.log" in lines
    assert "lately 9870 requests/s answered, 1.5 failed, 12.0 refused" in lines
    for words in (
        "12 / 123 ms", "20.1 / 25.4 ms", "97 %", "full 90% idle 8% wait 2%", "234 ms", "200:1234567 422:12",
        "cuda:0", "3 GiB", "5 GiB", "93 %", "6f1c0e", "    /v1/embeddings: internal error: ?[2Jtoo much",
    ):  # fmt: skip
        assert words in text
    (stage,) = [line.split() for line in lines if line.startswith("encode-image  7/8")]
    assert stage[-2:] == ["12", "345"]  # deaths, replays
    assert "\x1b" not in text


def test_hosts_and_cells_are_shown_where_there_are_several() -> None:
    workers = [WORKER | {"cell": cell, "node": f"host-{cell}"} for cell in (2, 1)]
    lines = table(stages=[STAGE | {"workers": workers}], cells=2, cells_answering=2)
    (head,) = [line for line in lines if line.startswith("WORKER")]
    assert "CELL" in head
    assert head.endswith("HOST")
    found = [line.split() for line in lines if line.startswith("encode-image-1")]
    assert [(one[1], one[-1]) for one in found] == [("1", "host-1"), ("2", "host-2")]


def test_a_screen_that_is_too_small_says_how_much_is_missing() -> None:
    text = "\n".join("x" * 50 for _ in range(20))
    lines = status.fitted(text, "", 40, 10).splitlines()
    assert len(lines) == 10
    assert lines[0] == "x" * 40
    assert lines[-1] == "... and 11 lines more"
    assert status.fitted(text, "gone", 0, 0).splitlines()[:3] == ["no answer: gone", "", "x" * 50]


# --- again and again -------------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What each look finds; after the last one somebody presses Ctrl-C."""

    def given(*found: bytes | Exception) -> None:
        left = iter(found)

        def ask(*_: object) -> bytes:
            one = next(left, None)
            if one is None:
                raise KeyboardInterrupt
            if isinstance(one, Exception):
                raise one
            return one

        monkeypatch.setattr("engine.admin.ask", ask)

    return given


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stages.toml"
    path.write_text('[engine]\nname = "search"\n[[stage]]\nname = "a"\nworker = "m:W"\n')
    return path


def one(number: int) -> bytes:
    return json.dumps(TOLD | {"admitted": number}).encode()


def test_on_a_pipe_each_look_is_printed(
    file: Path, looks: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    looks(one(1), Unavailable(503, "gone"), one(3))
    assert cli.run(["status", str(file), "--watch", "0.2"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert [line.split(", ")[1].split()[0] for line in text.splitlines() if line.startswith("search: up")] == ["1", "3"]
    assert "no answer: gone" in text
    assert "\x1b" not in text


def test_as_json_a_look_is_a_line(file: Path, looks: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    looks(one(1), Unavailable(503, "gone"), one(3))
    assert cli.run(["status", str(file), "--watch", "0.2", "--json"]) == ExitCode.OK
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [found and found["admitted"] for found in told] == [1, None, 3]


def test_who_finds_nobody_at_first_is_told_so(
    file: Path, looks: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    looks(Unavailable(503, "nobody is there"))
    assert cli.run(["status", str(file), "--watch"]) == ExitCode.UNREACHABLE
    assert "nobody is there" in capsys.readouterr().err


@pytest.mark.parametrize("every", ["0", "0.1", "1e9", "nan", "often"])
def test_how_often_is_bounded(file: Path, every: str) -> None:
    with pytest.raises(SystemExit):
        cli.run(["status", str(file), "--watch", every])


class Seat:
    """A terminal that this process writes on, and reads keys from."""

    def __init__(self, columns: int, rows: int) -> None:
        self.master, terminal = os.openpty()
        self.out = open(terminal, "w+b", buffering=0)  # noqa: SIM115
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)

    def shown(self) -> list[str]:
        os.set_blocking(self.master, False)
        try:
            while data := os.read(self.master, 65536):
                self._stream.feed(data)
        except BlockingIOError:
            pass
        return [line.rstrip() for line in self.screen.display]

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)


@contextmanager
def seated(monkeypatch: pytest.MonkeyPatch, columns: int = 100, rows: int = 30) -> Iterator[Seat]:
    """In here stdout and stdin are a terminal. (No fixture: pytest puts its own stdout back before the test.)"""
    seat = Seat(columns, rows)
    with (
        seat.out,
        open(os.dup(seat.out.fileno()), "w") as out,
        open(os.dup(seat.out.fileno())) as keys,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stdin", keys)
        for name, value in (("TERM", "xterm"), ("COLUMNS", str(columns)), ("LINES", str(rows))):
            patch.setenv(name, value)
        yield seat
    os.close(seat.master)


def test_on_a_terminal_the_newest_look_is_where_the_last_one_was(
    file: Path, looks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(one(1), json.dumps({"name": "search", "error": "not told"}).encode())
    with seated(monkeypatch) as seat:
        assert cli.run(["status", str(file), "--watch", "0.2"]) == ExitCode.OK
        lines = seat.shown()
    assert lines[0] == "search: not told"
    assert not any(lines[1:])


def test_a_terminal_that_is_too_small_is_never_scrolled(
    file: Path, looks: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(one(1), one(2))
    with seated(monkeypatch, 80, 10) as seat:
        assert cli.run(["status", str(file), "--watch", "0.2"]) == ExitCode.OK
        lines = seat.shown()
    assert " 2 of" in lines[0]
    assert lines[-2].startswith("... and")  # the last one is for the shell


def test_without_a_terminal_nothing_is_drawn() -> None:
    assert not watching.is_terminal()


# --- engine top ------------------------------------------------------------------------------------------------------


def drawn(seen: Top, columns: int = 80, rows: int = 24, trouble: str = "", hint: str = "") -> list[str]:
    return command.plain(seen.lines(trouble, columns, rows, hint)).split("\n")


def topped(**changes: Any) -> Top:
    seen = Top()
    seen.take(json.dumps(TOLD | changes).encode())
    return seen


OTHER: dict[str, Any] = STAGE | {"name": "other", "ready": 8, "workers": [WORKER | {"slot": 2}], "deaths": 0}


def test_a_route_that_branches_says_which_steps_not_everybody_takes() -> None:
    edges = [["a", "b", "each of crops"], ["b", "c", ""], ["c", "d", "lang = en"], ["c", "", "else"], ["d", "", ""]]
    routes = [{"path": "/page", "stages": ["a", "b", "c", "d"], "edges": edges}]
    seen = topped(routes=routes)
    while "THROUGH" not in "\n".join(drawn(seen, columns=120)):
        assert seen.pressed("right")
    (line,) = [line for line in drawn(seen, columns=120) if "/page" in line]
    assert line.rstrip().endswith("a > b (each of crops); c > d (lang = en); c > the answer (else)")


def test_top_has_the_whole_its_stages_and_their_workers_in_80_columns_and_24_rows() -> None:
    lines = drawn(topped(stages=[STAGE, OTHER]))
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("search  serving  up 1m 30s  http://127.0.0.1:8000")
    assert lines[1].startswith("9870/s answered  p99 234 ms  failed 1.5/s  refused 12.0/s  under way 5 of 1024")
    text = "\n".join(lines)
    for words in ("encode-image    7/8      12", "97%", "encode-image-1", "other-2", "93%", "q quit"):
        assert words in text


def test_keys_choose_a_stage_and_what_is_shown_of_it() -> None:
    seen = topped(stages=[STAGE, OTHER])
    assert seen.pressed("down")
    assert seen.pressed("j")
    text = "\n".join(drawn(seen))
    assert "> other" in text
    assert "other-2" in text
    assert "encode-image-1" not in text
    assert seen.pressed("right")
    assert "no request has failed" in "\n".join(drawn(seen))
    assert seen.pressed("up")
    assert "6f1c0e" in "\n".join(drawn(seen))
    assert seen.pressed("l")
    assert "/v1/embeddings" in "\n".join(drawn(seen))
    assert seen.pressed("down")
    assert seen.pressed("down")
    assert ">" not in "\n".join(drawn(seen)).partition("ROUTE")[0]  # all of them again
    assert not seen.pressed("x")


RESTING: dict[str, Any] = STAGE | {
    "bounds": [0, 4], "ready": 0, "wanted": 0, "starting": 0, "queued": 0, "workers": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "state", "shown"),
    [
        (RESTING, "serving", ("resting", "quiet")),
        (RESTING | {"wanted": 1}, "serving", ("resting", "quiet")),  # who else scales it than who is asked
        (RESTING | {"wanted": 1, "queued": 3}, "serving", ("0/1", "warn")),
        (RESTING | {"wanted": 1, "starting": 1}, "serving", ("0/1", "warn")),
        (RESTING | {"wanted": 2, "ready": 1}, "serving", ("1/2", "warn")),
        (RESTING | {"wanted": 1, "ready": 1}, "serving", ("1/1", "good")),
        (RESTING | {"not_fed": "it kills"}, "not ready: encode-image", ("0/0", "bad")),
        (RESTING | {"wanted": 1, "bounds": [1, 4]}, "not ready: encode-image", ("0/1", "bad")),
        (RESTING | {"wanted": 1, "bounds": None}, "not ready: encode-image", ("0/1", "bad")),
    ],
)
def test_a_stage_at_rest_is_not_one_that_is_broken(stage: dict[str, Any], state: str, shown: tuple[str, str]) -> None:
    assert status.heading_state(TOLD | {"stages": [stage]})[0] == state
    assert shown in [(text.strip(), style) for line in topped(stages=[stage]).lines("", 80, 24) for text, style in line]
    assert len(drawn(topped(stages=[stage]))[0]) <= 80


def test_top_is_cut_to_the_screen_and_says_what_is_missing() -> None:
    many = STAGE | {"workers": [WORKER | {"slot": slot} for slot in range(1, 100)]}
    lines = drawn(topped(stages=[many]), 60, 15)
    assert (len(lines), max(map(len, lines)) <= 60) == (15, True)
    assert lines[-2].startswith("... and")
    for rows in range(1, 12):
        assert len(drawn(topped(stages=[many]), 20, rows)) <= rows


def test_top_says_what_is_wrong() -> None:
    assert drawn(topped(), trouble="gone")[0] == "no answer: gone"
    assert "not ready: encode-image" in drawn(topped(stages=[STAGE | {"ready": 0}]))[0]
    broken = {"name": "encode-image", "error": "not told"}
    assert any("not told" in line for line in drawn(topped(stages=[broken])))
    assert drawn(topped(stages=[], error="not told"))[0].startswith("search  not told")
    old = {key: value for key, value in STAGE.items() if key != "lately"}
    assert any("encode-image" in line for line in drawn(topped(stages=[old], rates={}, routes=[], frontends=[])))


def test_a_line_of_what_was_has_the_newest_on_the_right() -> None:
    assert sparkline([0.0, 5.0, 10.0], 80) == "▁▅█"
    assert sparkline([9.0, 0.0, 10.0], 2) == "▁█"
    assert sparkline([], 80) == ""
    assert sparkline([0.0], 80) == "▁"


@pytest.mark.parametrize("coloured", [True, False])
def test_top_on_a_terminal_reads_keys_and_leaves_it_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch, coloured: bool
) -> None:
    if not coloured:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    with seated(monkeypatch, 80, 24) as seat:
        before = termios.tcgetattr(sys.stdin)
        looks = 0

        def ask(*_: object) -> bytes:
            nonlocal looks
            looks += 1
            if looks > 1:  # until then nobody reads keys
                seat.press(b"jkj\x1b[C" if looks == 2 else b"q")
            return one(looks)

        monkeypatch.setattr("engine.admin.ask", ask)
        assert cli.run(["top", str(file), "--every", "0.2"]) == ExitCode.OK
        lines = seat.shown()
        assert termios.tcgetattr(sys.stdin) == before
    text = "\n".join(lines)
    assert "> encode-image" in text
    assert "6f1c0e" in text
    assert ("pip install 'stageline[top]'" in text) is not coloured


def test_top_on_a_pipe_prints_each_look(
    file: Path, looks: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    looks(one(1), one(2))
    assert cli.run(["top", str(file), "--every", "0.2"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert out.count("search  serving") == 2
    assert "\x1b" not in out

"""One line per event: JSON or readable, and never at the cost of the process."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from engine import log


@pytest.fixture(autouse=True)
def _logging_is_restored():
    root = logging.getLogger()
    level, handlers, output = root.level, list(root.handlers), log._output
    own_level = log.get_logger().level
    yield
    log._output = output
    log.get_logger().setLevel(own_level)
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_without_a_terminal_a_line_is_json_with_its_origin_and_fields(capsys):
    log.setup("worker", stage="encode", worker=2)
    log.get_logger().info("batch of %d", 3, extra={"request_id": "abc", "n": 3})
    (line,) = lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("pid") > 0
    assert line == {
        "level": "info",
        "process": "worker",
        "stage": "encode",
        "worker": 2,
        "logger": "stageline",
        "message": "batch of 3",
        "request_id": "abc",
        "n": 3,
    }


def test_an_exception_is_a_field_and_the_line_stays_one(capsys):
    log.setup("broker")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.get_logger().exception("it failed", stack_info=True)
    (line,) = lines(capsys)
    assert line["message"] == "it failed"
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert "ValueError: two\nlines" in line["exception"]
    assert "test_log.py" in line["stack"]


def test_a_field_may_name_another_stage_but_not_replace_the_message(capsys):
    log.setup("broker", stage="own")
    log.get_logger().info("hello", extra={"stage": "encode", "level": "x", "time": 0})
    (line,) = lines(capsys)
    assert (line["stage"], line["level"], line["message"]) == ("encode", "info", "hello")
    assert (line["level_"], line["time_"]) == ("x", 0)


class Stubborn:
    def __str__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, {("a",): 1}, Stubborn(), b"\xff", object])
def test_any_field_makes_valid_json(capsys, value):
    log.setup("broker")
    log.get_logger().info("odd", extra={"value": value})
    (line,) = lines(capsys)
    assert line["message"] == "odd"
    assert "value" in line


def test_arguments_that_do_not_fit_lose_nothing():
    record = logging.makeLogRecord({"msg": "%d items", "args": ("many",)})  # pytest's own handler would raise
    line = json.loads(log.JSONFormatter({"process": "broker"}).format(record))
    assert line["message"].startswith("%d items ('many',) (cannot be formatted: ")


def test_levels(capsys):
    log.setup("broker", level="warning")
    log.get_logger().info("no")
    log.get_logger("a.library").error("yes")
    assert [(line["logger"], line["message"]) for line in lines(capsys)] == [("a.library", "yes")]
    with pytest.raises(ValueError, match="log level 'loud' is none of debug, info"):
        log.setup("broker", level="loud")


def test_setting_up_again_replaces(capsys):
    log.setup("broker")
    log.setup("frontend")
    log.get_logger().info("once")
    assert [line["process"] for line in lines(capsys)] == ["frontend"]


def test_get_logger_without_a_name_is_the_projects():
    assert log.get_logger().name == "stageline"
    assert log.get_logger() is log.get_logger("stageline")


def test_warnings_are_lines_too(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.setup("worker")
        warnings.warn("old", stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines(capsys)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")


def test_gunicorns_loggers_come_out_in_the_same_form(capsys):
    logger = logging.getLogger("gunicorn.error")
    logger.addHandler(logging.StreamHandler(io.StringIO()))
    logger.propagate = False
    log.setup("frontend")
    logger.info("booting")
    logger.addHandler(logging.StreamHandler(io.StringIO()))  # as gunicorn does later
    logger.propagate = False
    log.adopt(*log.GUNICORN)
    logger.info("booted")
    assert [(line["logger"], line["message"]) for line in lines(capsys)] == [
        ("gunicorn.error", "booting"),
        ("gunicorn.error", "booted"),
    ]


def test_on_a_terminal_a_line_is_readable_and_coloured(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    with contextlib.redirect_stderr(Terminal()) as terminal:
        log.setup("worker", stage="encode", worker=2)
        log.get_logger().warning("slow", extra={"request_id": "abc"})
    text = terminal.getvalue()
    assert "\x1b[33mwarning\x1b[0m" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert re.fullmatch(r"\S+Z warning worker encode-2 slow request_id=abc\n", plain)


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with contextlib.redirect_stderr(Terminal()) as terminal:
        log.setup("worker")
        try:
            raise ValueError("x")
        except ValueError:
            log.get_logger().exception("failed")
    text = terminal.getvalue()
    assert "\x1b" not in text
    assert "failed\n  Traceback (most recent call last):" in text


def test_control_characters_are_shown_and_not_sent_to_a_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with contextlib.redirect_stderr(Terminal()) as terminal:
        log.setup("broker")
        log.get_logger().info("evil \x1b]0;title\x07", extra={"request_id": "\x1b[2J"})
    text = terminal.getvalue()
    assert "\x1b" not in text
    assert r"evil \x1b]0;title\x07 request_id=\x1b[2J" in text


def test_a_line_break_in_a_text_begins_no_line_of_the_log():
    forged = "first\n2026-01-01T00:00:00.000Z error   broker all is lost\r\u2028"
    formatter = log.ReadableFormatter({"process": "worker"}, colour=False)
    try:
        raise ValueError(forged)
    except ValueError:
        trace = sys.exc_info()
    record = logging.makeLogRecord({"msg": forged, "exc_info": trace, "field": forged, "stack_info": forged})
    first, *others = formatter.format(record).splitlines()
    assert first.count("\\n2026") == 2  # shown, in the message and the field
    assert others
    assert all(line.startswith("  ") for line in others)
    assert json.loads(log.JSONFormatter({"process": "worker"}).format(record))["message"] == forged


MISCHIEF = [
    "import logging.config; logging.config.dictConfig({'version': 1})",
    "import logging.config; logging.config.dictConfig({'version': 1, 'root': {'handlers': [], 'level': 'CRITICAL'}})",
    "logging.disable(logging.CRITICAL)",
    "logging.shutdown()",
    "logging.getLogger().handlers.clear()",
    "logging.basicConfig(force=True, level=60)",
    "logging.getLogger('stageline').disabled = True",
    "logging.getLogger('stageline').handlers.clear(); logging.getLogger('stageline').propagate = False",
    "logging.getLogger().addHandler(Bad())",
    "sys.stderr = None",
    "sys.stderr.close()",
    "sys.stderr = open(os.devnull, 'w')",
    "os.close(2)",
    "os.close(2); held = open(os.devnull, 'w'); assert held.fileno() == 2",
]


@pytest.mark.parametrize("mischief", MISCHIEF)
def test_what_user_code_does_to_logging_and_stderr_does_not_silence_us(mischief):
    code = f"""
import logging, os, sys
from engine import log
class Bad(logging.Handler):
    def emit(self, record):
        raise ValueError("mine")
early = log.get_logger("stageline.part")
log.setup("worker")
{mischief}
early.error("one")
log.get_logger().info("two")
log.get_logger("stageline.late").warning("three")
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    said = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert (done.returncode, said) == (0, ["one", "two", "three"])


def test_lines_do_not_go_where_descriptors_were_closed_by_their_numbers(tmp_path):
    """What was opened since has the number of ours."""
    code = f"""
import os
from engine import log
log.setup("worker")
os.closerange(3, 64)
files = [open({str(tmp_path / "file")!r}, "w") for _ in range(16)]
log.get_logger().info("here")
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stderr)["message"] == "here"
    assert (tmp_path / "file").read_text() == ""


def test_handlers_of_the_users_get_our_records_but_do_not_repeat_them(capsys):
    log.setup("worker")
    kept = []

    class Keeping(logging.Handler):
        def emit(self, record):
            kept.append(record.getMessage())

    added = [Keeping(), logging.StreamHandler(sys.stderr)]
    root = logging.getLogger()
    for handler in added:
        root.addHandler(handler)
    log.get_logger().warning("once")
    assert kept == ["once"]
    assert [line["message"] for line in lines(capsys)] == ["once"]


def test_a_value_that_raises_anything_costs_its_own_text_alone(capsys):
    class Panic(BaseException):
        pass

    class Wild:
        def __str__(self):
            raise Panic

        __repr__ = __str__

    log.setup("worker")
    log.get_logger().info("odd %s", Wild(), extra={"value": Wild()})
    (line,) = lines(capsys)
    assert line["value"] == "<Wild: Panic in its __str__>"
    assert "cannot be formatted" in line["message"]


def test_a_closed_stderr_costs_the_line_and_not_the_process(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.setup("broker")
    stream.close()
    log.get_logger().info("into the void")
    log.setup("broker")
    monkeypatch.setattr(sys, "stderr", None)
    log.get_logger().info("into the void")
    log.setup("broker")


def test_a_stderr_whose_reader_has_gone_does_not_end_a_process():
    code = (
        "import sys; from engine import log; log.setup('broker'); sys.stdin.read();"
        "[log.get_logger().info('line %d', n) for n in range(100)]; print('alive')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        child.stderr.close()
        child.stdin.close()
        assert child.stdout.read() == b"alive\n"


def test_a_stderr_that_nobody_reads_stops_nobody_and_what_is_lost_is_counted():
    code = """
import sys
from engine import log
log.setup("broker")
for n in range(2000):
    log.get_logger().info("line %d %s", n, "x" * 500)
print(log.lost_lines(), flush=True)
sys.stdin.readline()
lost = log.lost_lines()
log.get_logger().info("read again " + "y" * 10_000)
print(log.lost_lines() - lost, flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        lost = int(child.stdout.readline())
        assert 0 < lost < 2000
        said = [child.stderr.readline().rstrip() for _ in range(2000 - lost)]  # then there is room again
        child.stdin.write(b"\n")
        child.stdin.flush()
        said += child.stderr.read().splitlines()
        assert child.stdout.readline() == b"0\n"
    whole = [json.loads(line)["message"] for line in said if line.startswith(b"{") and line.endswith(b"}")]
    assert whole[-1] == "read again " + "y" * 10_000
    assert whole[:-1] == [f"line {n} {'x' * 500}" for n in range(2000 - lost)]


def test_lines_for_which_a_full_disk_has_no_room_are_counted(tmp_path):
    code = """
import resource, signal
from engine import log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log.setup("broker")
log.get_logger().info("one")
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
log.get_logger().info("two")
log.setup("broker")  # once more: what was counted stays
print(log.lost_lines())
"""
    with (tmp_path / "log").open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=file, timeout=60, check=False
        )
    assert done.stdout == b"1\n"
    assert [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()] == ["one"]


def test_no_field_has_a_name_that_the_record_itself_has() -> None:
    """``logging`` raises KeyError for such a field, in the thread that wanted to say something."""
    reserved = {*logging.makeLogRecord({}).__dict__, "message", "asctime"}
    root = Path(__file__).parents[2]
    for package in ("engine", "frontend", "stages"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
                    names = {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
                    assert not names & reserved, f"{path}:{node.value.lineno}"


def test_what_a_library_puts_into_every_record_is_no_field() -> None:
    record = logging.makeLogRecord({"msg": "hello", "levelname": "INFO", "_added_ns": 1, "stage": "encode"})
    for formatter in (log.ReadableFormatter({"process": "x"}, colour=False), log.JSONFormatter({"process": "x"})):
        text = formatter.format(record)
        assert "_added_ns" not in text
        assert "encode" in text


def test_a_traceback_given_as_text_is_shown_as_an_exceptions_is(monkeypatch):
    record = logging.makeLogRecord({"msg": "failed", "levelname": "ERROR", log.TRACEBACK: "Traceback\n  line"})
    line = json.loads(log.JSONFormatter({"process": "supervisor"}).format(record))
    assert line["exception"] == "Traceback\n  line"
    assert log.TRACEBACK not in line
    text = log.ReadableFormatter({"process": "supervisor"}, colour=False).format(record)
    assert text.endswith("failed\n  Traceback\n    line")


@pytest.mark.parametrize(
    ("process", "origin", "extra"),
    [
        ("worker", {"stage": "encode", "worker": 3}, {"size": 7}),
        ("supervisor", {}, {"stage": "encode", "worker": 3}),
        ("broker", {}, {}),
    ],
)
def test_a_line_of_a_file_is_shown_as_on_a_terminal(process, origin, extra):
    """What was written for machines is read by people: two forms of one record."""
    try:
        raise ValueError("no\x1b[2J")
    except ValueError:
        told = {"name": "stageline.part", "msg": "it %s\n", "args": ("failed",), "levelno": 40, "process": 7, **extra}
        record = logging.makeLogRecord({**told, "exc_info": sys.exc_info()})
    line = log.Line.of(log.JSONFormatter({"process": process, **origin}).format(record).encode())
    assert line.is_ours
    assert (line.process, line.level) == (process, logging.ERROR)
    readable = log.ReadableFormatter({"process": process, **origin}, colour=True).format(record)
    assert line.readable(colour=True) == readable
    assert "no\\x1b[2J" in readable


@pytest.mark.parametrize("text", ["", "x", "{", '{"time": 1', '{"time": 1}', '{"time": [], "process": 3}', "\xff"])
def test_what_is_no_line_of_ours_is_not_taken_for_one(text):
    assert log.Line.of(text.encode("latin-1")) is None


def test_a_printed_line_that_no_reader_of_json_gets_through_is_none_of_ours():
    assert log.Line.of(b'{"time":' + b"[" * 100_000) is None

"""The command line: what it understands, what it prints, which code it ends with. Processes are tested elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from engine import cli, commands, status
from engine.commands.command import Command
from engine.config import Deployment
from engine.errors import Unavailable
from engine.exitcodes import ExitCode
from engine.supervisor import orders

COMMANDS = [command.name for command in commands.COMMANDS]
OF_FILES = [command for command in commands.COMMANDS if isinstance(command, Command)]

FILE = """
[engine]
name = "tried"
[[stage]]
name = "encode"
worker = "service:Encode"
num = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stages.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reached the parts behind the commands, none of which runs."""
    calls: dict[str, Any] = {}

    def note(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> int:
            calls[name] = (args, kwargs)
            return 0

        return call

    monkeypatch.setattr("engine.log.setup", lambda *args, **kwargs: calls.__setitem__("log", (args, kwargs)))
    monkeypatch.setattr("engine.supervisor.run", note("run"))
    monkeypatch.setattr("engine.supervisor.run_workers", note("run_workers"))
    monkeypatch.setattr("engine.broker.serve.serve", note("broker"))
    monkeypatch.setattr("stages.runtime.serve.serve", note("worker"))
    return calls


def engine(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)


# --- help and bad usage


def test_help_names_the_commands_an_example_and_every_exit_code() -> None:
    done = engine("--help")
    assert done.returncode == ExitCode.OK
    assert "engine up examples/echo/stages.toml" in done.stdout
    for name in COMMANDS:
        assert re.search(rf"^    {name}\s", done.stdout, re.MULTILINE)
    for code in ExitCode:
        assert code.name in done.stdout
        assert code.meaning in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert re.search(rf"\nexamples?:\n  engine {command}\b", text)
    assert "--parent" not in text
    assert "--status-fd" not in text


@pytest.mark.parametrize("command", OF_FILES, ids=lambda command: command.name)
def test_every_command_of_a_deployment_has_the_flags_that_it_looks_at(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.run([command.name, "--help"])
    text = capsys.readouterr().out
    assert "--log-level" in text
    assert ("--port " in text) == (command.name in ("up", "frontend", "ports", "doctor"))


def test_the_version_is_told_with_those_of_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["version"]) == ExitCode.OK
    told = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert told.keys() >= {"engine", "python", "system", "pyzmq", "falcon", "gunicorn", "msgpack"}
    assert told["pyzmq"] == metadata.version("pyzmq")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly", "x"],
        ["up", "x", "--por", "1"],
        ["worker", "x"],
        ["worker", "x", "--stage", "e", "--num", "0"],
    ],
)
def test_what_is_not_understood_is_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(arguments)
    assert end.value.code == ExitCode.USAGE
    assert "usage: engine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["chek", "x"], 'unknown command "chek"; did you mean check?'),
        (["run", "x"], 'unknown command "run"; did you mean up?'),
        (["serve"], "did you mean up?"),
        (["stages.toml"], "did you mean: engine up stages.toml"),
        (["up", "x", "--prot", "1"], "unrecognized arguments: --prot 1; did you mean --port?"),
        (["bench", "x", "--duration", "5"], "did you mean --seconds?"),
        (["top", "x", "--once"], "--once; engine status shows it once"),
        (
            ["status", "x", "--port", "1"],
            "--port is a flag of up, doctor, frontend, ports: engine status does not look at it",
        ),
        (["up", "x", "--workers", "1"], "workers is set in the file, under frontend"),
    ],
)
def test_what_was_meant_is_said(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(arguments)
    assert end.value.code == ExitCode.USAGE
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--watch", "x"], ["x", "--watch"], ["--watch", "2", "x"], ["--watch=2", "x"]])
def test_how_often_it_is_looked_need_not_be_said(arguments: list[str]) -> None:
    """What follows ``--watch`` is the file, where it is no number."""
    options = cli._parsed(["status", *arguments])
    assert options is not None
    assert (options.watch, options.file) == (2.0, "x")


def test_the_package_can_be_run_by_its_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "engine", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("engine ")


# A Ctrl-C in a callback of a weak reference, as the import system has them: Python would print what it raises there.
INTERRUPTED = """
import os, signal, sys, weakref

class Finder:
    def find_spec(self, name, *_others):
        if name == "engine.cli":
            weakref.finalize(type("Lock", (), {})(), os.kill, os.getpid(), signal.SIGINT)

from engine.__main__ import main
sys.meta_path.insert(0, Finder())
sys.argv = ["engine", "--version"]
main()
"""


def test_an_interrupt_while_the_command_is_imported_ends_it_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    ignoring = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{INTERRUPTED}"
    done = subprocess.run([sys.executable, "-c", ignoring], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith(b"engine ")


CHECKED = """
import os, signal
from engine import Worker

class Encode(Worker):
    def __init__(self):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            print("put away")
            raise
    def forward(self, data):
        return data
"""


def test_user_code_that_is_checked_sees_an_interrupt_as_python_has_it(file: Path) -> None:
    (file.parent / "service.py").write_text(CHECKED)
    command = [sys.executable, "-m", "engine", "check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.FAILED, "put away\n", "")


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == ExitCode.USAGE
    assert "commands:" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("engine ")


# --- configuration


def test_every_problem_of_the_configuration_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "stages.toml"
    file.write_text(FILE.replace("num = 3", "num = 0\nnumm = 3"))
    done = engine("up", str(file), "--port", "many")
    assert done.returncode == ExitCode.CONFIG
    assert len(done.stderr.splitlines()) == 3
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_a_configuration_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", str(tmp_path / "none.toml")]) == ExitCode.CONFIG
    assert "no such file" in capsys.readouterr().err


# --- commands reach their parts


@pytest.mark.parametrize("given", ["file", "folder"])
def test_up_runs_the_supervisor_on_a_file_or_its_folder(file: Path, asked: dict[str, Any], given: str) -> None:
    path = file if given == "file" else file.parent
    assert cli.run(["up", str(path), "--port", "1234", "--log-level", "error"]) == 0
    (deployment,), _ = asked["run"]
    assert isinstance(deployment, Deployment)
    assert deployment.frontend.port == 1234
    words, about = asked["log"]
    assert (words, about["level"], about["form"]) == (("supervisor",), "error", "auto")


def test_without_a_file_it_is_the_one_here(
    file: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    assert cli.run(["up"]) == 0
    assert asked["run"][0][0].file == file
    file.rename(file.with_name("other.toml"))
    assert cli.run(["up"]) == ExitCode.CONFIG
    assert "in this folder there is other.toml" in capsys.readouterr().err


def test_a_variable_that_means_nothing_is_warned_about(
    file: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ENGINE_PROT", "1")
    assert cli.run(["up", str(file)]) == 0
    assert "ENGINE_PROT is set and not read; did you mean ENGINE_PORT?" in caplog.text


@pytest.mark.parametrize(("extra", "num"), [([], None), (["--num", "2"], 2)])
def test_worker_runs_as_many_as_asked(file: Path, asked: dict[str, Any], extra: list[str], num: int | None) -> None:
    """None: as many as the file says, today and whenever it is read again."""
    assert cli.run(["worker", str(file), "--stage", "encode", *extra]) == 0
    assert asked["run_workers"][0][1:] == ("encode", num)


def test_worker_with_a_slot_runs_in_this_process(file: Path, asked: dict[str, Any]) -> None:
    assert cli.run(["worker", str(file), "--stage", "encode", "--slot", "2"]) == 0
    assert asked["worker"][0][1:3] == ("encode", 2)
    words, about = asked["log"]
    assert (words, about["stage"], about["worker"]) == (("worker",), "encode", 2)


def test_a_worker_of_no_stage_is_a_configuration_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["worker", str(file), "--stage", "encod"]) == ExitCode.CONFIG
    assert "--stage: expected one of encode; got encod" in capsys.readouterr().err


def test_a_broker_by_hand_makes_its_private_directory_and_removes_it(
    file: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    found = []

    def serve(*_: Any, parent: int, stopping: Callable[[float], None], reread: object) -> int:
        assert reread is None, "nobody has an edited file in mind"
        stopping(12.0)  # for the next one, which waits that long
        found.extend([run_dir.stat().st_mode & 0o777, (run_dir / "stopping").read_text()])
        return 0

    monkeypatch.setattr("engine.broker.serve.serve", serve)
    assert cli.run(["broker", str(file), "--run-dir", str(run_dir)]) == 0
    assert found == [0o700, "12.000\n"]
    assert not run_dir.exists()


def test_a_broker_under_a_supervisor_leaves_the_directory_to_it(
    file: Path, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = []
    monkeypatch.setattr("engine.process.die_with_parent", parents.append)
    run_dir = tmp_path / "run"
    assert cli.run(["broker", str(file), "--run-dir", str(run_dir), "--parent", "17"]) == 0
    assert parents == [17]
    assert not run_dir.exists()


# --- status

TOLD = {
    "name": "tried",
    "epoch": 7,
    "uptime_s": 3723.5,
    "draining": False,
    "admitted": 5,
    "capacity": 1024,
    "stages": [
        {
            "name": "encode",
            "wanted": 2,
            "ready": 1,
            "starting": 1,
            "queued": 12,
            "in_flight": 32,
            "queued_bytes": 20480,
            "oldest_ms": 4.2,
            "batches_by_reason": {"idle": 3, "full": 10},
            "mean_batch": 21.46,
            "demand_workers": 1.84,
            "workers": [
                {"key": 9, "slot": 2, "pid": 102, "state": "starting", "batches": 0, "items": 0},
                {"key": 4, "slot": 1, "pid": 101, "state": "ready", "batches": 13, "items": 279},
            ],
        }
    ],
    "frontends": [{"name": "frontend-1", "pid": 103, "pending": 44}],
}

TABLE = """\
tried: up for 1h 2m, 5 of 1024 requests admitted

STAGE   READY  DEMAND  STARTING  QUEUED       OLDEST  IN FLIGHT  BATCHES  MEAN  DEATHS  REPLAYS
encode  1/2       1.8         1  12 (20 KiB)  4.2 ms         32       13  21.5       0        0

STAGE   RELEASED BY
encode  full:10 idle:3

WORKER    PID  STATE     BATCHES  ITEMS
encode-1  101  ready          13    279
encode-2  102  starting        0      0

FRONTEND    PID  PENDING
frontend-1  103       44"""


def test_status_is_an_aligned_table() -> None:
    assert status.table(json.dumps(TOLD).encode()) == TABLE


def test_status_shows_memory_of_gpus_where_somebody_holds_some() -> None:
    told = json.loads(json.dumps(TOLD))
    told["stages"][0]["workers"][1]["device_bytes"] = 3 << 30
    lines = status.table(json.dumps(told).encode()).splitlines()
    assert lines[8].split()[-2:] == ["GPU", "MEMORY"]
    assert lines[9].split()[-3:] == ["279", "3", "GiB"]
    assert lines[10].split() == ["encode-2", "102", "starting", "0", "0"]


def test_status_says_what_carries_the_broker() -> None:
    for threads, words in (("one", "one broker thread"), ("stage", "a broker thread per stage")):
        assert words in status.table(json.dumps(TOLD | {"threads": threads}).encode()).splitlines()[0]


def test_workers_that_another_command_runs_are_told_from_those_that_were_reached() -> None:
    def worker(pid: int, state: str = "ready", *, here: bool = True) -> dict[str, Any]:
        return {"pid": pid, "slot": 1, "state": state, "here": here, "batches": 0, "items": 0}

    stages = [
        {"name": "a", "workers": [worker(1), worker(2), worker(1, here=False)]},
        {"name": "b", "workers": [worker(3), worker(4), worker(5, "leaving"), worker(6, "spare")]},
    ]
    told = json.dumps({"stages": stages}).encode()
    assert status.strangers(told, {1, 2, 3}) == "1 worker of a, 2 workers of b"
    assert status.strangers(json.dumps({"stages": stages[:1]}).encode(), {1, 2, 3}) == "1 worker of a"
    assert status.strangers(b"{}", set()) == ""


def test_status_says_how_workers_were_lost() -> None:
    stage = {**TOLD["stages"][0], "deaths_by_cause": {"own": 1, "oom": 2, "outside": 0}}
    told = json.dumps({**TOLD, "stages": [stage]}).encode()
    assert "\nencode lost workers: 2 out of memory (oom), 1 of their own doing\n" in status.table(told)


def test_status_says_where_and_why_requests_were_refused() -> None:
    stages = [TOLD["stages"][0] | {"refused": {"hopeless": 2, "expired": 1}}, *TOLD["stages"][1:]]
    told = json.dumps(TOLD | {"stages": stages, "refused": {"predicted": 30, "capacity": 7}}).encode()
    lines = status.table(told).splitlines()
    assert "refused at the door: capacity:7 predicted:30" in lines
    assert f"refused at {stages[0]['name']}: expired:1 hopeless:2" in lines
    assert "refused" not in status.table(json.dumps(TOLD).encode())


def test_status_says_what_could_not_be_told() -> None:
    failed = {**TOLD, "stages": [{"name": "encode", "error": "not told"}]}
    assert "encode  not told" in status.table(json.dumps(failed).encode())
    assert status.table(b'{"name": "x", "error": "not told", "stages": []}') == "x: not told"


def test_status_of_an_empty_deployment_is_a_table_too() -> None:
    assert status.table(b'{"name": "x", "draining": true, "stages": []}').startswith("x: draining for 0s")


def test_status_prints_what_the_broker_says(
    file: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json.dumps(TOLD).encode()
    monkeypatch.setattr("engine.admin.ask", lambda deployment, what, timeout_s: answer)
    assert cli.run(["status", str(file), "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == TOLD
    assert cli.run(["status", str(file)]) == ExitCode.OK
    assert capsys.readouterr().out.rstrip() == TABLE


def test_status_of_nothing_is_unreachable_and_says_what_to_do(
    file: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(*_: Any) -> bytes:
        raise Unavailable(503, "no answer within 3 s")

    monkeypatch.setattr("engine.admin.ask", nobody)
    assert cli.run(["status", str(file)]) == ExitCode.UNREACHABLE
    error = capsys.readouterr().err
    assert 'no running deployment "tried"' in error
    assert "engine up" in error


# --- the end of the process


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt, ExitCode.FAILED), (None, ExitCode.OK)])
def test_main_ends_the_process_with_the_code_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, raised: type[BaseException] | None, code: int
) -> None:
    def run(arguments: Any) -> int:
        if raised is not None:
            raise raised
        return 0

    monkeypatch.setattr(cli, "run", run)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == code


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", "--help"], stdout=pipe, stderr=subprocess.PIPE, timeout=60
        )
    assert b"Traceback" not in done.stderr


# --- orders to a supervisor


@contextmanager
def supervisor(folder: Path, answer: bytes, *, hears: bool = False) -> Iterator[None]:
    """One that does nothing: says so much to whoever comes, and hangs up. ``hears``: once it has the order."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listening.accept()
                with sock, suppress(OSError):
                    if hears:
                        sock.recv(1000)
                    sock.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "orders"))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("answer", [b"", b'{"say": "x"}\n', b'{"error": '])
def test_a_supervisor_that_hangs_up_is_unreachable(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    with supervisor(tmp_path, answer):
        for _ in range(20):  # before the order, or behind it
            assert cli.run(["health", str(file), "--run-dir", str(tmp_path)]) == ExitCode.UNREACHABLE
            assert "engine: the supervisor" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["sendall", "makefile"])
def test_a_broken_pipe_to_a_supervisor_is_not_that_of_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    class Broken(socket.socket):
        pass

    def fail(*_: Any) -> Any:
        raise BrokenPipeError(32, "Broken pipe")

    setattr(Broken, broken, fail)
    with supervisor(tmp_path, b""):
        monkeypatch.setattr(socket, "socket", Broken)
        with pytest.raises(Unavailable, match="has hung up: Broken pipe"):
            orders.give(tmp_path, orders.HEALTH, lambda line: None, within_s=60.0)


def test_what_becomes_of_a_line_is_not_the_supervisors_fault(tmp_path: Path) -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    with supervisor(tmp_path, b'{"say": "x"}\n', hears=True), pytest.raises(BrokenPipeError):
        orders.give(tmp_path, orders.HEALTH, gone, within_s=60.0)


@pytest.mark.parametrize(
    ("error", "holders", "code", "said"),
    [
        (ProcessLookupError, [7], ExitCode.FAILED, "process 7 does not run here"),
        (ProcessLookupError, [7, None], ExitCode.OK, ""),
        (PermissionError, [7], ExitCode.FAILED, "process 7 is another user's"),
    ],
)
def test_one_that_cannot_be_ended_is_told_in_a_line(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[OSError],
    holders: list[int | None],
    code: int,
    said: str,
) -> None:
    def kill(*_: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr("engine.supervisor.rundir.holder", lambda _: holders.pop(0) if len(holders) > 1 else holders[0])
    assert cli.run(["down", str(file)]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == bool(said)

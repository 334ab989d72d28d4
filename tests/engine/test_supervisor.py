"""The supervisor over real processes: scripted children that say what happens to them (programs/child.py)."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.clock import Deadline
from engine.config.endpoints import cell_dir
from engine.core.processes import Child, Kind
from engine.errors import StartError
from engine.exitcodes import ExitCode
from engine.supervisor import family, keeper, orders
from engine.supervisor.address import check_port
from engine.supervisor.rundir import Busy, _sweep, check, claim, mark_stopping
from tests.control_group import control_group

PATIENCE_S = 30.0
PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
EVERYBODY = ("broker", "worker-encode-1", "worker-encode-2", "frontend")


def wait_until(what: str, holds: Callable[[], Any]) -> Any:
    deadline = Deadline(PATIENCE_S)
    while not (found := holds()):
        assert not deadline.passed, f"still not so: {what}"
        time.sleep(0.005)
    return found


def gone(pid: int) -> bool:
    """Ended and reaped (or about to be, by whoever adopted it)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Trial:
    """One supervisor process, its folder and its journal."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        with open(folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / "supervised.py"), str(folder), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # else a hang-up may be the end of the terminal
            )

    # --- what it does

    @property
    def journal(self) -> list[str]:
        try:
            return (self.folder / "journal").read_text().splitlines()
        except FileNotFoundError:
            return []

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def pids(self, name: str) -> list[int]:
        """Of every life the child has had."""
        return [int(line.split()[2]) for line in self.journal if line.startswith(f"{name} starts")]

    def bred(self) -> list[int]:
        return [int(line.split()[2]) for line in self.journal if " bred " in line]

    def wait_journal(self, line: str, times: int = 1) -> None:
        wait_until(f"{times} x {line!r} in the journal", lambda: self.journal.count(line) >= times)

    def wait_ready(self, lines_of_it: int = 4) -> str:
        """The lines that say so."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        assert readable, self.log
        lines = b"".join(self.process.stdout.readline() for _ in range(lines_of_it))
        assert lines, self.log
        return lines.decode()

    def wait_exit(self) -> int:
        code = self.process.wait(PATIENCE_S)
        assert all(gone(int(line.split()[2])) for line in self.journal if " starts " in line), self.log
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait_exit()

    # --- what its children are told

    def tell(self, name: str, what: str, text: str = "") -> None:
        (self.folder / f"{name}.{what}").write_text(text)

    def untell(self, name: str, what: str) -> None:
        (self.folder / f"{name}.{what}").unlink()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because of socket paths, and outside pytest's own, which keeps folders."""
    path = Path(tempfile.mkdtemp(prefix="sl-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Trial]]:
    trials: list[Trial] = []

    def begin(**options: Any) -> Trial:
        trials.append(Trial(folder, **options))
        return trials[-1]

    yield begin
    for trial in trials:
        trial.close()


def tell(folder: Path, name: str, what: str, text: str = "") -> None:
    (folder / f"{name}.{what}").write_text(text)


# --- starting


def test_it_starts_in_order_says_where_it_listens_and_leaves_nothing(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "frontend", "url", "http://0.0.0.0:4321")
    trial = start()
    ready, look = trial.wait_ready().split("look: ")
    assert look.endswith(f"engine status {folder} --run-dir {trial.run_dir}\n")
    assert ready == (
        "tried is ready: http://127.0.0.1:4321  (stop with Ctrl-C)\ntry: curl http://127.0.0.1:4321/inference -d '{}'\n"
        "page: http://127.0.0.1:4321/ui/\n"
    )
    order = [line.split()[:2] for line in trial.journal]
    for name in EVERYBODY[1:]:
        assert order.index(["broker", "ready"]) < order.index([name, "starts"])
    for text in ("broker ready in", "worker encode-2 loading", "worker encode-1 warming up 1/1", "frontend ready in"):
        assert text in trial.log
    assert (trial.run_dir / "pid").read_text() == f"{trial.process.pid}\n"
    assert trial.run_dir.stat().st_mode & 0o777 == 0o700
    assert trial.stop() == ExitCode.OK
    assert not trial.run_dir.exists()


def test_it_says_where_it_listens_besides(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "frontend", "url", "http://127.0.0.1:4321")
    tell(folder, "frontend", "on", "all IPv4 addresses, 0.0.0.0")
    trial = start()
    ready = "tried is ready: http://127.0.0.1:4321 (listening on all IPv4 addresses, 0.0.0.0)  (stop with Ctrl-C)"
    assert trial.wait_ready().splitlines()[0] == ready
    assert trial.stop() == ExitCode.OK


def test_the_request_to_try_comes_from_the_folder_of_the_file(start: Callable[..., Trial], folder: Path) -> None:
    (folder / "example.curl").write_text("curl {url}/v1 -d 'x'\n")
    tell(folder, "frontend", "url", "http://[::]:4321")
    trial = start()
    assert trial.wait_ready().splitlines()[1] == "try: curl http://[::1]:4321/v1 -d 'x'"
    assert trial.stop() == ExitCode.OK


def test_a_worker_that_cannot_start_fails_the_deployment_with_its_reason(
    start: Callable[..., Trial], folder: Path
) -> None:
    tell(folder, "worker-encode-2", "fails")
    trial = start()
    assert trial.wait_exit() == ExitCode.START
    assert trial.log.count("worker encode-2 could not start: ValueError: no such model") == 1
    assert "tried did not start" in trial.log
    assert not trial.run_dir.exists()


def test_workers_that_die_whenever_they_are_ready_fail_the_deployment(
    start: Callable[..., Trial], folder: Path
) -> None:
    for name in ("worker-encode-1", "worker-encode-2"):
        tell(folder, name, "dies")
    trial = start()
    assert trial.wait_exit() == ExitCode.START
    assert re.search(r"worker encode-[12] died right after it was ready, 5 times in a row: exit code 9", trial.log)
    assert "tried did not start" in trial.log


def test_a_frontend_that_finds_its_port_taken_passes_its_code_on(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "frontend", "code", str(int(ExitCode.BUSY)))
    assert start().wait_exit() == ExitCode.BUSY


def test_a_worker_that_is_never_ready_fails_the_start(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "worker-encode-1", "hangs")
    trial = start(stage=[{"name": "encode", "worker": "service:Encode", "start_timeout": 1}])
    assert trial.wait_exit() == ExitCode.START
    assert "worker encode-1 could not start: was not ready within 1 s" in trial.log


def test_a_port_in_use_is_found_before_anything_is_started(start: Callable[..., Trial]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        trial = start(frontend={"port": port})
        assert trial.wait_exit() == ExitCode.BUSY
    assert f"port {port} on 127.0.0.1 is in use" in trial.log
    assert trial.journal == []
    assert not trial.run_dir.exists()


def test_a_second_deployment_of_the_same_name_is_refused(start: Callable[..., Trial]) -> None:
    first = start()
    first.wait_ready()
    second = start()
    assert second.process.wait(PATIENCE_S) == ExitCode.BUSY
    assert f"tried is already running (pid {first.process.pid})" in second.log
    assert len(first.pids("broker")) == 1
    assert first.stop() == ExitCode.OK


def test_a_predecessor_that_is_stopping_is_waited_for(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "frontend", "lingers")
    first = start(engine={"grace": 30.0})
    first.wait_ready()
    first.process.send_signal(signal.SIGTERM)  # whether or not it has been taken notice of when the next one looks
    second = start()
    wait_until("the wait is told", lambda: "tried is still stopping" in first.log)
    assert f"(pid {first.process.pid}); waiting for it, for up to" in first.log
    assert len(first.pids("broker")) == 1
    first.untell("frontend", "lingers")
    assert first.process.wait(PATIENCE_S) == ExitCode.OK
    second.wait_ready()
    assert (second.run_dir / "pid").read_text() == f"{second.process.pid}\n"
    assert second.stop() == ExitCode.OK
    assert not second.run_dir.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_waits_for_its_predecessor_can_be_called_off(
    start: Callable[..., Trial], folder: Path, number: int
) -> None:
    tell(folder, "frontend", "lingers")
    first = start(engine={"grace": 30.0})
    first.wait_ready()
    first.process.send_signal(signal.SIGTERM)
    second = start()
    wait_until("the wait is told", lambda: "tried is still stopping" in first.log)
    second.process.send_signal(number)
    assert second.process.wait(PATIENCE_S) == ExitCode.OK
    assert first.process.poll() is None
    first.untell("frontend", "lingers")
    assert first.wait_exit() == ExitCode.OK


def test_a_predecessor_that_takes_longer_than_it_said_is_not_waited_for_any_more(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return True

    with claim(run_dir, "tried"):
        mark_stopping(run_dir, -0.9)  # so that what is added to it leaves 0.1 s
        with pytest.raises(Busy, match="takes longer than it may"), claim(run_dir, "tried", pause):
            pass
    assert pauses


def test_a_stop_goes_on_where_nothing_can_be_written(tmp_path: Path) -> None:
    mark_stopping(tmp_path / "no such folder", 5.0)


def test_what_a_killed_predecessor_left_is_swept(start: Callable[..., Trial], folder: Path) -> None:
    run_dir = folder / "run"
    run_dir.mkdir(mode=0o700)
    (run_dir / "lock").touch()
    (run_dir / "pid").write_text("1\n")
    (run_dir / "stopping").write_text("30.0\n")
    (run_dir / "notes").write_text("somebody's")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(run_dir / "front"))
    trial = start()
    trial.wait_ready()
    assert not (run_dir / "front").exists()
    assert trial.stop() == ExitCode.OK
    assert [path.name for path in run_dir.iterdir()] == ["notes"]


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_folder_of_other_things_stays_as_it_is(folder: Path, mode: int) -> None:
    """As ``--run-dir /tmp`` or a session's own folder of sockets would be."""
    shared = folder / "run"
    shared.mkdir()
    (shared / "notes").write_text("somebody's")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(shared / "bus"))
        shared.chmod(mode)
        if mode == 0o700:
            with claim(shared, "tried"):
                pass
        else:
            with pytest.raises(StartError, match="holds other things"), claim(shared, "tried"):
                pass
    assert {path.name for path in shared.iterdir()} == {"notes", "bus"}
    assert shared.stat().st_mode & 0o777 == mode


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
NOBODY = 65534


def change(path: Path, how: int | str) -> None:
    """To this mode, or to another owner."""
    if isinstance(how, int):
        path.chmod(how)
    else:
        os.chown(path, NOBODY, 0)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (0o757, "other users may write to"),
        (0o777, "other users may write to"),
        (0o1777, ""),
        (0o755, ""),
        pytest.param("nobody's", f"belongs to user {NOBODY}", marks=AS_ROOT),
    ],
)
@pytest.mark.parametrize("above", [1, 2])
@pytest.mark.parametrize("by", ["its name", "a link"])
def test_nobody_else_may_put_another_folder_in_the_place_of_the_run_directory(
    tmp_path: Path, how: int | str, words: str, above: int, by: str
) -> None:
    run = tmp_path / "one" / "two" / "run"
    run.parent.mkdir(parents=True)
    outer = run.parents[above - 1]
    asked = run
    if by == "a link":
        (tmp_path / "link").symlink_to(run.parent)
        asked = tmp_path / "link" / "run"
    change(outer, how)
    try:
        if words:
            with pytest.raises(StartError, match=words), claim(asked, "tried"):
                pass
            with pytest.raises(StartError, match=words):
                check(asked)
        else:
            with claim(asked, "tried"):
                check(asked)
        check(tmp_path / "not there")
    finally:
        os.chown(outer, os.geteuid(), os.getegid())
        outer.chmod(0o700)


@AS_ROOT
def test_a_group_of_others_may_not_write_above_the_run_directory(tmp_path: Path) -> None:
    run = tmp_path / "one" / "run"
    run.parent.mkdir()
    run.parent.chmod(0o775)
    check(run)  # root's group
    os.chown(run.parent, 0, NOBODY)
    with pytest.raises(StartError, match="other users may write to"):
        check(run)


@AS_ROOT
def test_a_strangers_socket_in_the_run_directory_is_not_taken_for_ours(tmp_path: Path) -> None:
    """One that stands where a broker's would, put there while anybody could."""
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(run / "front"))
        os.chown(run / "front", NOBODY, NOBODY)
        with pytest.raises(StartError, match="holds other things"), claim(run, "tried"):
            pass
        os.chown(run / "front", 0, 0)
        with claim(run, "tried"):
            assert not (run / "front").exists()


@AS_ROOT
@pytest.mark.parametrize("command", ["status", "frontend", "worker --stage one --slot 1"])
def test_no_process_by_hand_goes_into_a_strangers_run_directory(tmp_path: Path, command: str) -> None:
    (tmp_path / "stages.toml").write_text(
        f'[engine]\nrun_dir = "{tmp_path / "run"}"\n[[stage]]\nname = "one"\nworker = "a:B"\n'
    )
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", NOBODY, NOBODY)
    words = command.split()
    done = subprocess.run(
        [sys.executable, "-m", "engine", words[0], str(tmp_path / "stages.toml"), *words[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.START
    assert f"belongs to user {NOBODY}" in done.stderr


def test_an_empty_folder_is_made_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with claim(tmp_path, "tried"):
        assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_cell_that_runs_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with claim(run, "first"), claim(cell_dir(run, 1), "second") as folder, socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "front"))
        with pytest.raises(Busy), claim(cell_dir(run, 1), "another"):
            pass
        _sweep(run)
        assert (folder / "front").exists()


def test_what_cells_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    left, kept = cell_dir(run, 1), cell_dir(run, 2)
    for folder in (left, kept):
        folder.mkdir(parents=True, mode=0o700)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(folder / "front"))
    run.chmod(0o700)
    (kept / "letters").touch()
    with claim(run, "tried"):
        assert not left.exists()
        assert [entry.name for entry in kept.iterdir()] == ["letters"]


@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("192.0.2.1", "this machine has no such address"),  # of a network for documentation
        ("x" * 64 + ".invalid", "set another with --address"),
    ],
)
@pytest.mark.parametrize("port", [0, 8000])
def test_an_address_that_cannot_be_had_is_found_out_before_anything_starts(host: str, hint: str, port: int) -> None:
    with pytest.raises(StartError, match=hint):
        check_port(host, port)


def test_a_stop_does_not_wait_for_a_name_to_be_resolved(start: Callable[..., Trial], folder: Path) -> None:
    trial = start(resolver="hangs")
    wait_until("it asks for the address", (folder / "asked").exists)
    assert trial.stop() == ExitCode.OK
    assert "stopped before it started" in trial.log


def test_a_run_directory_that_is_a_link_is_refused(start: Callable[..., Trial], folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "run").symlink_to(folder / "elsewhere")
    trial = start()
    assert trial.wait_exit() == ExitCode.START
    assert "symbolic link" in trial.log or "Not a directory" in trial.log


def test_a_stop_while_it_starts_ends_in_order(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "worker-encode-1", "hangs")
    trial = start()
    trial.wait_journal("frontend ready")
    assert trial.stop() == ExitCode.OK


# --- serving


@pytest.mark.parametrize("name", EVERYBODY)
def test_whoever_is_killed_is_started_again_alone(start: Callable[..., Trial], name: str) -> None:
    trial = start()
    trial.wait_ready()
    os.kill(trial.pids(name)[0], signal.SIGKILL)
    trial.wait_journal(f"{name} ready", times=2)
    assert [len(trial.pids(other)) for other in EVERYBODY if other != name] == [1, 1, 1]
    assert "died (killed by SIGKILL); starting it " in trial.log
    assert trial.stop() == ExitCode.OK


def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_called_so(start: Callable[..., Trial]) -> None:
    bounds = {"memory.max": "256M"}, {"memory.limit_in_bytes": "256M"}
    with control_group("memory", *bounds) as group:
        trial = start()
        trial.wait_ready()
        (group / "cgroup.procs").write_text(str(trial.process.pid))
        for name in ("worker-encode-1", "worker-encode-2"):  # whoever takes their place begins in that group
            os.kill(trial.pids(name)[0], signal.SIGKILL)
            trial.wait_journal(f"{name} ready", times=2)
        called = "worker encode-2 died (out of memory, killed by the kernel (oom))"
        for times in range(3, 8):  # on a busy machine it may be taken for hung first, and killed for that
            trial.tell("worker-encode-2", "eats")
            wait_until("its end", lambda: gone(trial.pids("worker-encode-2")[-1]))
            trial.untell("worker-encode-2", "eats")
            trial.wait_journal("worker-encode-2 ready", times=times)
            if called in trial.log:
                break
        assert "worker encode-1 died (killed by SIGKILL)" in trial.log
        assert called in trial.log, trial.log
        assert trial.stop() == ExitCode.OK


def test_what_a_dead_child_has_started_ends_with_it(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "worker-encode-1", "breeds")
    trial = start()
    trial.wait_ready()
    bred = trial.bred()
    os.kill(trial.pids("worker-encode-1")[0], signal.SIGKILL)
    wait_until("the group and who had left it have gone", lambda: not any(map(psutil.pid_exists, bred)))
    trial.wait_journal("worker-encode-1 ready", times=2)
    assert trial.stop() == ExitCode.OK
    assert all(gone(pid) for pid in trial.bred())


def test_a_worker_that_fails_later_is_tried_again_while_the_others_serve(start: Callable[..., Trial]) -> None:
    trial = start()
    trial.wait_ready()
    trial.tell("worker-encode-1", "fails")
    os.kill(trial.pids("worker-encode-1")[0], signal.SIGKILL)
    wait_until("five failed starts", lambda: len(trial.pids("worker-encode-1")) > 5)
    assert "failed to start again (ValueError: no such model)" in trial.log
    trial.untell("worker-encode-1", "fails")
    trial.wait_journal("worker-encode-1 ready", times=2)
    assert all(len(trial.pids(name)) == 1 for name in EVERYBODY if name != "worker-encode-1")
    assert trial.stop() == ExitCode.OK


def test_a_broker_that_cannot_come_back_ends_the_deployment(start: Callable[..., Trial]) -> None:
    trial = start()
    trial.wait_ready()
    trial.tell("broker", "fails")
    os.kill(trial.pids("broker")[0], signal.SIGKILL)
    assert trial.wait_exit() == ExitCode.FAILED
    assert "tried stopped: broker failed to start 3 times in a row: ValueError: no such model" in trial.log


def test_a_frontend_that_restarts_keeps_the_port_it_was_given(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "frontend", "url", "http://127.0.0.1:4321")
    trial = start()
    trial.wait_ready()
    assert json.loads((trial.run_dir / "deployment.json").read_text())["frontend"]["port"] == 4321
    assert trial.stop() == ExitCode.OK


def test_a_stages_environment_reaches_its_own_workers_only(start: Callable[..., Trial]) -> None:
    colours = [{"COLOUR": "red"}, {"COLOUR": "blue"}]
    trial = start(stage=[{"name": "encode", "worker": "service:Encode", "num": 2, "env": colours}])
    trial.wait_ready()
    seen = {line.split()[0]: line.split()[3] for line in trial.journal if " starts " in line}
    assert seen == dict(zip(EVERYBODY, ["-", "red", "blue", "-"], strict=True))
    assert trial.stop() == ExitCode.OK


# --- daemons


@pytest.mark.parametrize("kind", ["popen", "process", "forked"])
def test_daemons_live_with_the_deployment(start: Callable[..., Trial], kind: str) -> None:
    trial = start(daemons=[kind])
    trial.wait_ready()
    children = [child.pid for child in psutil.Process(trial.process.pid).children()]
    assert len(children) > len(EVERYBODY)
    assert trial.stop() == ExitCode.OK
    assert "killing it" not in trial.log  # a stop reaches it, and not its supervisor in its place
    wait_until("multiprocessing's own helper has gone too", lambda: all(gone(pid) for pid in children))


def test_a_daemon_that_dies_ends_the_deployment(start: Callable[..., Trial], folder: Path) -> None:
    trial = start(daemons=["popen"])
    trial.wait_ready()
    os.kill(int((folder / "popen.pid").read_text()), signal.SIGKILL)
    assert trial.wait_exit() == ExitCode.FAILED
    assert "tried stopped: daemon popen ended (killed by SIGKILL)" in trial.log


# --- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_drains_the_frontend_before_the_workers_and_the_broker_last(
    start: Callable[..., Trial], folder: Path, number: int
) -> None:
    tell(folder, "frontend", "lingers")
    trial = start()
    trial.wait_ready()
    trial.process.send_signal(number)
    trial.wait_journal("frontend stops")
    assert not any(line.endswith("stops") for line in trial.journal if not line.startswith("frontend"))
    trial.untell("frontend", "lingers")
    assert trial.wait_exit() == ExitCode.OK
    ends = [line for line in trial.journal if line.split()[1] in ("stops", "ends")]
    assert ends[:2] == ["frontend stops", "frontend ends"]
    assert ends[-2:] == ["broker stops", "broker ends"]
    assert len(ends) == 8


def test_who_does_not_stop_in_time_is_killed(start: Callable[..., Trial], folder: Path) -> None:
    for name in EVERYBODY:
        tell(folder, name, "stays")
    trial = start(engine={"grace": 0.2})
    trial.wait_ready()
    assert trial.stop() == ExitCode.OK
    assert trial.log.count("has not stopped in time; killing it") == 4


def test_a_second_sigint_stops_at_once(start: Callable[..., Trial], folder: Path) -> None:
    tell(folder, "frontend", "lingers")
    trial = start(engine={"grace": 3600})
    trial.wait_ready()
    trial.process.send_signal(signal.SIGINT)
    trial.wait_journal("frontend stops")
    assert trial.stop(signal.SIGINT) == ExitCode.FAILED
    assert not trial.run_dir.exists()


def test_a_killed_supervisor_leaves_no_process_and_the_next_one_starts(
    start: Callable[..., Trial], folder: Path
) -> None:
    tell(folder, "worker-encode-1", "breeds")
    trial = start()
    trial.wait_ready()
    trial.process.kill()
    pids = [trial.pids(name)[0] for name in EVERYBODY]
    wait_until("all of its children have gone", lambda: all(gone(pid) for pid in pids))
    wait_until("and what these had started", lambda: all(gone(pid) for pid in trial.bred()))
    trial.process.wait(PATIENCE_S)
    after = start()
    after.wait_ready()
    assert after.stop() == ExitCode.OK


def test_only_who_carries_the_mark_is_ended() -> None:
    """Not those of another worker whose mark begins alike, nor those who carry it elsewhere in their environment."""
    sleeper = [sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(600)"]
    others = [{keeper.VARIABLE: "token/11/"}, {f"X{keeper.VARIABLE}": "token/1/"}, {"X": f"{keeper.VARIABLE}=token/1/"}]
    processes = [
        subprocess.Popen(sleeper, env=env, stdout=subprocess.PIPE, start_new_session=True)
        for env in ({keeper.VARIABLE: "token/1/"}, *others)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it runs the program, with its environment
        assert keeper.end("token/1/", PATIENCE_S) == 1
        assert processes[0].wait(PATIENCE_S) == -signal.SIGKILL
        assert [process.poll() for process in processes[1:]] == [None] * len(others)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# --- parts of a deployment

SHARED = {"bind": "tcp://127.0.0.1:7000", "insecure": True}


def test_a_part_is_ready_when_what_runs_here_is_and_its_broker_finishes_before_its_workers(
    start: Callable[..., Trial], folder: Path
) -> None:
    trial = start(engine=SHARED, only="broker,encode=3")
    assert trial.wait_ready(2).startswith("tried: broker, encode=3 ready")
    started = {line.split()[0] for line in trial.journal}
    assert started == {"broker", "worker-encode-1", "worker-encode-2", "worker-encode-3"}
    assert trial.stop() == ExitCode.OK
    ends = [line for line in trial.journal if line.split()[1] in ("stops", "ends")]
    assert ends[:2] == ["broker stops", "broker ends"]
    assert len(ends) == 8
    assert list(folder.glob("run*")) == []


def test_its_health_is_asked_for_without_a_network(start: Callable[..., Trial], folder: Path) -> None:
    def health(*flags: str) -> tuple[int, str]:
        asked = [sys.executable, "-m", "engine.cli", "health", str(folder), "--only", "broker,encode", *flags]
        env = {**os.environ, "ENGINE_RUN_DIR": str(folder / "run")}
        done = subprocess.run(asked, capture_output=True, text=True, env=env, timeout=PATIENCE_S, check=False)
        return done.returncode, done.stdout

    text = '[engine]\nname = "tried"\nbind = "tcp://127.0.0.1:7000"\ninsecure = true\n'
    (folder / "stages.toml").write_text(f'{text}[[stage]]\nname = "encode"\nworker = "service:Encode"\n')
    assert health()[0] == ExitCode.UNREACHABLE
    trial = start(engine=SHARED, only="broker,encode")
    trial.wait_ready(2)
    assert health() == (ExitCode.OK, "ready\n")
    tell(folder, "worker-encode-2", "hangs")
    os.kill(trial.pids("worker-encode-2")[0], signal.SIGKILL)
    wait_until("it says so", lambda: health()[0] == ExitCode.FAILED)
    assert health() == (ExitCode.FAILED, "not ready: worker encode-2\n")
    assert health("--live")[0] == ExitCode.OK
    assert trial.stop() == ExitCode.OK


def test_other_parts_run_beside_and_the_same_do_not(start: Callable[..., Trial], folder: Path) -> None:
    fronts = start(engine=SHARED, only="broker,frontend")
    fronts.wait_ready()
    workers = start(engine=SHARED, only="encode=1")
    workers.wait_ready(2)
    again = start(engine=SHARED, only="encode=2")
    assert again.process.wait(PATIENCE_S) == ExitCode.BUSY
    assert {path.name for path in folder.glob("run*")} == {"run+broker+frontend", "run+encode"}
    workers.process.terminate()
    assert workers.process.wait(PATIENCE_S) == ExitCode.OK
    assert fronts.stop() == ExitCode.OK


# --- workers on their own


def test_workers_on_their_own_need_no_lock_and_stop_when_asked(start: Callable[..., Trial]) -> None:
    trial = start(workers=3)
    for slot in (1, 2, 3):
        trial.wait_journal(f"worker-encode-{slot} ready")
    os.kill(trial.pids("worker-encode-2")[0], signal.SIGKILL)
    trial.wait_journal("worker-encode-2 ready", times=2)
    assert not trial.run_dir.exists()
    assert trial.stop() == ExitCode.OK
    assert len(trial.journal) == 3 * 4 + 2


def test_workers_on_their_own_are_replaced_one_by_one_by_what_their_file_says_then(
    start: Callable[..., Trial], folder: Path
) -> None:
    again = folder / "stages.json"
    again.write_text(json.dumps({"stage": [{"name": "encode", "worker": "service:Encode", "env": {"COLOUR": "blue"}}]}))
    trial = start(workers=2)
    wait_until("all to be ready, as the supervisor has it", lambda: "every process is ready" in trial.log)
    trial.process.send_signal(signal.SIGHUP)
    for name in ("worker-encode-1", "worker-encode-2"):
        trial.wait_journal(f"{name} ready", times=2)
        trial.wait_journal(f"{name} ends")
    lines = trial.journal
    assert [line.split()[-1] for line in lines if " starts " in line] == ["-", "-", "blue", "blue"]
    for name in ("worker-encode-1", "worker-encode-2"):  # warm before the other leaves
        of_it = [line.split()[1] for line in lines if line.startswith(name)]
        assert of_it == ["starts", "ready", "starts", "ready", "stops", "ends"]
    wait_until("the end of the change", lambda: '"changed"' in trial.log)

    again.write_text(json.dumps({"stage": [{"name": "other", "worker": "service:Encode"}]}))
    trial.process.send_signal(signal.SIGHUP)
    wait_until("a refusal", lambda: "cannot change its stages" in trial.log)
    assert trial.stop() == ExitCode.OK


# --- what it is made of


# --- systemd


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told_when_it_serves_that_it_lives_and_when_it_stops(
    start: Callable[..., Trial], folder: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool
) -> None:
    name = f"@{folder.name}" if is_abstract else str(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(name.replace("@", "\0"))
        notified.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        (folder / "frontend.hangs").touch()
        trial = start()
        trial.wait_journal("worker-encode-1 ready")
        trial.wait_journal("worker-encode-2 ready")
        told = [notified.recv(100) for _ in range(2)]
        assert told == [b"WATCHDOG=1"] * 2, "it is not ready before its frontend is"
        (worker,) = trial.pids("worker-encode-1")
        assert "NOTIFY_SOCKET" not in psutil.Process(worker).environ(), "it is for the supervisor alone to speak"
        trial.process.send_signal(signal.SIGTERM)
        trial.wait_exit()
        told = []
        while not told or told[-1] != b"STOPPING=1":
            told.append(notified.recv(100))
        assert b"READY=1" not in told


def test_systemd_hears_of_readiness_once(
    start: Callable[..., Trial], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify"))
        notified.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        trial = start()
        trial.wait_ready()
        assert notified.recv(100) == b"READY=1"
        assert trial.stop() == ExitCode.OK
        assert notified.recv(100) == b"STOPPING=1", "and of its life where it asks for that alone"


def test_systemd_hears_of_each_start_of_what_is_edited_and_of_the_end_of_the_last(
    start: Callable[..., Trial], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(**settings: Any) -> None:
        (folder / "again.json").write_text(json.dumps(settings))
        (folder / "stages.toml").write_text(f"# {settings}\n")

    def heard(word: bytes) -> list[bytes]:
        """What comes before this."""
        told: list[bytes] = []
        while (last := notified.recv(100)) != word:
            told.append(last)
        return told

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify"))
        notified.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        edit()
        trial = start(reload=True)
        trial.wait_ready()
        heard(b"READY=1")
        trial.tell("worker-other-1", "fails")
        edit(stage=[{"name": "other", "worker": "service:Other"}])
        wait_until("a failure", lambda: "waiting for a change" in trial.log)
        trial.untell("worker-other-1", "fails")
        heard(b"WATCHDOG=1")
        edit(stage=[{"name": "other", "worker": "service:Other", "num": 2}])
        trial.wait_ready()
        assert b"STOPPING=1" not in heard(b"READY=1")
        heard(b"WATCHDOG=1")
        assert trial.stop() == ExitCode.OK
        heard(b"STOPPING=1")


def test_systemd_hears_of_the_end_of_one_that_waited_for_an_edit(
    start: Callable[..., Trial], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify"))
        notified.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        (folder / "worker-encode-1.fails").touch()
        (folder / "stages.toml").touch()
        trial = start(reload=True)
        wait_until("a failure", lambda: "waiting for a change" in trial.log)
        assert not select.select([notified], [], [], 0)[0]
        assert trial.stop() == ExitCode.START
        assert notified.recv(100) == b"STOPPING=1"


def test_nobody_there_to_be_told_is_no_harm(start: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    trial = start()
    trial.wait_ready()
    assert trial.stop() == ExitCode.OK


# --- workers by demand


def stage_nums(trial: Trial) -> list[int]:
    return [stage["num"] for stage in json.loads((trial.run_dir / "deployment.json").read_text())["stage"]]


def test_workers_come_and_go_with_the_demand(start: Callable[..., Trial]) -> None:
    stage = {"name": "encode", "worker": "service:Encode", "num": 1, "min": 0, "max": 3}
    trial = start(stage=[stage], windows=[0.05, 0.3])
    trial.wait_ready()
    trial.tell("broker", "needs", '{"encode": 2.2}')
    trial.wait_journal("worker-encode-3 ready")
    assert stage_nums(trial) == [3]
    wait_until("the reason in the log", lambda: "scaling encode from 1 to 3: its demand is 2.20 workers" in trial.log)
    trial.tell("broker", "needs", '{"encode": 0.0}')
    for slot in (1, 2, 3):
        trial.wait_journal(f"worker-encode-{slot} ends")
    assert stage_nums(trial) == [0]
    trial.tell("broker", "asked", "encode")
    trial.wait_journal("worker-encode-1 ready", times=2)
    assert trial.stop() == ExitCode.OK


def test_whoever_is_starting_is_told_of_another_configuration_when_that_does_no_harm(
    start: Callable[..., Trial],
) -> None:
    trial = start()
    trial.wait_ready()
    trial.tell("broker", "waits")
    os.kill(trial.pids("broker")[0], signal.SIGKILL)
    wait_until("another broker", lambda: len(trial.pids("broker")) == 2)
    orders.give(trial.run_dir, {"do": "scale", "nums": {"encode": 3}}, lambda text: None, within_s=PATIENCE_S)
    trial.untell("broker", "waits")
    trial.wait_journal("broker rereads")
    assert len(trial.pids("broker")) == 2
    assert trial.stop() == ExitCode.OK
    assert "frontend rereads" not in trial.journal, "how many workers there are is nothing to it"


def test_whoever_takes_the_place_of_a_worn_worker_has_its_environment(start: Callable[..., Trial]) -> None:
    trial = start(stage=[{"name": "encode", "worker": "service:Encode", "env": {"COLOUR": "red"}}])
    trial.wait_ready()
    trial.tell("worker-encode-1", "worn")
    trial.wait_journal("worker-encode-1 ready", times=2)
    colours = [line.split()[3] for line in trial.journal if line.startswith("worker-encode-1 starts")]
    assert colours == ["red", "red"]
    assert trial.stop() == ExitCode.OK


def test_a_number_that_was_named_stays(start: Callable[..., Trial]) -> None:
    stage = {"name": "encode", "worker": "service:Encode", "num": 1, "max": 3}
    trial = start(stage=[stage], windows=[0.0, 0.0], only="broker,frontend,encode=2")
    trial.wait_ready()
    trial.tell("broker", "needs", '{"encode": 3.0}')
    trial.tell("broker", "asked", "encode")
    time.sleep(0.3)  # that nothing happens can only be waited for
    assert not trial.pids("worker-encode-3")
    assert trial.stop() == ExitCode.OK


def test_the_supervisor_loads_nothing_heavy() -> None:
    heavy = {"zmq", "falcon", "gunicorn", "torch", "numpy", "prometheus_client", "stages", "frontend"}
    code = f"import sys, engine.cli, engine.supervisor; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_children_are_started_by_command_line_and_not_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = family.command_line(lambda child: tmp_path / "deployment.json")
    python, told = command(Child(Kind.BROKER, "broker"), 7), [str(tmp_path / "deployment.json"), "--status-fd", "7"]
    assert list(python[:1]) == [sys.executable]
    assert Path(python[1]).is_absolute()  # by its path: a folder called "engine" here would be found first by name
    assert Path(python[1]).samefile(family.BOOTSTRAP)
    assert list(python[2:]) == ["broker", *told, "--parent", str(os.getpid())]
    worker = command(Child(Kind.WORKER, "worker encode-2", "encode", 2), 8)
    assert list(worker[worker.index("--stage") :][:4]) == ["--stage", "encode", "--slot", "2"]

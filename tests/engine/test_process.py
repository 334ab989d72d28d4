"""Status pipes, parents, orphans, CPUs: with real processes."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engine import process
from engine.config import Deployment
from engine.config import build as build_deployment
from engine.errors import StartError
from engine.supervisor import family

PATIENCE_S = 20.0


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *arguments]


def wait_readable(fd: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        assert selector.select(PATIENCE_S), "nothing came"


def wait_gone(pid: int) -> None:
    """A process that is not our child: poll, for there is nothing to wait on."""
    fd = os.pidfd_open(pid)
    try:
        wait_readable(fd)
    finally:
        os.close(fd)


def make(tmp_path: Path, **stage: object) -> Deployment:
    data = {"stage": [{"name": "a", "worker": "service:A", **stage}, {"name": "b", "worker": "service:B"}]}
    return build_deployment(data, file=tmp_path / "stages.toml", label="stages.toml", flags={}, environ={})


# --- Notifier


def test_a_notifier_writes_one_json_line_per_event() -> None:
    reading, writing = os.pipe()
    notify = process.Notifier(writing)
    notify.send("warming", done=1, of=3)
    notify.send("failed", reason="no\nmodel")
    os.close(writing)
    with open(reading, "rb") as file:
        lines = [json.loads(line) for line in file]
    assert lines == [{"event": "warming", "done": 1, "of": 3}, {"event": "failed", "reason": "no\nmodel"}]


@pytest.mark.parametrize("filling", ["x", "\n", "\N{SNOWMAN}", "\N{PILE OF POO}"])
def test_a_notifier_says_why_however_long_it_is(filling: str) -> None:
    reading, writing = os.pipe()
    try:
        reason, trace = f"first{filling * 100_000}last", f"Traceback{filling * 1_000_000}ValueError: no such model"
        assert process.Notifier(writing).send("failed", reason=reason, trace=trace)
        os.close(writing)
        with open(reading, "rb", closefd=False) as pipe:
            line = pipe.read()
        assert len(line) <= process.LINE_MOST
        told = json.loads(line)
        assert told["reason"].startswith("first")
        assert told["reason"].endswith("last")
        assert told["trace"].startswith("Traceback")
        assert told["trace"].endswith("ValueError: no such model")
    finally:
        os.close(reading)


def test_a_notifier_without_a_pipe_does_nothing() -> None:
    process.Notifier(None).send("ready")


def test_a_notifier_outlives_its_reader_and_never_blocks() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    notify = process.Notifier(writing)
    for _ in range(2000):  # more than a pipe holds
        notify.send("loading", filler="x" * 100)
    os.close(reading)
    notify.send("ready")
    notify.send("ready")
    os.close(writing)


def test_a_status_pipe_is_not_inherited_by_what_the_worker_starts() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    process.Notifier(writing)
    assert not os.get_inheritable(writing)
    os.close(reading)
    os.close(writing)


# --- spawn


def test_a_spawned_child_leads_its_own_session_and_speaks_on_its_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    code = """
        import json, os, sys
        from engine.process import Notifier
        Notifier(int(sys.argv[1])).send(
            "ready", sid=os.getsid(0), cwd=os.getcwd(),
            env=[os.environ.get(name) for name in ("INHERITED", "OWN", "SPT_NOENV")],
            stdin=sys.stdin.read(), fds=sorted(int(fd) for fd in os.listdir("/proc/self/fd")))
    """
    spawned = process.spawn(lambda fd: python(code, str(fd)), env={"OWN": "too"})
    try:
        assert spawned.process.wait(PATIENCE_S) == 0
        told = json.loads(os.read(spawned.status_fd, 65536))
    finally:
        os.close(spawned.status_fd)
    assert told["sid"] == spawned.pid
    assert told["cwd"] == os.getcwd()
    assert told["env"] == ["yes", "too", "1"]
    assert told["stdin"] == ""
    assert "OWN" not in os.environ
    assert len(told["fds"]) <= 5  # 0, 1, 2, the pipe, and the listing itself


def test_a_command_that_cannot_be_run_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No such file"):
        process.spawn(lambda fd: ["/nonexistent/program"])
    assert os.listdir("/proc/self/fd") == before


# --- parents


def test_a_child_dies_with_its_parent_even_when_that_is_killed() -> None:
    child = """
        import os, sys, time
        from engine.process import die_with_parent
        die_with_parent(int(sys.argv[1]))
        print(os.getpid(), flush=True)
        time.sleep(600)
    """
    parent = f"""
        import os, subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", {textwrap.dedent(child)!r}, str(os.getpid())], start_new_session=True)
        time.sleep(600)
    """
    with subprocess.Popen(python(parent), stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        started.kill()
        wait_gone(pid)


def test_a_child_whose_parent_has_gone_already_ends_at_once() -> None:
    code = "from engine.process import die_with_parent; die_with_parent(1234567); print('alive')"
    done = subprocess.run(python(code), capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


def test_without_a_parent_nothing_happens() -> None:
    process.die_with_parent(None)


def test_orphans_are_adopted_and_seen_as_children() -> None:
    was = process.adopt_orphans()
    try:
        code = """
            import subprocess, sys
            quiet = subprocess.DEVNULL
            print(subprocess.Popen([sys.executable, "-c", "input()"], stdin=0, stdout=quiet, stderr=quiet).pid)
        """
        reading, writing = os.pipe()
        done = subprocess.run(python(code), stdin=reading, capture_output=True, timeout=PATIENCE_S, check=True)
        os.close(reading)
        orphan = int(done.stdout)
        assert orphan in process.children()
        os.close(writing)
        assert os.waitpid(orphan, 0)[0] == orphan
    finally:
        assert process.adopt_orphans(was) is True


# --- the machine


def test_cpus_can_be_pinned_only_where_they_are() -> None:
    cpu = process.available_cpus()[0]
    code = f"""
        import os
        from engine.process import pin
        pin([{cpu}])
        print(os.sched_getaffinity(0))
    """
    done = subprocess.run(python(code), capture_output=True, timeout=PATIENCE_S, check=True, text=True)
    assert done.stdout.strip() == str({cpu})
    with pytest.raises(StartError, match="cannot pin to CPU"):
        process.pin([100_000])
    process.pin([])


@pytest.mark.parametrize(
    ("visible", "expected"), [("", 0), ("-1", 0), ("0", 1), ("0,1", 2), ("GPU-1a, GPU-2b", 2), ("0,-1,1", 1)]
)
def test_gpus_are_counted_from_what_cuda_is_allowed_to_see(visible: str, expected: int) -> None:
    assert process.count_gpus({"CUDA_VISIBLE_DEVICES": visible}) == expected


# --- placement

TWO_GPUS = {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_a_place_tells_its_worker_where_to_run_and_its_own_environment(tmp_path: Path) -> None:
    deployment = make(tmp_path, num=2, cpus=[[0], [0]], device="cuda:1", env=[{"A": "1"}, {"OMP_NUM_THREADS": "7"}])
    places = process.place(deployment, [("a", 1), ("a", 2)], environ={"MKL_NUM_THREADS": "5", **TWO_GPUS})
    first, second = places["a", 1], places["a", 2]
    assert first.cpus == (0,)
    assert first.env["A"] == "1"
    assert "A" not in second.env
    assert first.env["OMP_NUM_THREADS"] == "1"
    assert second.env["OMP_NUM_THREADS"] == "7"  # the file's word
    assert "MKL_NUM_THREADS" not in first.env  # the user's environment already says
    assert (first.env["ENGINE_DEVICE"], first.env["ENGINE_CPUS"]) == ("cuda:1", "0")
    assert "CUDA_VISIBLE_DEVICES" not in first.env


def test_a_spare_is_placed_where_those_are_whom_it_may_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "available_cpus", lambda: [0, 1, 2, 3, 4])
    monkeypatch.setattr(process, "quota", lambda: None)
    deployment = make(tmp_path, num=2, spare=1, env=[{"A": "1"}, {}])
    *workers, other = process.slots(deployment)
    assert workers == [("a", 1), ("a", 2), ("a", 3)]
    places = process.place(deployment, [*workers, other], environ={"CUDA_VISIBLE_DEVICES": "0,1,2"})
    assert [places[one].cpus for one in workers] == [(1, 2), (3,), (1, 2, 3)], "none of its own, which would idle"
    assert [places[one].env["OMP_NUM_THREADS"] for one in workers] == ["2", "1", "1"]
    assert places[other].cpus == (4,)  # and the first is the broker's and the frontend's
    assert [places[one].device for one in workers] == ["cuda:0", "cuda:1", "cuda:2"], "its model takes a GPU's memory"
    assert places["a", 3].env["A"] == "1"
    alone = process.place(deployment, [("a", 3)], environ={"CUDA_VISIBLE_DEVICES": "0"})
    assert alone["a", 3].device == "cuda:0"


@pytest.mark.parametrize(
    ("device", "visible", "words"),
    [
        ("cuda", "", 'stage "a": device = "cuda" needs cuda:0, and there is no GPU'),
        ("cuda:7", "0,1", 'device = "cuda:7" needs cuda:7, and there are 2 GPUs'),
        (["cpu", "cuda:1"], "0", 'device = ["cpu", "cuda:1"] needs cuda:1, and there is 1 GPU'),
    ],
)
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: object, visible: str, words: str) -> None:
    deployment = make(tmp_path, num=2, device=device)
    with pytest.raises(StartError) as refused:
        process.place(deployment, [("a", 1), ("a", 2)], environ={"CUDA_VISIBLE_DEVICES": visible})
    assert words in str(refused.value)
    assert 'set device = "auto"' in str(refused.value)


GPU, CPU = process.Placement((4, 5), "cuda:0", {}), process.Placement((2, 3), "cpu", {})


@pytest.mark.parametrize(
    ("places", "others", "expected"),
    [
        ([GPU, CPU], 4, {"ENGINE_CPUS": "0,1,2,3"}),
        ([GPU, CPU], 5, {}),  # less than a CPU for each of them
        ([CPU], 2, {}),
        ([process.Placement((), "cuda:0", {})], 2, {}),  # bound to none
    ],
)
def test_the_broker_and_the_frontend_leave_its_cpus_to_a_worker_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch, places: list[process.Placement], others: int, expected: dict[str, str]
) -> None:
    assert process.around(places, others, available=range(6)) == expected
    pinned: list[list[int]] = []
    monkeypatch.setattr(process, "pin", pinned.append)
    monkeypatch.setattr(process, "available_cpus", lambda: [1, 2, 3])  # fewer than when that was said
    monkeypatch.delenv("ENGINE_CPUS", raising=False)
    for name, value in expected.items():
        monkeypatch.setenv(name, value)
    process.stay_around()
    assert pinned == ([[1, 2, 3]] if expected else [])


def test_all_processes_of_a_deployment_are_told_their_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "available_cpus", lambda: list(range(8)))
    monkeypatch.setattr(process, "quota", lambda: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    deployment = make(tmp_path, device="cuda:0")  # and "b" takes the GPU too
    told = {
        child.name: env.get("ENGINE_CPUS")
        for child, env in family.environments(deployment, family.whole(deployment)).items()
    }
    assert told == {"broker": "0,1", "worker a-1": "2,3,4", "worker b-1": "5,6,7", "frontend": "0,1"}


@pytest.mark.parametrize(
    ("first", "last", "visible", "expected"),
    [
        ({}, {}, "0", {"cuda:0"}),
        ({}, {}, "0,1", {"cuda:0", "cuda:1"}),  # it may be given more workers while it runs
        ({}, {"device": "cuda:0", "num": 3}, "0,1", {"cuda:0"}),
        ({}, {"device": ["cuda:1", "cuda:0"], "num": 2}, "0,1", {"cuda:0", "cuda:1"}),
        ({}, {"device": ["cuda:0", "cpu"], "num": 2}, "0,1", set()),
        ({}, {"device": "cpu"}, "0", set()),
        ({}, {}, "", set()),
        ({"env": {"CUDA_VISIBLE_DEVICES": "1"}}, {}, "0,1", set()),  # its numbers are not those of the others
        ({}, {"num": 2, "env": [{}, {"CUDA_VISIBLE_DEVICES": "1"}]}, "0,1", set()),
    ],
)
def test_a_worker_knows_on_which_gpus_its_results_are_read(
    tmp_path: Path, first: dict[str, object], last: dict[str, object], visible: str, expected: set[str]
) -> None:
    data = {
        "stage": [{"name": "a", "worker": "s:A", **first}, {"name": "b", "worker": "s:B", **last}],
        "route": [{"path": "/long", "stages": ["a", "b"]}, {"path": "/short", "stages": ["a"]}],
    }
    deployment = build_deployment(data, file=tmp_path / "stages.toml", label="stages.toml", flags={}, environ={})
    environ = {"CUDA_VISIBLE_DEVICES": visible}
    assert process.readers_on(deployment, "a", 1, environ) == expected
    assert process.readers_on(deployment, "b", 1, environ) == set(), "nobody comes after it"


def test_what_goes_on_in_parts_is_read_in_the_region_and_behind_it(tmp_path: Path) -> None:
    devices = {"a": "cuda:0", "b": "cuda:1", "c": "cuda:2"}
    data = {
        "stage": [{"name": name, "worker": "s:A", "device": device} for name, device in devices.items()],
        "route": [{"path": "/parts", "stages": ["a", {"each": "f", "through": "b"}, "c"]}],
    }
    deployment = build_deployment(data, file=tmp_path / "stages.toml", label="stages.toml", flags={}, environ={})
    environ = {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    assert process.readers_on(deployment, "a", 1, environ) == {"cuda:1", "cuda:2"}
    assert process.readers_on(deployment, "b", 1, environ) == {"cuda:2"}
    assert process.readers_on(deployment, "c", 1, environ) == set()


def test_a_worker_whose_own_variables_hide_its_gpu_is_refused(tmp_path: Path) -> None:
    deployment = make(tmp_path, device="cuda:0", env={"CUDA_VISIBLE_DEVICES": ""})
    with pytest.raises(StartError, match="there is no GPU that CUDA_VISIBLE_DEVICES= shows"):
        process.place(deployment, [("a", 1)], environ=TWO_GPUS)


def test_a_worker_whose_variables_hide_gpus_counts_those_it_sees(tmp_path: Path) -> None:
    env = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}, {}, {}]
    deployment = make(tmp_path, num=4, device="auto", env=env)
    workers = [("a", slot) for slot in range(1, 5)]

    def devices(visible: str) -> list[str]:
        places = process.place(deployment, workers, environ={"CUDA_VISIBLE_DEVICES": visible})
        return [places[worker].device for worker in workers]

    assert devices("0,1") == ["cuda:0", "cuda:0", "cuda:0", "cuda:1"]
    assert devices("") == ["cpu"] * 4  # the machine has none, whatever a file says


def test_a_supervised_worker_settles_where_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_CPUS", "all")
    monkeypatch.setenv("ENGINE_DEVICE", "cuda:3")
    placement = process.settle(make(tmp_path), "a", 1)
    assert placement == process.Placement((), "cuda:3", {})


def test_a_worker_run_by_hand_settles_as_one_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": ""})
    deployment = make(tmp_path, cpus="all", device="cpu", env={"OWN": "1"})
    placement = process.settle(deployment, "a", 5)
    assert placement.device == "cpu"
    assert os.environ == {"PATH": "", "OWN": "1", "ENGINE_DEVICE": "cpu", "ENGINE_CPUS": "all"}

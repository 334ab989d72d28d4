"""``engine doctor``: each judgement as a table, and the command on files with something wrong."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from engine import cli
from engine.config import Deployment, load
from engine.doctor import finding, machine, place
from engine.doctor.finding import Grade
from engine.exitcodes import ExitCode

FILE = """
[engine]
name = "ill"
{engine}
[frontend]
address = "127.0.0.1"
port = {port}
{frontend}
[[stage]]
name = "encode"
worker = "service:Encode"
num = 4
device = "cpu"
"""
GIB = 1 << 30


def made(folder: Path, *, engine: str = "", frontend: str = "", port: int = 0) -> Path:
    path = folder / "stages.toml"
    path.write_text(FILE.format(engine=engine, frontend=frontend, port=port))
    return path


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return load(made(tmp_path))


# --- this machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hard", "grade"), [(256, Grade.BAD), (4096, Grade.NOTE), (1 << 20, Grade.GOOD)])
def test_descriptors(deployment: Deployment, hard: int, grade: Grade) -> None:
    found = machine.judge_descriptors(deployment, hard)
    assert found.grade is grade
    assert ("ulimit -n" in found.do) is (grade is not Grade.GOOD)


@pytest.mark.parametrize(
    ("seen", "bound", "usable", "grade"),
    [(8, None, 8.0, Grade.GOOD), (64, 0.5, 0.5, Grade.NOTE), (64, 2.0, 2.0, Grade.GOOD), (1, None, 1.0, Grade.GOOD)],
)
def test_cpus(deployment: Deployment, seen: int, bound: float | None, usable: float, grade: Grade) -> None:
    found = machine.judge_cpus(deployment, seen, bound, usable)
    assert found.grade is grade
    assert (f"of the {seen} that it sees" in found.seen) is (bound is not None)


def test_many_workers_on_few_cpus(deployment: Deployment) -> None:
    (stage,) = deployment.stages
    many = replace(deployment, stages=(replace(stage, num=32),))
    assert "engine plan" in machine.judge_cpus(many, 2, None, 2.0).do


@pytest.mark.parametrize(("most", "grade"), [(GIB // 4, Grade.BAD), (2 * GIB, Grade.NOTE), (64 * GIB, Grade.GOOD)])
def test_memory(deployment: Deployment, most: int, grade: Grade) -> None:
    assert machine.judge_memory(deployment, most).grade is grade


def test_memory_is_at_most_that_of_the_machine() -> None:
    assert 0 < machine.memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("bind", "reserved", "noted"),
    [
        ("tcp://0.0.0.0:40000", "", True),
        ("tcp://0.0.0.0:40000", "39000-41000", False),
        ("tcp://0.0.0.0:7000", "", False),
    ],
)
def test_ports_among_those_of_outgoing_connections(tmp_path: Path, bind: str, reserved: str, noted: bool) -> None:
    deployment = load(made(tmp_path, engine=f'bind = "{bind}"\ninsecure = true'))
    found = list(machine.judge_kernel("4096", "32768\t60999", reserved, deployment))
    assert [one.about for one in found] == ["ports"] * noted
    assert not noted or "ip_local_reserved_ports=40000-" in found[0].do


def test_a_short_backlog(deployment: Deployment) -> None:
    (found,) = machine.judge_kernel("128", "", "", deployment)
    assert "somaxconn" in found.do


@pytest.mark.parametrize(
    ("source", "is_right", "hosts", "grade"),
    [
        ("tsc", True, True, Grade.GOOD),
        ("hpet", True, False, Grade.NOTE),
        ("tsc", False, True, Grade.NOTE),
        ("tsc", False, False, Grade.GOOD),
        ("tsc", None, True, Grade.GOOD),
    ],
)
def test_clocks(source: str, is_right: bool | None, hosts: bool, grade: Grade) -> None:
    assert machine.judge_clock(source, is_right, spans_hosts=hosts).grade is grade


@pytest.mark.parametrize(
    ("required", "installed", "seen"),
    [
        ("pyzmq>=26.0", {"pyzmq": "27.3.0"}, []),
        ("pyzmq>=26.0", {"pyzmq": "25.9"}, ["pyzmq is 25.9, and >=26.0 is needed"]),
        ("gunicorn<27.1,>=27.0", {"gunicorn": "27.1"}, ["gunicorn is 27.1, and <27.1,>=27.0 is needed"]),
        ("gunicorn<27.1,>=27.0", {"gunicorn": "27.0.9"}, []),
        ("torch>=2.1", {"torch": "2.13.0+cpu"}, []),
        ("falcon>=4.0", {}, ["falcon is not installed"]),
        ("tomli>=2.0; python_version < '3.11'", {}, []),
        ("torch>=2.1; extra == 'torch'", {}, []),
    ],
)
def test_requirements(required: str, installed: Mapping[str, str], seen: list[str]) -> None:
    assert [one.seen for one in machine.judge_requirements([required], installed)] == seen


def test_what_is_required_here_is_there() -> None:
    assert all(one.grade is Grade.GOOD for one in machine.packages())


TWO = """a library speaks
torch 2.13.0 13.0 True 2
gpu NVIDIA_H100 80000000000 85000000000
gpu NVIDIA_H100 1000 85000000000
"""


@pytest.mark.parametrize(
    ("wanted", "must", "listed", "told", "grade", "words"),
    [
        (
            {"encode": 2},
            {"encode"},
            ["GPU 0", "GPU 1"],
            TWO,
            Grade.GOOD,
            "2 by torch 2.13.0 with CUDA 13.0: NVIDIA H100",
        ),
        ({"encode": 3}, {"encode"}, ["GPU 0", "GPU 1"], TWO, Grade.NOTE, "3 workers of encode share them"),
        ({"encode": 1}, {"encode"}, ["GPU 0"], "torch 2.13.0+cpu - False 0\n", Grade.BAD, "is built without CUDA"),
        (
            {"encode": 1},
            set(),
            ["GPU 0"],
            "torch 2.13.0 13.0 False 0\n",
            Grade.NOTE,
            "is built for CUDA 13.0, and finds none",
        ),
        ({"encode": 1}, {"encode"}, [], "", Grade.BAD, "the driver lists none"),
        ({"encode": 1}, {"encode"}, ["GPU 0"], "", Grade.BAD, "torch cannot use them"),
    ],
)
def test_gpus(wanted: dict[str, int], must: set[str], listed: list[str], told: str, grade: Grade, words: str) -> None:
    (found,) = machine.judge_gpus(wanted, must, listed, told, "ImportError: no torch")
    assert found.grade is grade
    assert words in found.seen


def test_a_stage_on_the_cpu_asks_for_no_gpu(deployment: Deployment) -> None:
    assert list(machine.gpus(deployment)) == []


# --- a deployment ----------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 28, tzinfo=timezone.utc)


@pytest.mark.parametrize(("days", "grade"), [(-1, Grade.BAD), (3, Grade.NOTE), (90, Grade.GOOD)])
def test_a_certificate_ends(days: int, grade: Grade) -> None:
    assert place.judge_certificate("cert.pem", NOW + timedelta(days=days), NOW).grade is grade


WELL = {"name": "encode", "ready": 2, "wanted": 2, "deaths": 0, "demand_workers": 1.0}


@pytest.mark.parametrize(
    ("stage", "grades", "do"),
    [
        (WELL, [], ""),
        ({**WELL, "ready": 0}, [Grade.BAD], "--level warning"),
        ({**WELL, "ready": 1}, [Grade.NOTE], "engine logs --stage encode"),
        ({**WELL, "deaths": 3, "replayed": 7}, [Grade.NOTE], "recycle_after"),
        ({**WELL, "demand_workers": 4.0}, [Grade.NOTE], "engine scale encode=6"),
        ({"name": "encode", "error": "it cannot say"}, [Grade.BAD], "log"),
        ({**WELL, "ready": 0, "wanted": 0, "bounds": [0, 4]}, [], ""),
        ({**WELL, "ready": 0, "wanted": 1, "bounds": [0, 4]}, [], ""),  # who else scales it than who is asked
        ({**WELL, "ready": 0, "wanted": 0, "bounds": [0, 4], "deaths": 3}, [Grade.NOTE], "recycle_after"),
        ({**WELL, "ready": 0, "wanted": 1, "queued": 1, "bounds": [0, 4]}, [Grade.NOTE], "engine logs"),
        ({**WELL, "ready": 0, "bounds": [0, 4], "not_fed": "it kills"}, [Grade.BAD], "--level warning"),
        ({**WELL, "ready": 0, "bounds": [1, 4]}, [Grade.BAD], "--level warning"),
        ({**WELL, "demand_workers": 3.5, "bounds": [0, 4]}, [], ""),
        ({**WELL, "demand_workers": 4.5, "bounds": [0, 4]}, [Grade.NOTE], "max"),
    ],
)
def test_stages_of_a_running_deployment(stage: dict[str, Any], grades: list[Grade], do: str) -> None:
    found = [
        one for one in place.judge_status({"name": "x", "uptime_s": 5, "stages": [stage]}) if one.about != "running"
    ]
    assert [one.grade for one in found] == grades
    assert all(do in one.do for one in found)


def test_processes_of_several_versions_and_failures_are_told() -> None:
    told = {
        "name": "x",
        "stages": [{**WELL, "workers": [{"pid": 1, "version": "0.1"}, {"pid": 2, "version": "0.2"}]}],
        "errors": [  # the newest first
            {"status": 500, "stage": "encode", "message": "inference internal error"},
            {"status": 408, "stage": "check", "message": "timeout"},
        ],
    }
    by_about = {one.about: one for one in place.judge_status(told)}
    assert "1 of 0.1, 1 of 0.2" in by_about["versions"].seen
    assert "500 at encode" in by_about["failures"].seen


# --- the command -----------------------------------------------------------------------------------------------------


def doctor(file: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and what is bad by what it is about."""
    code = cli.run(["doctor", str(file), "--json", "--run-dir", str(file.parent / "run"), *words])
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is (code == ExitCode.OK)
    return code, {one["about"]: one for one in told["findings"] if one["grade"] == "bad"}


def test_nothing_is_wrong_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(made(tmp_path), capsys) == (ExitCode.OK, {})


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        code, wrong = doctor(made(tmp_path, port=taken.getsockname()[1]), capsys)
    assert code == ExitCode.FAILED
    assert "in use" in wrong["port"]["seen"]
    assert "ss -ltnp" in wrong["port"]["do"]


def test_a_broker_that_is_not_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as gone:
        port = gone.getsockname()[1]
    _, wrong = doctor(made(tmp_path, engine=f'broker = "127.0.0.1:{port}"\ninsecure = true'), capsys)
    assert "refused" in wrong["broker"]["seen"]


def test_a_key_that_others_may_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["keys", "new", str(tmp_path / "k")]) == ExitCode.OK
    (tmp_path / "k").chmod(0o644)
    capsys.readouterr()
    _, wrong = doctor(made(tmp_path, engine='bind = "tcp://127.0.0.1:7000"\nkey = "k"'), capsys)
    assert "may be read by others" in wrong["key"]["seen"]


def test_a_certificate_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    _, wrong = doctor(made(tmp_path, frontend='certfile = "cert.pem"'), capsys)
    assert "no certificate" in wrong["certificate"]["seen"]


def test_a_run_directory_where_others_may_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    file = made(tmp_path)
    code = cli.run(["doctor", str(file), "--run-dir", str(tmp_path / "open" / "run")])
    assert code == ExitCode.FAILED
    assert "other users may write" in capsys.readouterr().out


def test_what_is_found_is_shown_with_what_to_do() -> None:
    found = [finding.bad("port", "taken", "another"), finding.good("cpus", "2"), finding.note("clock", "slow", "see")]
    assert finding.text(found, colour=False) == (
        "good  cpus          2\n"
        "note  clock         slow\n"
        "                    -> see\n"
        "bad   port          taken\n"
        "                    -> another\n"
        "\n"
        "1 of 3 to mend, 1 to know"
    )

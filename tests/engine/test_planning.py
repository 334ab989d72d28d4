"""``engine plan``: its words, its files, and stages that are measured. What it computes is in tests/simulation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import cli
from engine.broker.report import stage_status
from engine.config import load
from engine.core.stats import Histogram
from engine.errors import ConfigError
from engine.exitcodes import ExitCode
from engine.metrics import Family, Sources, counter, histogram, pack, pack_sources
from engine.planning import profiles
from engine.planning.watched import Scrape, seen_between
from engine.simulation.arrivals import Renewal
from engine.simulation.world import Works, World
from engine.specs import front_spec, stage_spec
from stages.profiling import profile_stage

FILE = """
[engine]
name = "planned"
[[stage]]
name = "first"
worker = "service:First"
max_batch_size = 4
[[stage]]
name = "second"
worker = "service:Second"
max_batch_size = 8
"""

SERVICE = """
import time
from engine import Worker

print("user code prints")

class First(Worker):
    example = [1, 2]
    def forward(self, data):
        print("and again")
        time.sleep(0.001 + 0.001 * len(data))
        return [value + 1 for value in data]

class Second(Worker):  # it has no example, and lives on what the first returns
    def forward(self, data):
        assert all(value in (2, 3) for value in data), data
        time.sleep(0.003)
        return data
"""

PROFILE = {
    "format": "stageline profile 1",
    "stages": {"first": {"ms": {"1": 2, "4": 4}, "noise": 0.3}, "second": {"ms": {"1": 5}}},
}
QUICK = ("--requests", "300", "--seeds", "1")


@pytest.fixture
def file(tmp_path: Path, imports_are_undone: None) -> Path:
    (tmp_path / "stages.toml").write_text(FILE)
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    return tmp_path / "stages.toml"


def plan(file: Path, *words: str) -> int:
    return cli.run(["plan", str(file), "--run-dir", str(file.parent / "run"), *words])


def given(file: Path) -> tuple[str, ...]:
    return ("--profile", str(file.parent / "profile.json"), *QUICK)


# --- words -----------------------------------------------------------------------------------------------------------


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(["plan", "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "engine plan stages.toml --rate 400 --slo 200ms\n" in told
    assert "engine plan --check stages.toml --plan plan.json\n" in told
    assert "--measure" not in told


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--rate", "4"], "within which time? --slo 200ms"),
        (["--slo", "200ms"], "how many requests? --rate 400"),
        (["--rate", "4", "--slo", "200"], "expected a time with its unit, such as 200ms"),
        (["--rate", "0", "--slo", "1s"], "expected more than 0 requests per second"),
        (["--rate", "many", "--slo", "1s"], "expected a number, 0 or more, got many"),
        (["--rate", "4", "--slo", "1s", "--devices", "3"], "one of the two"),
        (["--rate", "4", "--slo", "1s", "--target", "99"], "expected a share between 0 and 1, such as 0.99 or 99%"),
        (["--rate", "4", "--slo", "1s", "--picture", "x.png"], "expected a name that ends in .svg, got x.png"),
        (["--rate", "4", "--slo", "1s", "--arrivals", "x", "--cv", "2"], "one of the two"),
        (["--rate", "4", "--slo", "1s", "--profile", "x", "--running"], "one of the two"),
        (["--check"], "within which time? --slo 200ms, or slo in the file"),
    ],
)
def test_words_that_do_not_do_are_told_what_would(
    file: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        plan(file, *words)
    assert end.value.code == ExitCode.USAGE
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--profile", "none.json"], "--profile none.json: cannot be read: No such file"),
        (["--profile", "stages.toml"], "--profile: stages.toml: not JSON"),
        (["--arrivals", "trace.csv"], "--arrivals: trace.csv, line 2: expected a number of seconds or a date, got 'x'"),
        (["--keep", "third=1"], "--keep: expected STAGE=N, one of first, second; got third=1"),
        (["--share", "/x=1"], "--share: expected PATH=N, one of /inference; got /x=1"),
        (["--picture", "none/x.svg"], "none/x.svg: cannot be written: No such file"),
    ],
)
def test_files_and_names_that_are_wrong_are_told_with_what_was_expected(
    file: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "trace.csv").write_text("ts\nx\n")
    usual = given(file) if "--profile" not in words else QUICK
    assert plan(file, "--rate", "4", "--slo", "1s", *usual, *words) == ExitCode.CONFIG
    assert hint in capsys.readouterr().err


def test_too_few_devices_for_the_stages_are_told_so(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(file, "--slo", "1s", "--devices", "1", *given(file)) == ExitCode.CONFIG
    assert "--devices 1: expected one at least for each stage: first, second" in capsys.readouterr().err


def test_a_profile_that_lacks_a_stage_is_told_so(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps({**PROFILE, "stages": {"first": {"ms": {"1": 2}}}})
    (file.parent / "profile.json").write_text(text)
    assert plan(file, "--rate", "4", "--slo", "1s", *given(file)) == ExitCode.CONFIG
    assert "the profile has no stage second (it has: first)" in capsys.readouterr().err


THIRD = '[[stage]]\nname = "third"\nworker = "service:Third"\n'
PAGES = f"""{FILE}{THIRD}[[route]]
path = "/pages"
stages = ["first", {{ each = "", through = "second", most = 50 }}, "third"]
"""


@pytest.fixture
def pages(file: Path) -> Path:
    """Requests go on in parts."""
    file.write_text(PAGES)
    stages = {**PROFILE["stages"], "second": {"ms": {"1": 5, "8": 40}}, "third": {"ms": {"1": 1}}}  # type: ignore[dict-item]
    (file.parent / "profile.json").write_text(json.dumps({**PROFILE, "stages": stages}))
    return file


def planned_aside(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """By the command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "engine", "plan", str(file), *words],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.OK, done.stderr
    return done


def planned(capsys: pytest.CaptureFixture[str]) -> tuple[list[int], list[str]]:
    told = json.loads(capsys.readouterr().out)
    return [stage["workers"] for stage in told["best"]["stages"]], told["notes"]


def test_parts_are_a_factor_of_the_rate_of_the_stages_that_they_pass(
    pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ("--rate", "20", "--slo", "500ms", "--json", *given(pages), "--requests", "100")
    workers = {}
    for count in ("1", "15", "/pages=15"):
        assert plan(pages, *usual, "--parts", count) == ExitCode.OK
        workers[count], notes = planned(capsys)
        assert not [note for note in notes if "--parts" in note]
    assert workers["15"] == workers["/pages=15"]
    assert workers["1"] == [1, 1, 1]
    assert workers["15"][1] >= 2  # 300 of them a second, of 5 ms each


def test_how_many_parts_there_are_is_in_the_profile_or_asked_for(
    pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ("--rate", "20", "--slo", "500ms", "--json", *given(pages), "--requests", "100")
    assert plan(pages, *usual) == ExitCode.CONFIG
    hint = "route /pages: requests go on in parts there behind first, and of how many nobody knows: give --parts N"
    assert hint in capsys.readouterr().err
    told = json.loads((pages.parent / "profile.json").read_text())
    told["stages"]["first"]["parts"] = {"/pages": [10, 20]}
    (pages.parent / "profile.json").write_text(json.dumps(told))
    assert plan(pages, *usual) == ExitCode.OK
    workers, notes = planned(capsys)
    assert workers[1] >= 2
    assert [note for note in notes if "/pages: a request was taken to have 10 to 20 parts behind first" in note]


@pytest.mark.parametrize(
    ("parts", "hint"),
    [
        ("51", "--parts 51: route /pages takes 50 at most"),
        ("/page=3", "--parts: expected N or PATH=N, one of /pages; got /page=3"),
        ("many", "--parts: expected N or PATH=N, one of /pages; got many"),
    ],
)
def test_parts_that_cannot_be_are_told_so(
    pages: Path, parts: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(pages, "--rate", "4", "--slo", "1s", *given(pages), "--parts", parts) == ExitCode.CONFIG
    assert hint in capsys.readouterr().err


def test_without_lists_there_are_no_parts_to_tell_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(file, "--rate", "4", "--slo", "1s", *given(file), "--parts", "3") == ExitCode.CONFIG
    assert "--parts: no route of the file takes a list apart" in capsys.readouterr().err


def test_parts_are_counted_in_what_a_stage_returns_for_its_example(pages: Path) -> None:
    code = """
class Third(Worker):
    def forward(self, value):
        assert len(value) in (3, 5), value
        return value
"""
    (pages.parent / "service.py").write_text(
        SERVICE.replace("[value + 1 for value in data]", "[[2] * (1 + 2 * value) for value in data]") + code
    )
    kept = pages.parent / "kept.json"
    words = ["--rate", "5", "--slo", "2s", "--save-profile", str(kept), "--json", *QUICK]
    done = planned_aside(pages, *words)
    assert json.loads(kept.read_text())["stages"]["first"]["parts"] == {"/pages": [3.0, 5.0]}
    assert "3 to 5 parts behind first, by its profile" in done.stdout


def test_a_stage_behind_a_choice_is_measured_with_what_takes_its_branch(file: Path) -> None:
    code = """
from engine import Worker

class First(Worker):
    example = [{"way": "a", "x": 1}, {"way": "b", "y": 1}]
    def forward(self, data):
        return data

class Second(Worker):
    def forward(self, data):
        return [value["y"] for value in data]
"""
    (file.parent / "service.py").write_text(code)
    route = '[[route]]\npath = "/r"\nstages = ["first", { by = "way", of = { b = "second" }, default = [] }]\n'
    file.write_text(f"{FILE}{route}")
    assert profile_stage(load(file), "second").times[8] > 0.0


def test_a_running_deployment_tells_how_many_parts_there_are_lately(pages: Path) -> None:
    told = [{"name": name, "learned": {"ms": {"1": 2}}} for name in ("first", "second", "third")]
    status = {"stages": told, "parts": [{"route": "/pages", "stage": "first", "mean": 12.5}]}
    profile = profiles.learned(load(pages), status)
    assert profile.of("first").parts == {"/pages": [12.5]}
    assert profile.of("second").parts == {}


@pytest.mark.parametrize("words", [("--running", "--rate", "4", "--slo", "1s"), ("--check", "--slo", "1s")])
def test_nobody_that_runs_is_told_so(
    file: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "ASK_S", 0.1)  # nobody answers, however long it is waited
    assert plan(file, *words) == ExitCode.UNREACHABLE
    assert f"start it with: engine up {file}" in capsys.readouterr().err


# --- answers ---------------------------------------------------------------------------------------------------------


def test_workers_for_a_rate_by_a_profile(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = file.parent / "plan.svg"
    assert plan(file, "--rate", "400", "--slo", "60ms", "--picture", str(picture), *given(file)) == ExitCode.OK
    told = capsys.readouterr()
    assert "planned: the fewest workers for 400 requests/s, within 60 ms for 99 %" in told.out
    assert "first 1, second 1" in told.out
    assert "arrivals were taken for independent (Poisson)" in told.out
    assert "second: batches of more than 1 were not measured" in told.out
    assert "first: single batches took 30 % more or less than usual" in told.out
    assert "plan: 400/s, first 1, second 1 workers: 100 % in time" in told.err
    assert picture.read_text().startswith("<svg ")


def test_a_rate_for_workers_as_data(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--devices", "3", "--slo", "60ms", "--cv", "2", "--keep", "first=1", "--json")
    assert plan(file, *words, *given(file)) == ExitCode.OK
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [stage["workers"] for stage in told["best"]["stages"]] == [1, 3]
    assert told["rate"] == told["best"]["rate"] > 300
    assert told["arrivals"] == "gamma, CV 2"


def test_goals_of_the_file_are_those_of_the_plan(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routes = "".join(
        f'[[route]]\npath = "/{name}"\nstages = ["first"{more}]\nslo = "{slo}"\n'
        for name, more, slo in (("short", "", "30 ms"), ("long", ', "second"', "60 ms"))
    )
    file.write_text(FILE + routes)
    assert plan(file, "--rate", "100", "--json", *given(file)) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert told["slos_s"] == [0.03, 0.06]
    assert told["alone_s"] == [pytest.approx(0.0026), pytest.approx(0.0082)]
    assert not [note for note in told["notes"] if "planned with slo" in note]
    assert [note for note in told["notes"] if "--share PATH=N says otherwise" in note]
    assert plan(file, "--rate", "100", "--slo", "50ms", "--share", "/short=1", *given(file)) == ExitCode.OK
    assert '(!) planned with slo = "50 ms" below [frontend], which the file does not say' in capsys.readouterr().out


def test_a_goal_that_cannot_be_had_is_a_failure(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(file, "--rate", "4", "--slo", "5ms", *given(file)) == ExitCode.FAILED
    assert "one request alone takes 8.2 ms, and no number of workers changes that" in capsys.readouterr().out


def test_recorded_arrivals_bring_their_own_rate(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = file.parent / "trace.csv"
    trace.write_text("gap\n" + "0.01\n0.03\n" * 100)
    assert plan(file, "--arrivals", str(trace), "--slo", "60ms", *given(file)) == ExitCode.OK
    told = capsys.readouterr().out
    assert "the fewest workers for 50 requests/s" in told
    assert "trace.csv has 200 gaps: some thousands tell more of bursts" in told
    assert "Poisson" not in told


def test_stages_are_measured_each_in_a_process_of_its_own_and_their_profile_is_kept(file: Path) -> None:
    kept = file.parent / "kept.json"
    words = ["--rate", "50", "--slo", "1s", "--save-profile", str(kept), "--json", *QUICK]
    done = planned_aside(file, *words)
    assert json.loads(done.stdout)["is_met"], "what user code prints is no part of it"
    assert "user code prints" in done.stderr
    assert re.search(r"plan: first: size 1 of 4: a batch of 1 takes \d", done.stderr)
    assert "second: it has no example; loading first, whose results it is given" in done.stderr
    stages = json.loads(kept.read_text())["stages"]
    assert list(stages["first"]["ms"]) == ["1", "2", "3", "4"]
    assert list(stages["second"]["ms"]) == ["1", "2", "3", "4", "5", "8"]
    assert stages["first"]["ms"]["4"] >= 5.0
    assert stages["second"]["ms"]["8"] >= 3.0
    assert stages["second"]["device"] == "cpu"


def test_a_stage_that_cannot_be_measured_is_told_what_to_do(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (file.parent / "service.py").write_text(SERVICE.replace("    example = [1, 2]\n", ""))
    assert plan(file, "--rate", "50", "--slo", "1s", *QUICK) == ExitCode.START
    told = capfd.readouterr().err
    assert "nothing to measure stage first with: give First an example" in told
    assert "stage first was not measured (exit code 4), see above" in told


# --- a running deployment --------------------------------------------------------------------------------------------


def answer(codes: dict[str, int], durations: Histogram, forward_s: float) -> bytes:
    frontend: list[Family] = [
        counter("e_throughput", "", [({"code": code, "endpoint": "/a"}, count) for code, count in codes.items()]),
        histogram("e_request_duration_second", "", [({"endpoint": "/a"}, durations)]),
    ]
    broker = [counter("e_worker_forward_seconds", "", [({"stage": "s", "connection": "1"}, forward_s)])]
    return pack_sources(Sources(broker=pack(broker), frontends=[("f", pack(frontend))]))


def test_what_happened_between_two_looks_is_seen() -> None:
    durations = Histogram((0.1, 0.2, 0.4))
    before = Scrape.of(answer({"200": 1}, durations, 3.0), "e")
    for seconds in [0.05] * 80 + [0.15] * 110 + [0.3] * 10:  # ten of the first were refused
        durations.observe(seconds)
    after = Scrape.of(answer({"200": 191, "429": 10}, durations, 13.0), "e")
    seen = seen_between(before, after, 10.0, {"/a": 0.2}, {"s": 2})
    assert seen.rate == 20.0
    assert seen.refused == 0.05
    assert seen.in_time == pytest.approx(0.9)
    assert seen.busy == {"s": pytest.approx(0.5)}
    assert seen.p50_s == pytest.approx(0.1 + 0.1 * 20 / 110)
    assert seen.p99_s == pytest.approx(0.2 + 0.2 * 0.8)


def test_what_a_broker_has_learned_is_a_profile(file: Path) -> None:
    """Of simulated workers, whose times are known."""
    deployment = load(str(file))
    curves = [lambda n: 0.004 + 0.001 * n, lambda n: 0.010 + 0.0001 * n]
    specs = [stage_spec(stage, deployment.engine) for stage in deployment.stages]
    world = World(deployment.topology, specs, [Works(curve) for curve in curves], front=front_spec(deployment))
    told = {"stages": [msgspec.to_builtins(stage_status(stage, world.now)) for stage in world.stages]}
    with pytest.raises(ConfigError, match="nothing is known yet of first, second: send it some requests"):
        profiles.learned(deployment, told)
    world.arrive(islice(Renewal(300.0).instants(1), 600), budget_s=3.0)
    world.finish()
    told = {"stages": [msgspec.to_builtins(stage_status(stage, world.now)) for stage in world.stages]}
    assert [stage["arrived"] for stage in told["stages"]] == [600, 600]
    found = profiles.learned(deployment, told)
    for name, curve in zip(("first", "second"), curves, strict=True):
        assert {n: round(found.of(name).curve(n), 4) for n in (1, 2, 4)} == {
            n: pytest.approx(curve(n), rel=0.02) for n in (1, 2, 4)
        }
        assert found.of(name).noise < 0.05
    assert found.hop_s == pytest.approx(0.0003, rel=0.2)


def test_where_nothing_came_nothing_is_said() -> None:
    same = Scrape.of(answer({"200": 7}, Histogram((0.1,)), 3.0), "e")
    seen = seen_between(same, same, 10.0, {"/a": 0.2}, {"s": 2})
    assert (seen.rate, seen.in_time, seen.p99_s) == (0.0, None, None)

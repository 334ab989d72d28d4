"""The benchmark's pure parts: what it reads, what it computes, what it writes; and its client against a real socket.

How fast anything is stands nowhere here: the benchmark itself says that.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import (
    bench,
    closed,
    crowd,
    floor,
    goals,
    hops,
    load,
    nginx,
    pages,
    plan,
    processes,
    ration,
    record,
    report,
    saturation,
    stats,
    systems,
    table,
    work,
    wrk,
)
from benchmarks.__main__ import RESULTS, listing, main, measured_by
from benchmarks.cases import CASES, accelerator, branches, chosen, cores, echo, gpu, hosts, http, launch, slo
from benchmarks.offline import OFFLINE, offline
from benchmarks.picture import draw, file_name
from benchmarks.result import OURS, PEER, Case, Metric, Picture, Row, Summary, Target, at, grown, worst
from engine.config import load as load_config

ROOT = Path(__file__).parents[1]


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "q", "expected"),
    [([1.0], 50, 1.0), ([1.0, 2.0], 50, 1.0), ([3.0, 1.0, 2.0], 50, 2.0), ([1.0, 2.0], 99, 2.0), ([5.0, 4.0], 0, 4.0)],
)
def test_a_percentile_is_one_of_the_samples(samples: list[float], q: float, expected: float) -> None:
    assert stats.percentile(samples, q) == expected


def test_percentiles_of_a_hundred_are_their_ranks() -> None:
    hundred = [float(number) for number in range(100, 0, -1)]
    assert [stats.percentile(hundred, q) for q in (1, 50, 99, 100)] == [1, 50, 99, 100]


def test_no_samples_have_no_percentile_and_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        stats.percentile([], 50)
    with pytest.raises(ValueError, match="no samples"):
        stats.median([])


def test_a_median_lies_in_the_middle() -> None:
    assert stats.median([9, 1, 5]) == 5
    assert stats.median([1, 2, 3, 10]) == 2.5


def test_arrivals_are_the_same_for_every_system() -> None:
    assert stats.arrivals(100, 5, seed=3) == stats.arrivals(100, 5, seed=3)
    assert stats.arrivals(100, 5, seed=3) != stats.arrivals(100, 5, seed=4)


def test_arrivals_are_a_poisson_process() -> None:
    times = stats.arrivals(1000, 20, seed=1)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 20
    assert len(times) == pytest.approx(20_000, rel=0.03)  # four standard deviations
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.1)  # as of an exponential distribution


def test_an_impossible_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        stats.arrivals(0, 1, seed=1)


# --- wrk -------------------------------------------------------------------------------------------------------------

WRK = """\
Running 2s test @ http://127.0.0.1:1234/inference
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.80ms    4.11ms  26.06ms   85.69%
    Req/Sec    46.30k   170.59    74.00k    80.00%
  Latency Distribution
     50%  950.00us
     75%    5.88ms
     90%   10.45ms
     99%    1.20s
  46600 requests in 2.01s, 93.29KB read
Requests/sec:  23184.08
Transfer/sec:     92.67KB
"""


def test_a_report_of_wrk_is_read() -> None:
    found = wrk.parse(WRK)
    assert (found.requests, found.seconds, found.errors, found.not_2xx) == (46600, 2.01, 0, 0)
    assert found.p50_ms == pytest.approx(0.95)
    assert found.p99_ms == pytest.approx(1200)
    assert found.rate == pytest.approx(46600 / 2.01)


def test_what_went_wrong_is_read_from_wrk() -> None:
    told = WRK + "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 17\n"
    assert (wrk.parse(told).errors, wrk.parse(told).not_2xx) == (10, 17)


def test_something_else_is_no_report() -> None:
    with pytest.raises(ValueError, match="not a report"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused")


def test_wrk_is_called_with_whole_seconds() -> None:
    words = wrk.command("http://127.0.0.1:1/", connections=16, seconds=1.2, script=Path("/x.lua"))
    assert "-d2s" in words
    assert "-c16" in words


def test_the_body_is_a_string_of_lua() -> None:
    assert 'wrk.body = "{\\"x\\": 2}"\n' in wrk.script('{"x": 2}')


def test_bodies_take_turns() -> None:
    script = wrk.script("{}", bodies=('{"page": 0}', '{"page": 1}'))
    assert 'local bodies, whole, turn = {"{\\"page\\": 0}", "{\\"page\\": 1}"}, {}, 0\n' in script
    assert "turn = turn % #whole + 1 return whole[turn]" in script


def test_a_head_is_of_fields_of_every_request() -> None:
    assert 'wrk.headers["Connection"] = "close"\n' in wrk.script("{}", wrk.Head({"Connection": "close"}))
    assert "function" not in wrk.script("{}", wrk.Head({"Connection": "close"}))


def test_a_changing_head_has_another_number_in_every_request() -> None:
    fields = {"x-request-id": "a-%012x", "traceparent": "00-%012x-%012x-01"}
    one, changing = (wrk.script("{}", wrk.Head(fields, changing)) for changing in (False, True))
    assert "string.format(whole, number, number, number)" in changing
    assert "number = number + 1 " in changing
    assert one == changing.replace("number + 1 ", "number + 0 ")  # as much work for wrk
    with pytest.raises(ValueError, match="%"):
        wrk.script('{"x": "100 %"}', wrk.Head(fields))


@pytest.mark.parametrize("head", http.HEADS.values(), ids=http.HEADS)
def test_a_traced_head_is_one(head: wrk.Head) -> None:
    first, second = ({name: value % ((n,) * value.count("%")) for name, value in head.fields.items()} for n in (1, 2))
    assert first != second
    assert {name: len(value) for name, value in first.items()} == {"x-request-id": 36, "traceparent": 55}
    assert len({len(value) for value in first["traceparent"].split("-")}) == 3


# --- nginx -----------------------------------------------------------------------------------------------------------


def configured(way: nginx.Way, *, root: bool = False) -> list[str]:
    return nginx.config(way, port=80, server_port=8000, folder=Path("/f"), root=root).splitlines()


def test_nginx_passes_on_by_its_defaults_or_keeps_connections() -> None:
    assert "    location / { proxy_pass http://server; }" in configured("default")
    assert "  upstream server { server 127.0.0.1:8000;  }" in configured("default")
    assert any("keepalive 64;" in line for line in configured("keep-alive"))
    assert any("proxy_http_version 1.1;" in line for line in configured("keep-alive"))


def test_nginx_keeps_to_the_loopback_and_to_its_folder() -> None:
    lines = configured("default")
    assert [line.strip() for line in lines if "listen" in line] == ["listen 127.0.0.1:80;"]
    assert sum(" /f/" in line for line in lines) == 7
    assert configured("default", root=True) == ["user root;", *lines]  # else its workers could not enter the folder


@pytest.mark.skipif(nginx.missing() is not None, reason=str(nginx.missing()))
@pytest.mark.parametrize("way", nginx.LOCATION)
def test_nginx_answers_for_a_system_and_is_gone_after_it(way: nginx.Way, tmp_path: Path) -> None:
    with answering(OK) as port:
        running = systems.Running(OURS, plan.Service((closed.ECHO,)), 0, port, tmp_path)
        with nginx.proxied(running, way, tmp_path / "nginx", "{}") as seen:
            assert seen.port != port
            assert systems.ask(seen.port, "/inference", "{}") == (200, b"ok")
            master = psutil.Process(int((tmp_path / "nginx" / "nginx.pid").read_text()))
            members = [master, *master.children(recursive=True)]
    assert len(members) > 1
    assert not any(member.is_running() for member in members)


@pytest.mark.skipif(nginx.missing() is not None, reason=str(nginx.missing()))
def test_nginx_that_cannot_reach_the_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    post = systems.post

    def heard(port: int, path: str, body: str) -> int:
        """What nginx itself says, once it listens."""
        while not (status := post(port, path, body)):
            time.sleep(0.01)
        return status

    monkeypatch.setattr(systems, "post", heard)
    monkeypatch.setattr(nginx, "START_S", 0)
    running = systems.Running(OURS, plan.Service((closed.ECHO,)), 0, systems.free_port(), tmp_path)
    with (
        pytest.raises(RuntimeError, match="Connection refused"),
        nginx.proxied(running, "default", tmp_path / "nginx", "{}"),
    ):
        pass


def test_a_machine_without_nginx_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nginx, "binary", lambda: None)
    assert "apt-get install nginx" in str(nginx.missing())


# --- what workers write ----------------------------------------------------------------------------------------------


def packed(*batches: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<qqq", *batch) for batch in batches)


def test_a_worker_s_record_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(work.RECORD_VARIABLE, str(tmp_path))
    worker = work.Accelerator()
    worker.record(123, 7)
    os.close(worker.file)
    (batches,) = record.read(tmp_path).values()
    assert [(batch.begin_ns, batch.items) for batch in batches] == [(123, 7)]
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_a_record_cut_short_is_left_out() -> None:
    assert len(record.parse(packed((0, 1, 2), (3, 4, 5))[:-1])) == 1


def test_gaps_are_taken_before_full_batches_only() -> None:
    batches = record.parse(packed((0, 1000, 32), (3000, 9000, 32), (20_000, 30_000, 5), (31_000, 40_000, 32)))
    assert record.gaps_us(batches, full=32) == [2.0, 1.0]


def test_a_rate_counts_whole_batches() -> None:
    batches = record.parse(packed((0, 10**9, 99), (10**9, 2 * 10**9, 8), (2 * 10**9, 3 * 10**9, 8)))
    assert record.items_per_second(batches) == 8
    assert record.items_per_second(batches[:1]) is None
    assert record.mean_items(batches[1:]) == 8
    assert record.mean_items([]) is None


def test_a_window_holds_whole_batches() -> None:
    batches = record.parse(packed((0, 10, 1), (10, 20, 2), (20, 30, 3)))
    assert [batch.items for batch in record.within(batches, 5, 25)] == [2]


def test_what_is_measured_of_several_workers_is_their_sum() -> None:
    second = 10**9
    one = record.parse(packed((0, second, 64), (second + 4000, 2 * second, 64)))
    other = record.parse(packed((0, second // 2, 32), (second // 2, second, 32), (second + 8000, 2 * second, 64)))
    found = saturation.measured([one, other, []])
    assert found["rate"] == pytest.approx(64 + 96 / 1.5)
    assert found["gap_p50_us"] == 4  # of each worker's own batches
    assert found["mean_batch"] == pytest.approx(256 / 5)
    assert found["forward_ms"] == pytest.approx(1000, rel=1e-4)  # of full batches
    assert saturation.measured([[]]) == {}


# --- rows, ratios, targets -------------------------------------------------------------------------------------------


def rows(*told: tuple[str, int, int, float]) -> list[Row]:
    return [Row(system, repeat, {"connections": point}, {"rate": value}) for system, repeat, point, value in told]


ROWS = rows(
    (PEER, 0, 16, 100), (OURS, 0, 16, 290), (OURS, 1, 16, 310), (OURS, 2, 16, 900), (PEER, 1, 16, 120),
    (OURS, 0, 64, 50), (PEER, 0, 64, 100),
)  # fmt: skip


def nothing(_bench: bench.Bench) -> Iterator[Row]:
    yield from ROWS


CASE = Case(
    name="made-up",
    group="made-up",
    title="Made up",
    about="Figures for tests.",
    by=("connections",),
    metrics=(Metric("rate", "requests/s", "higher", digits=0), Metric("absent", "absent")),
    run=nothing,
    seconds=1,
    pictures=(Picture("rate", "connections", "Rate"), Picture("absent", "connections", "Absent")),
    targets=(
        Target("at least three times", 3, worst(["rate"], lambda point: True, highest=False), at_least=True),
        Target("no growth", 1, grown("rate", {"connections": 16}, {"connections": 64})),
        Target("never measured", 1, worst(["absent"], lambda point: True)),
    ),
)


def test_ratios_are_of_medians() -> None:
    summary = Summary(ROWS)
    assert summary.value(OURS, {"connections": 16}, "rate") == 310
    assert summary.value(PEER, {"connections": 16}, "rate") == 110
    assert summary.ratio({"connections": 16}, "rate") == pytest.approx(310 / 110)
    assert summary.ratio({"connections": 16}, "absent") is None
    assert summary.spread(OURS, {"connections": 16}, "rate") == (290, 900)
    assert summary.systems == [OURS, PEER]


def test_a_ratio_to_nothing_is_no_ratio() -> None:
    summary = Summary(rows((OURS, 0, 1, 5), (PEER, 0, 1, 0)))
    assert summary.ratio({"connections": 1}, "rate") is None


def test_a_target_takes_the_worst_point() -> None:
    summary = Summary(ROWS)
    low, growth, never = CASE.targets
    assert (low.measure(summary), low.met(summary)) == (0.5, False)
    assert growth.met(summary) is True
    assert (never.measure(summary), never.met(summary)) == (None, None)
    assert worst(["rate"], lambda point: True)(summary) == pytest.approx(310 / 110)


def test_a_table_shows_medians_spreads_and_ratios() -> None:
    lines = table.cells(CASE, Summary(ROWS))
    assert lines[0] == ["connections", "", OURS, PEER, f"ratio to {PEER}"]
    assert lines[1] == ["16", "requests/s", "310 (290-900)", "110 (100-120)", "2.82x"]
    assert lines[2] == ["64", "requests/s", "50", "100", "0.50x"]
    assert len(lines) == 3  # nothing was measured of the other metric
    assert len({len(line) for line in table.text(lines).splitlines()[1:]}) == 1
    assert table.markdown(lines).splitlines()[1] == "| --- | --- | --- | --- | --- |"


def test_a_metric_may_be_shown_by_another_system_s() -> None:
    case = dataclasses.replace(CASE, metrics=(Metric("rate", "of Mosec's", to=PEER),))
    assert table.cells(case, Summary(ROWS))[1] == ["16", "of Mosec's", "2.82", "1.00", "2.82x"]
    assert table.cells(case, Summary(rows((OURS, 0, 16, 290), (PEER, 0, 64, 1))))[1][2] == "-"


def test_targets_are_told_met_missed_or_not_measured() -> None:
    lines = table.targets(CASE, Summary(ROWS))
    assert [(line[2], line[3]) for line in lines[1:]] == [("0.50x", "missed"), ("0.16x", "met"), ("not measured", "")]


def test_a_picture_is_drawn_of_what_was_measured(tmp_path: Path) -> None:
    (path,) = draw(CASE, Summary(ROWS), tmp_path / "pictures")
    assert path.name == file_name(CASE, CASE.pictures[0]) == "made-up-rate.svg"
    assert "<svg" in path.read_text()


# --- cases -----------------------------------------------------------------------------------------------------------


def test_every_case_is_listed_once_and_belongs_to_all() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert chosen(["all"]) == list(CASES)
    assert [line.split()[0] for line in listing().splitlines()[1:]] == names
    assert {case.group for case in CASES} == {
        "echo",
        "accelerator",
        "model",
        "tensors",
        "gap",
        "growth",
        "launch-bound",
        "branches",
        "gpu",
        "cores",
        "http",
        "slo",
        "hosts",
    }


def test_every_module_of_a_case_is_run() -> None:
    modules = {path.stem for path in (ROOT / "scripts" / "benchmarks" / "cases").glob("[a-z]*.py")}
    held: list[Case] = []
    for module in modules:
        for value in vars(importlib.import_module(f"benchmarks.cases.{module}")).values():
            held += [one for one in (value if isinstance(value, tuple) else [value]) if isinstance(one, Case)]
    assert {case.name for case in held} == {case.name for case in CASES}


def test_groups_and_cases_are_chosen_in_order_and_once() -> None:
    assert [case.name for case in chosen(["gap", "http", "nginx"])] == [
        *(case.name for case in http.CASES),
        "gap",
    ]
    with pytest.raises(ValueError, match="ecko: expected one of"):
        chosen(["ecko"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_case_draws_and_claims_is_among_its_columns(case: Case) -> None:
    keys = {metric.key for metric in case.metrics}
    assert all(picture.metric in keys and picture.x in case.by for picture in case.pictures)
    assert len({file_name(case, picture) for picture in case.pictures}) == len(case.pictures)
    assert all(target.met(Summary([])) is None for target in case.targets)


class Pretended(bench.Bench):
    """Nothing is started: requests and batches are as good as they can be, but that a changing head costs 3 us."""

    wrong = False

    @contextmanager
    def started(self, system: str, service: plan.Service, body: str) -> Iterator[systems.Running]:
        for stage in service.stages:
            assert stage.work in ADAPTED[system]
        yield systems.Running(system, service, 0, 1, self.folder)

    @contextmanager
    def proxied(self, running: systems.Running, way: nginx.Way, body: str) -> Iterator[systems.Running]:
        yield dataclasses.replace(running, port=2)

    def answer(self, running: systems.Running, body: str) -> bytes:
        if self.wrong:
            return b'{"x": 3}'
        streams = running.service.stages[-1].work == "Events"
        return b"data: word\n\n" * work.EVENTS if streams else body.encode()

    def closed(
        self,
        running: systems.Running,
        body: str,
        connections: int,
        seconds: float | None = None,
        head: wrk.Head = wrk.USUAL,
    ) -> tuple[wrk.Report, bench.Window]:
        made = wrk.Report(requests=100, seconds=1, p50_ms=1, p99_ms=2, errors=0, not_2xx=0, cpu_us=10)
        return made, bench.Window(0, 10**9, {"frontend": 100 * (13 if head.changing else 10)})

    def batches(self, running: systems.Running, window: bench.Window) -> dict[str, list[record.Batch]]:
        return {f"{number}": FULL for number in range(running.service.stages[-1].num)}


FULL = record.parse(packed((0, 10**9, 64), (10**9, 2 * 10**9, 64), (2 * 10**9, 3 * 10**9, 64)))


def adapted(system: str) -> set[str]:
    """The works that a system's adapter has."""
    source = (systems.ADAPTERS / f"{system}_service.py").read_text()
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


ADAPTED = {system: adapted(system) for system in (OURS, PEER)}


def pretended(tmp_path: Path) -> Pretended:
    return Pretended(repeats=2, seconds=1, folder=tmp_path, threads=1, say=lambda text: None)


@pytest.mark.parametrize(
    "case", [*echo.CASES, *http.CASES, launch.CASE, gpu.CASE, cores.CASE], ids=lambda case: case.name
)
def test_a_case_yields_what_its_table_and_targets_ask_for(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def loop(*_: Any) -> Iterator[Any]:
        yield loop

    loop.batches = lambda seconds: FULL  # type: ignore[attr-defined]
    monkeypatch.setattr(saturation, "offline", loop)
    found = list(case.run(pretended(tmp_path)))
    summary = Summary(found)
    assert all(tuple(row.point) == case.by for row in found)
    others = {OFFLINE} if case.metrics is saturation.METRICS else set()
    assert {(row.system, row.repeat) for row in found} == {
        (system, repeat) for system in {OURS, PEER} | others for repeat in range(2)
    }
    assert all(target.measure(summary) is not None for target in case.targets)
    assert len(table.cells(case, summary)) > len(summary.points())


def test_the_cost_of_a_changing_head_is_told(tmp_path: Path) -> None:
    summary = Summary(http.HEADS_CASE.run(pretended(tmp_path)))
    (cost,) = (target for target in http.HEADS_CASE.targets if target.unit == " us")
    assert (cost.measure(summary), cost.met(summary)) == (3, False)
    assert summary.value(PEER, {"head": "one", "connections": 64}, "client_busy") == pytest.approx(0.001)


def test_a_system_that_answers_something_else_is_not_measured(tmp_path: Path) -> None:
    made = pretended(tmp_path)
    made.wrong = True
    for case in (http.BODIES_CASE, http.SSE_CASE):
        with pytest.raises(RuntimeError, match="a wrong answer"):
            list(case.run(made))


def test_points_are_told_by_their_values() -> None:
    assert at(a=1)({"a": 1, "b": 2})
    assert not at(a=1, b=3)({"a": 1, "b": 2})


@pytest.mark.parametrize("size", [size for _, size, _ in http.BODIES])
def test_a_body_has_its_length_and_is_json(size: int) -> None:
    body = http.text(size)
    assert len(body) == size
    assert closed.echoed(body, json.dumps(json.loads(body)).encode())


def test_a_case_that_lacks_something_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.__main__.CASES", ())
    monkeypatch.setattr(
        "benchmarks.__main__.chosen",
        lambda names: [dataclasses.replace(CASE, missing=lambda: "no abacus: needs one of wood")],
    )
    monkeypatch.setattr("benchmarks.machine.versions", dict)
    assert main(["made-up", "--json", str(tmp_path / "results.json")]) == 0
    assert "made-up: skipped: no abacus: needs one of wood" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_a_page_says_what_was_measured_and_not_where_its_results_went() -> None:
    words = ["slo", "--json", "/tmp/x.json", "--repeats", "3", "--docs=/tmp/d", "--json=/tmp/y.json", "--add"]
    assert measured_by(words) == ["slo", "--repeats", "3", "--add"]


def test_without_a_gpu_its_case_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch.cuda.is_available() is false; needs" in str(gpu.missing())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.missing() is None
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert "torch is not installed" in str(gpu.missing())


def test_few_cores_are_no_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(7)))
    assert cores.missing() == "7 CPUs: needs 8, for one broker to be what is full"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    assert cores.missing() is None


def test_whole_cells_are_compared_each_broker_with_a_part_of_a_cpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = (case for case in hosts.CASES if case.name == "hosts-cells")
    held: list[tuple[float, tuple[int, ...]]] = []

    class Celled(Pretended):
        """Each broker does 100 requests a second, with all that it may use."""

        @contextmanager
        def started(self, system: str, service: plan.Service, body: str) -> Iterator[systems.Running]:
            with super().started(system, service, body) as running:
                yield dataclasses.replace(running, pid=service.cells)

        def closed(
            self, running: systems.Running, body: str, connections: int, *_: Any, **__: Any
        ) -> tuple[wrk.Report, bench.Window]:
            cells = running.service.cells
            made = wrk.Report(requests=100 * cells, seconds=1, p50_ms=1, p99_ms=2, errors=0, not_2xx=0)
            return made, bench.Window(0, 10**9, {"broker": int(cells * ration.LEAST * 1e6)})

    @contextmanager
    def rationed(share: float, *pids: int) -> Iterator[None]:
        held.append((share, pids))
        yield

    monkeypatch.setattr(ration, "rationed", rationed)
    monkeypatch.setattr(processes, "pids", lambda pid, role: [7] * pid)
    found = list(case.run(Celled(repeats=2, seconds=1, folder=tmp_path, threads=1, say=lambda text: None)))
    summary = Summary(found)
    assert held == [(ration.LEAST, (7,)), (ration.LEAST, (7,)), (ration.LEAST, (7, 7))]
    assert all(tuple(row.point) == case.by and row.values["used"] == pytest.approx(1) for row in found)
    (target,) = case.targets
    assert (target.measure(summary), target.met(summary)) == (2, True)

    monkeypatch.setattr(processes, "pids", lambda pid, role: [7])
    with pytest.raises(RuntimeError, match="1 brokers, of 2"):
        list(case.run(Celled(repeats=1, seconds=1, folder=tmp_path, threads=1, say=lambda text: None)))


def test_a_ration_is_a_quota_in_either_version_of_control_groups() -> None:
    assert ration.files(0.05) == (
        {"cpu.cfs_period_us": "20000", "cpu.cfs_quota_us": "1000"},
        {"cpu.max": "1000 20000"},
    )


def test_a_process_is_rationed_for_a_while() -> None:
    if reason := ration.missing():
        pytest.skip(reason)

    def groups(pid: int) -> str:
        return Path(f"/proc/{pid}/cgroup").read_text()

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        before = groups(process.pid)
        with ration.rationed(ration.LEAST, process.pid):
            assert "stageline-bench-" in groups(process.pid)
        assert groups(process.pid) == before
        with ration.rationed(ration.LEAST, process.pid):
            process.communicate()  # one that ends meanwhile leaves no group behind


def test_where_no_group_can_be_made_the_case_is_skipped_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ration, "folders", lambda controller: [tmp_path, tmp_path / "absent"])
    assert "can be made" in str(ration.missing())
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(ration, "folders", lambda controller: [])
    assert "there is no controller of CPU" in str(ration.missing())


def test_the_client_has_more_threads_where_there_are_cpus_for_it() -> None:
    assert [wrk.client_threads(256, cpus) for cpus in (1, 2, 4, 8, 16, 64)] == [1, 1, 1, 2, 4, 4]
    assert wrk.client_threads(1, 16) == 1


class Small(work.Encode):
    """The model of the case on a GPU, but for its size and its device."""

    device = "cpu"
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
    }  # fmt: skip
    warm = (1, 2)


def test_a_model_encodes_tokens_alone_and_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv(work.RECORD_VARIABLE, str(tmp_path))
    monkeypatch.setenv(work.SITE_VARIABLE, sys.path[-1])
    tokens, model = work.Tokens(), Small()
    first, second = model.forward(tokens.forward([{"x": 1}, {"x": 2}]))
    assert first != second
    assert model.forward([tokens.forward({"x": 1})])[0][:8] == first[:8]
    assert len(model.forward(model.batch(3))) == 3
    os.close(model.file)
    (batches,) = record.read(tmp_path).values()
    assert [batch.items for batch in batches] == [2, 1, 3]  # warming is not recorded


def test_an_accelerator_s_capacity_is_that_of_full_batches() -> None:
    assert accelerator.capacity(4) == pytest.approx(4 * 32 / 0.021)
    assert accelerator.window_s(rate=30, seconds=1.5) == pytest.approx(100 / 30)
    assert accelerator.window_s(rate=1, seconds=1.5) == 6
    assert accelerator.window_s(rate=1000, seconds=1.5) == 1.5


def test_each_repeat_begins_with_another_system(tmp_path: Path) -> None:
    run = bench.Bench(repeats=3, seconds=1, folder=tmp_path, threads=1, say=lambda text: None)
    assert list(run.turns(("a", "b"))) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_cpu_time_is_told_by_request_and_role() -> None:
    window = bench.Window(0, 2 * 10**9, {"frontend": 300, "broker": 100, "other": 0})
    assert window.seconds == 2
    assert window.per_request(100) == {"cpu_us": 4, "cpu_us_frontend": 3, "cpu_us_broker": 1}
    assert window.per_request(0) == {}


@pytest.mark.parametrize(
    ("line", "role"),
    [
        ("/v/bin/python /v/engine/bootstrap.py broker /r/deployment.json --parent 1", "broker"),
        ("/v/bin/python /v/engine/bootstrap.py frontend /r/deployment.json --parent 1", "frontend"),
        ("/v/bin/python /v/engine/bootstrap.py worker /r/deployment.json --stage s0-echo", "worker"),
        ("/v/bin/python -m engine.cli up /r/stages.toml --port 1", "supervisor"),
        ("/v/lib/python3.11/site-packages/mosec/bin/mosec /r/run/config.json", "server"),
        ("/v/bin/mosec /r/run/config.json", "server"),
        ("/v/bin/python -c from multiprocessing.spawn import spawn_main; spawn_main()", "worker"),
        ("/v/bin/python -c from multiprocessing.resource_tracker import main;main(4)", "supervisor"),
        ("/v/bin/python /s/adapters/mosec_service.py --port 1", "supervisor"),
        ("/v/bin/python /s/adapters/calling_service.py 1", "supervisor"),
        ("/usr/bin/wrk -t1", "other"),
    ],
)
def test_a_process_is_known_by_its_command_line(line: str, role: str) -> None:
    assert processes.role(line) == role


def test_this_process_has_used_time_and_memory() -> None:
    assert sum(processes.cpu_us(os.getpid()).values()) > 0
    assert sum(processes.memory_kib(os.getpid()).values()) > 1000


# --- services --------------------------------------------------------------------------------------------------------

SERVICE = plan.Service(
    (plan.Stage("Make"), plan.Stage("Total", num=2, max_batch_size=8, max_wait_ms=1)), paths=("/a", "/b"), capacity=7
)


def test_a_service_survives_its_json() -> None:
    assert plan.Service.from_json(SERVICE.to_json()) == SERVICE
    assert SERVICE.workers == 3


def test_a_service_is_a_deployment_of_ours(tmp_path: Path) -> None:
    adapter = ROOT / "scripts" / "benchmarks" / "adapters" / "stageline_service.py"
    file = tmp_path / "stages.toml"
    file.write_text(plan.stages_toml(SERVICE, adapter))
    deployment = load_config(file, environ={})
    assert [(stage.name, stage.num, stage.max_batch_size) for stage in deployment.stages] == [
        ("s0-make", 1, 1),
        ("s1-total", 2, 8),
    ]
    assert [route.path for route in deployment.routes] == ["/a", "/b"]
    assert deployment.frontend.capacity == 7


def test_a_stage_that_takes_each_of_a_list_is_one_of_ours(tmp_path: Path) -> None:
    adapter = ROOT / "scripts" / "benchmarks" / "adapters" / "stageline_service.py"
    file = tmp_path / "stages.toml"
    file.write_text(plan.stages_toml(branches.services("Device", 1)[OURS], adapter))
    way = load_config(file, environ={}).topology.way(0)
    assert way.startswith("s0-devicefind -> each of crops, at most 4096: s1-deviceread, then s2-devicejoin")


# --- the open-loop client --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-le", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nxy", (200, 40)),
        (b"HTTP/1.1 429 Too Many Requests\r\na: b\r\ncontent-length:0\r\n\r\n", (429, 58)),
    ],
)
def test_a_response_is_complete_or_not(data: bytes, expected: tuple[int, int] | None) -> None:
    assert load.parse(data) == expected


@pytest.mark.parametrize("data", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"])
def test_a_response_without_a_length_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="content-length"):
        load.parse(data)


def test_an_outcome_counts_what_became_of_each_request() -> None:
    tally = load.Tally()
    for status, latency_s in ((200, 0.01), (200, 0.2), (429, 0.001), (503, 0.002), (408, 3.0)):
        tally.add(status, latency_s)
    found = tally.outcome(load.Load(port=1, body="", rate=1, seconds=2, connections=1, seed=1), sent=7)
    assert (found.ok, found.good, found.refused, found.failed) == (2, 1, 2, 3)  # two were never answered
    assert found.p50_ms == 10
    assert found.refused_p99_ms == 2
    assert found.lag_p50_ms is None
    assert bench.open_values(found)["goodput"] == 0.5
    assert "lag_p99_ms" not in bench.open_values(found)


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A server that answers the requests of each connection with ``answers`` in turn, b"" by closing; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        open_ones: list[socket.socket] = []
        served = iter(range(10**9))

        def serve(connection: socket.socket) -> None:
            with connection:
                while connection.recv(65536):
                    answer = answers[next(served) % len(answers)]
                    if not answer:
                        return
                    connection.sendall(answer)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                open_ones.append(connection)
                thread = threading.Thread(target=serve, args=(connection,), daemon=True)
                threads.append(thread)
                thread.start()

        threads = [threading.Thread(target=accept, daemon=True)]
        threads[0].start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for thread in list(threads):
            thread.join(10)
            assert not thread.is_alive()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


def test_every_arrival_is_sent_and_answered() -> None:
    with answering(OK, OK, OK, BUSY) as port:
        offered = load.Load(port=port, body="{}", rate=400, seconds=0.5, connections=4, seed=1, paths=("/a", "/b"))
        found = load.Client(offered).run()
    assert found.sent == len(stats.arrivals(400, 0.5, seed=1))
    assert (found.ok + found.refused, found.failed) == (found.sent, 0)
    assert found.refused == found.sent // 4
    assert found.p50_ms is not None


def test_a_connection_that_is_cut_fails_one_request() -> None:
    with answering(OK, OK, OK, OK, b"") as port:
        offered = load.Load(port=port, body="{}", rate=200, seconds=0.5, connections=2, seed=1)
        found = load.Client(offered).run()
    assert found.failed == found.sent // 5
    assert found.ok == found.sent - found.failed


def test_the_client_is_a_process_that_reads_and_prints_json() -> None:
    with answering(OK) as port:
        offered = load.Load(port=port, body="{}", rate=100, seconds=0.2, connections=1, seed=1)
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.load"],
            input=json.dumps(dataclasses.asdict(offered)), capture_output=True, text=True, check=True, timeout=60,
            cwd=ROOT / "scripts",
        )  # fmt: skip
    found = load.Outcome(**json.loads(told.stdout))
    assert (found.ok, found.failed) == (found.sent, 0)


def test_the_floor_answers_with_the_same_bytes() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.floor", "serve"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT / "scripts",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert [systems.ask(port, "/inference", body) for body in ("{}", "[]")] == [(200, closed.BODY.encode())] * 2
        systems.stop_child(process)
    assert process.returncode == 0
    assert load.parse(floor.ANSWER) == (200, len(floor.ANSWER))


@pytest.mark.parametrize("hops_", hops.HOPS)
@pytest.mark.parametrize("way", hops.WAYS)
def test_a_chain_without_rules_hands_on_and_back(way: str, hops_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "scripts")
    with hops.chain(way, hops_) as port:
        assert [systems.ask(port, "/inference", "{}") for _ in range(3)] == [(200, closed.BODY.encode())] * 3


def test_a_bare_hand_over_hands_over() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.handover", "0.1", "2", "0.1"],
        capture_output=True, text=True, check=True, timeout=60, cwd=ROOT / "scripts",
    )  # fmt: skip
    assert float(told.stdout) > 0


# --- the page --------------------------------------------------------------------------------------------------------


def results() -> report.Results:
    case = chosen(["echo-single"])[0]
    measured = [
        Row(system, repeat, {"connections": 1}, {"rate": 10.0 + repeat, "p50_ms": 2.0})
        for system in (OURS, PEER)
        for repeat in range(3)
    ]
    return report.Results({"cpu": "abacus"}, {"mosec": "0.9.8"}, {case.name: {"repeats": "3"}}, {case.name: measured})


def test_results_survive_their_json() -> None:
    assert report.Results.from_json(results().to_json()) == results()
    with pytest.raises(ValueError, match="format"):
        report.Results.from_json('{"format": 0}')


def test_a_page_shows_what_was_measured_and_nothing_else() -> None:
    shown = report.page(results())
    assert "abacus" in shown
    assert "mosec 0.9.8" in shown
    assert "| 1 | requests/s | 11 (10-12) | 11 (10-12) | 1.00x |" in shown
    assert "p50 of one connection" in shown
    assert "svg" not in shown  # pictures are not kept with the page
    assert "MiniLM: texts" not in shown


def test_the_page_begins_as_the_report_says() -> None:
    """Run `scripts/bench report` after a change of the page's words: without results, those it shows are kept."""
    shown = (ROOT / "docs" / "benchmarks.md").read_text()
    assert shown == report.page(None, shown)
    assert report.THE_RUN in shown


def test_a_report_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    assert main(["report", "--json", str(tmp_path / "none.json"), "--docs", str(tmp_path / "docs")]) == 0
    assert (tmp_path / "docs" / "benchmarks.md").read_text() == report.page(None)


def test_a_report_without_results_keeps_those_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text(report.page(results()).replace("# Benchmarks", "# Of another day"))
    assert main(["report", "--json", str(tmp_path / "none.json"), "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "benchmarks.md").read_text() == report.page(results())


def test_a_report_may_renew_some_cases_and_keep_the_others() -> None:
    """As the page shows them: text and targets, in the order of the cases."""
    newer, case = results(), chosen(["heads"])[0]
    newer.machine = {"cpu": "another abacus"}
    point = {"head": "changing", "connections": 64}
    newer.rows = {case.name: [Row(system, 0, point, {"rate": 5.0}) for system in (OURS, PEER)]}
    both = report.page(newer, report.page(results()), add=True)
    assert "- cpu: abacus" in both
    for shown in (report.page(results()), report.page(newer)):
        _, _, sections = shown.partition(report.TARGETS)
        assert all(line in both.splitlines() for line in sections.splitlines()[1:])
    assert both.index("## Echo, batching off") < both.index("## Heads that change")
    assert report.page(newer, both, add=True) == both
    assert report.page(results(), both, add=True) == both
    assert report.page(newer, "", add=True) == report.page(newer)


def test_pictures_and_results_are_not_kept_with_the_source() -> None:
    made = [RESULTS, RESULTS.parent / file_name(CASES[0], CASES[0].pictures[0])]
    asked = subprocess.run(
        ["git", "check-ignore", *made], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert asked.stdout.splitlines() == [str(path) for path in made], asked.stderr
    listed = subprocess.run(
        ["git", "ls-files", RESULTS.parent], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert listed.stdout == ""


@pytest.mark.parametrize("words", [[], ["ecko"], ["echo", "--repeats", "0"]])
def test_bad_words_are_told(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


# --- crowds with goals -----------------------------------------------------------------------------------------------


def asked(at: float, took: float = 0.010, status: int = 200, *, first: bool = True, kind: int = 0) -> crowd.Asked:
    return crowd.Asked(at, took, status, first, kind)


def test_arrivals_of_a_crowd_begin_when_they_are_told_to() -> None:
    instants = goals.arrivals(500, 2.0, "a seed", begin=3.0)
    assert instants == sorted(instants)
    assert 3.0 < instants[0] < instants[-1] < 5.0
    assert len(instants) == pytest.approx(1000, rel=0.15)
    assert goals.arrivals(500, 2.0, "a seed", begin=3.0) == instants


def test_several_crowds_come_as_one_and_each_knows_its_own() -> None:
    assert goals.mixed([1.0, 4.0], [2.0], [0.5]) == ([0.5, 1.0, 2.0, 4.0], [2, 0, 1, 0])


def test_success_is_of_all_who_asked() -> None:
    crowd = [asked(0.1), asked(0.2, 0.090), asked(0.3, 0.001, 429), asked(0.4, 0.003, 503), asked(0.5, 3.0, 408)]
    found = goals.success(crowd, 0.050)
    assert found == pytest.approx(
        {"success": 0.2, "refused": 0.4, "late": 0.4, "refused_p50_ms": 1.0, "refused_p99_ms": 3.0}
    )
    assert goals.success([], 0.050) == {}
    assert goals.good(crowd, 0.100) == 2


def test_latencies_are_those_of_answers() -> None:
    crowd = [asked(0.1, 0.010), asked(0.2, 0.030), asked(0.3, 9.0, 429)]
    assert goals.latencies(crowd) == pytest.approx({"mean_ms": 20, "p50_ms": 10, "p99_ms": 30, "answered": 2})
    assert goals.latencies(crowd[2:]) == {}


def test_only_what_has_settled_and_is_of_a_kind_counts() -> None:
    crowd = [asked(0.1), asked(1.0, kind=1), asked(1.5)]
    assert goals.settled(crowd, 1.0) == crowd[1:]
    assert goals.settled(crowd, 1.0, 0) == crowd[2:]


def test_device_time_is_that_of_batches_over_their_items() -> None:
    ms = 1_000_000
    assert goals.device_ms([record.Batch(0, 10 * ms, 4), record.Batch(20 * ms, 22 * ms, 2)]) == 2.0
    assert goals.device_ms([]) is None


def test_a_service_has_recovered_when_first_tries_succeed_for_good() -> None:
    every = [number / 100 for number in range(100, 500)]
    well = [asked(at) for at in every]
    assert goals.recovered_s(well, 1.0, 5.0, 400) == 0.0
    ill = [asked(at, status=429 if 2.2 < at < 2.4 else 200) for at in every]
    assert goals.recovered_s(ill, 1.0, 5.0, 400) == pytest.approx(1.39)
    late = [asked(at, 0.2 if at < 1.1 else 0.01) for at in every]
    assert goals.recovered_s(late, 1.0, 5.0, 400, slo_s=0.1) == pytest.approx(0.09)
    one_in_a_window = [asked(at, status=429 if at == 3.0 else 200) for at in every]
    assert goals.recovered_s(one_in_a_window, 1.0, 5.0, 100) == 0.0  # windows of a second, one in a hundred fails


def test_a_counter_is_the_sum_of_its_samples() -> None:
    told = '# HELP a_total x\n# TYPE a_total counter\na_total{cell="1"} 2.0\na_total{cell="2"} 3.5\na_total_more 9\n'
    assert goals.counted(told, "a_total") == 5.5
    assert goals.counted(told, "b_total") == 0.0


def test_requests_of_a_kind_have_their_path_and_head() -> None:
    offered = load.Load(1, "{}", 1, 1, 1, 1, paths=("/a", "/b"), heads=("", "x-api-key: b\r\n"))
    several = crowd.Crowd(offered, [0.0, 0.1], 0, [0, 3])
    first, second = (several._requests[several._kind(number)] for number in (0, 1))
    assert first.startswith(b"POST /a ")
    assert b"x-api-key" not in first
    assert second.startswith(b"POST /b ")
    assert b"\r\nx-api-key: b\r\n\r\n{}" in second


@pytest.mark.parametrize("device", slo.OVERLOADED, ids=lambda device: device.label)
def test_devices_take_what_their_labels_say(
    device: slo.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(work.RECORD_VARIABLE, str(tmp_path))
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    worker = getattr(work, device.work)()
    worker.forward([1] * slo.BATCH)
    os.close(worker.file)
    assert slept == [pytest.approx(device.full_s)]


def test_steps_alone_together_and_in_a_loop_come_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(work.RECORD_VARIABLE, str(tmp_path))
    monkeypatch.setenv(work.SITE_VARIABLE, sys.path[-1])
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(pages.Device, "find_s", 0)
    find, read, join, whole, loop = (
        getattr(pages, f"Device{name}")() for name in ("Find", "Read", "Join", "Whole", "Loop")
    )
    slept.clear()
    asked = loop.batch(1)
    found = [find.forward(value) for value in asked]
    assert [len(page["crops"]) for page in found] == list(pages.LINES)
    answers = [join.forward({**page, "crops": read.forward(page["crops"])}) for page in found]
    assert [len(answer["lines"]) for answer in answers] == list(pages.LINES)
    assert slept == pytest.approx([0.005 + 0.00025 * lines for lines in pages.LINES])
    slept.clear()
    assert whole.forward(asked) == answers
    assert slept == pytest.approx([0.013] * 4 + [0.005 + 0.00025 * (sum(pages.LINES) - 4 * 32)])
    slept.clear()
    assert loop.forward(asked) == answers
    assert len(slept) == len(pages.LINES) + 2  # two pages have more than a batch
    for one in (read, whole, loop):
        os.close(one.file)


def test_a_plain_loop_is_started_as_often_as_there_are_repeats(tmp_path: Path) -> None:
    service = branches.services("Device", 1)[OFFLINE]
    for _ in range(2):
        with offline(pretended(tmp_path), service, "DeviceLoop", 1) as loop:
            assert len(loop.batches(0.01)) == len(pages.LINES)


class Sides(Pretended):
    """Pages of as many lines as are asked for."""

    lines = 8
    answered = 100

    @contextmanager
    def started(self, system: str, service: plan.Service, body: str) -> Iterator[systems.Running]:
        assert all(hasattr(pages, stage.work) for stage in service.stages)
        yield systems.Running(system, service, 0, 1, self.folder)

    def answer(self, running: systems.Running, body: str) -> bytes:
        return json.dumps({"lines": ["a"] * self.lines}).encode()

    def closed(self, *given: Any, bodies: Any = (), **others: Any) -> tuple[wrk.Report, bench.Window]:
        assert bodies == branches.BODIES
        report, window = super().closed(*given, **others)
        return dataclasses.replace(report, requests=self.answered), window


@pytest.mark.parametrize("case", branches.CASES, ids=lambda case: case.name)
def test_branches_are_measured_beside_calls_one_worker_and_a_loop(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def loop(*_: Any) -> Iterator[Any]:
        yield loop

    loop.batches = lambda seconds: FULL  # type: ignore[attr-defined]
    monkeypatch.setattr(branches, "offline", loop)
    sides = Sides(repeats=2, seconds=1, folder=tmp_path, threads=1, say=lambda text: None)
    summary = Summary(case.run(sides))
    assert set(summary.systems) == set(branches.SYSTEMS)
    assert all(target.measure(summary) is not None for target in case.targets)
    assert len(table.cells(case, summary)) > 5
    sides.lines = 7
    with pytest.raises(RuntimeError, match="7 lines of a page of 8"):
        list(case.run(sides))
    sides.lines, sides.answered = 8, branches.CONNECTIONS - 1
    with pytest.raises(RuntimeError, match="15 pages in 1 s"):
        list(case.run(sides))


def test_padding_is_paid_for_by_powers_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(work.RECORD_VARIABLE, str(tmp_path))
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    worker = work.Padded()
    for size in (1, 2, 3, 4, 5, 32):
        worker.forward([1] * size)
    os.close(worker.file)
    assert slept == pytest.approx([0.0036, 0.0042, 0.0054, 0.0054, 0.0078, 0.0222])
    assert slo.padded(1).full_s == pytest.approx(slept[-1])


def test_one_worker_of_the_uneven_ones_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(work.RECORD_VARIABLE, str(tmp_path))
    workers = [work.Uneven() for _ in range(3)]
    for worker in workers:
        os.close(worker.file)
    assert [worker.fixed_s for worker in workers] == pytest.approx([0.060, 0.020, 0.020])


def test_goals_are_those_of_paths(tmp_path: Path) -> None:
    service = slo.accelerator(2).service(52.5, 126)
    assert plan.Service.from_json(service.to_json()) == service
    file = tmp_path / "stages.toml"
    file.write_text(plan.stages_toml(service, ROOT / "scripts" / "benchmarks" / "adapters" / "stageline_service.py"))
    routes = load_config(file, environ={}).routes
    assert [(route.path, route.slo) for route in routes] == [
        ("/inference", 0.0),
        ("/within52.5", 0.0525),
        ("/within126", 0.126),
    ]


def test_the_target_of_goodput_is_missed_at_one_bad_point() -> None:
    def rows(worst: float) -> Summary:
        points = [("a", 1.05, 2.5, 0.99), ("a", 5.0, 2.5, worst), ("a", 1.05, 6.0, 0.97)]
        return Summary(
            Row(OURS, 0, {"t(n), ms": label, "workers": 1, "load": load, "goal": goal}, {"goodput": goodput})
            for label, load, goal, goodput in points
        )

    tight, loose, _ = slo.OVERLOAD.targets
    assert (tight.met(rows(0.96)), tight.met(rows(0.94)), loose.met(rows(0.94))) == (True, False, True)
    assert tight.met(Summary([])) is None


def test_a_former_commit_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert systems.former("no-such-commit", tmp_path / "base") is None

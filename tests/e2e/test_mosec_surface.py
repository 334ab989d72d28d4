"""A service written for Mosec moves by changing its imports: what its clients and its operator then see."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
from harness import SERVICES, Deployed, environment, short_folder, wait_for

pytestmark = pytest.mark.unmeasured

PORTED = SERVICES / "ported.py"


def start(script: Path, folder: Path, *flags: str, env: dict[str, str] | None = None) -> Deployed:
    where = ["--address", "127.0.0.1", "--port", "0", "--path", str(folder / "run")]
    return Deployed([str(script), *where, *flags], folder=folder, command=(sys.executable,), env=env)


@contextlib.contextmanager
def running(script: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[Deployed]:
    with short_folder() as folder:
        started = start(script, folder, *flags, env=env)
        try:
            started.wait_ready()
            yield started
            assert started.terminate() == 0, started.tail()
            started.gone()
        finally:
            started.kill()


@pytest.fixture(scope="module")
def ported() -> Iterator[Deployed]:
    env = {"CUDA_VISIBLE_DEVICES": "0,1", "ENGINE_DEBUG": "false", "MOSEC_PORT": "1"}
    with running(PORTED, "--factor", "3", "--timeout", "5000", "--compression", env=env) as started:
        yield started


@pytest.fixture
def client(ported: Deployed) -> Iterator[httpx.Client]:
    with ported.client() as made:
        yield made


# --- bodies and status codes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/inference", "/batch"])
@pytest.mark.parametrize(
    ("error", "args", "status", "body"),
    [
        ("client", ["'x'"], 400, "bad request: 'x'"),
        ("decoding", ["'x'"], 400, "decoding error: 'x'"),
        ("validation", ["'x'"], 422, "request validation error: 'x'"),
        ("server", ["'x'"], 500, "internal error: 'x'"),
        ("encoding", ["'x'"], 500, "encoding error: 'x'"),
        ("validation", ["a\nb\n\n c\td  e é"], 422, "request validation error: a - b -  -  c\td  e é"),
        ("validation", ["a", 1], 422, "request validation error: ('a', 1)"),
        ("validation", [], 422, "request validation error: request validation error"),
        ("client", [""], 400, "bad request: bad request"),
        ("quota", ["of today"], 500, "quota exceeded: of today"),
        ("value", ["a secret"], 500, "inference internal error"),
    ],
)
def test_an_error_class_answers_in_mosecs_words(
    client: httpx.Client, route: str, error: str, args: list[Any], status: int, body: str
) -> None:
    answer = client.post(route, json={"error": error, "args": args})
    assert (answer.status_code, answer.text) == (status, body)


def test_an_error_class_has_its_own_status_and_headers(client: httpx.Client) -> None:
    answer = client.post("/batch", json={"error": "teapot", "args": ["short and stout"]})
    assert (answer.status_code, answer.text) == (418, "teapot: short and stout")
    assert answer.headers["x-tea"] == "green"


def test_a_bad_request_fails_alone_in_its_batch(ported: Deployed) -> None:
    bodies: list[dict[str, Any]] = [{"x": 1}, {"error": "validation", "args": ["no"]}, {"error": "value"}, {"x": 2}]

    def post(body: dict[str, Any]) -> tuple[int, str]:
        with ported.client() as client:
            answer = client.post("/batch", json=body)
            return answer.status_code, answer.text

    with ThreadPoolExecutor(4) as pool:  # a full batch: the stage waits for four
        answers = list(pool.map(post, bodies))
    assert answers == [
        (200, '{"x":3}'),
        (422, "request validation error: no"),
        (500, "inference internal error"),
        (200, '{"x":6}'),
    ]


def test_json_as_the_standard_library_reads_it(client: httpx.Client) -> None:
    answer = client.post("/inference", content=b'{"x": 2, "y": NaN, "z": "\\ud800"}')
    assert (answer.status_code, answer.content) == (200, b'{"x":6,"y":null,"z":"\\ud800"}')
    bad = client.post("/inference", content=b"{")
    assert (bad.status_code, bad.text) == (400, "decoding error: Input data was truncated")


def test_an_empty_body_reaches_the_worker(client: httpx.Client) -> None:
    assert client.post("/inference", content=b"").json() == {"empty": True}
    default = client.post("/two", content=b"")
    assert (default.status_code, default.text) == (400, "decoding error: Input data was truncated")


def test_a_mixin_speaks_its_format(client: httpx.Client) -> None:
    for route in ("/packed", "/packed/too"):
        answer = client.post(route, content=msgpack.packb({"b": b"\xff"}))
        assert answer.headers["content-type"] == "application/msgpack"
        assert msgpack.unpackb(answer.content) == {"got": {"b": b"\xff"}}


# --- pools, environment, devices -------------------------------------------------------------------------------------


def seen(ported: Deployed, route: str, count: int) -> dict[int, dict[str, Any]]:
    """What each of a route's ``count`` workers tells, by its id."""
    found: dict[int, dict[str, Any]] = {}

    def asked() -> bool:
        with ported.client() as client:
            told = client.post(route, json={}).json()
        found[told["worker_id"]] = told
        return len(found) == count

    wait_for(f"answers of {count} workers", asked)
    return found


def test_two_runtimes_of_a_class_are_two_pools_and_one_on_two_routes_is_one(ported: Deployed) -> None:
    one = {told["pid"] for told in seen(ported, "/one", 2).values()}
    two, three = ({told["pid"] for told in seen(ported, route, 1).values()} for route in ("/two", "/three"))
    assert len(one) == 2
    assert two == three
    assert not one & two


def test_each_worker_has_its_variables_before_init_and_others_stay_unset(ported: Deployed) -> None:
    told = seen(ported, "/one", 2)
    assert {number: (one["worker_id"], one["flavour"], one["has"]) for number, one in told.items()} == {
        1: (1, "sweet", True),
        2: (2, "sour", True),
    }
    (plain,) = seen(ported, "/two", 1).values()
    assert (plain["flavour"], plain["has"], plain["now"]) == (None, False, False)


def test_a_stage_outlives_its_last_worker_which_comes_back_as_it_was() -> None:
    with running(PORTED, "--factor", "1") as started:
        before, last = seen(started, "/one", 2), seen(started, "/two", 1)
        for pid in (before[2]["pid"], last[1]["pid"]):
            os.kill(pid, signal.SIGKILL)
        wait_for("worker 2 in a new process", lambda: seen(started, "/one", 2)[2]["pid"] != before[2]["pid"])
        after = seen(started, "/one", 2)
        assert (after[2]["flavour"], after[1]) == ("sour", before[1])
        assert seen(started, "/three", 1)[1]["pid"] != last[1]["pid"]


def test_workers_are_dealt_out_over_the_gpus(ported: Deployed) -> None:
    told = seen(ported, "/gpus", 4)
    assert {number: one["device"] for number, one in told.items()} == {
        1: "cuda:0",
        2: "cuda:1",
        3: "cuda:0",
        4: "cuda:1",
    }


def test_a_worker_that_sees_one_gpu_is_on_the_first_it_sees(ported: Deployed) -> None:
    told = seen(ported, "/hidden", 2)
    assert {number: one["device"] for number, one in told.items()} == {1: "cuda:0", 2: "cuda:0"}


def test_a_lone_request_never_waits_for_company(client: httpx.Client) -> None:
    answer = client.post("/lone", json={"x": 1})  # max_wait_time is 5 s
    assert answer.json() == {"x": 3}
    assert answer.elapsed.total_seconds() < 2.5


def test_corrupt_gzip_is_the_clients_mistake(client: httpx.Client) -> None:
    sent = {"content-encoding": "gzip"}
    assert client.post("/inference", content=gzip.compress(b'{"x": 2}'), headers=sent).json() == {"x": 6}
    assert client.post("/inference", content=b"no gzip", headers=sent).status_code == 400


# --- the script ------------------------------------------------------------------------------------------------------


def test_a_worker_imports_the_script_under_its_own_command_line_and_path(
    client: httpx.Client, ported: Deployed
) -> None:
    assert client.post("/inference", json={"x": 5}).json() == {"x": 15}
    assert "hello from worker 1" in ported.log


def test_a_variable_of_mosec_is_named_and_debug_is_off_when_it_says_false(ported: Deployed) -> None:
    assert "MOSEC_PORT is set and not read; the variable is ENGINE_PORT" in ported.log
    assert not [record for record in ported.records() if record.get("level") == "debug"]


def test_the_metrics_have_mosecs_names_labels_and_numbers(client: httpx.Client, ported: Deployed) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client.post("/batch", json={"x": 1}), range(8)))
    text = client.get("/metrics").text
    samples = [line.partition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    labels: dict[str, set[tuple[str, ...]]] = {}
    for sample in samples:
        name, _, rest = sample.partition("{")
        labels.setdefault(name.removeprefix("engine_"), set()).add(
            tuple(pair.partition("=")[0] for pair in rest.rstrip("}").split(",") if pair)
        )
    for name in ("process_duration_second", "batch_size", "batch_duration_second"):
        assert labels[f"{name}_sum"] == labels[f"{name}_count"] == {("connection", "stage")}
        assert labels[f"{name}_bucket"] == {("connection", "le", "stage")}
    assert labels["throughput_total"] == {("code", "endpoint")}
    assert labels["remaining_task"] == {()}

    def bounds(name: str, where: str) -> list[str]:
        found = [sample for sample in samples if sample.startswith(f"engine_{name}_bucket{{") and where in sample]
        return [sample.partition('le="')[2].partition('"')[0] for sample in found]

    doubling = [f"{0.001 * 2**power:g}" for power in range(13)]
    assert bounds("process_duration_second", 'connection="1",le="0.001",stage="checkmany"') == ["0.001"]
    assert bounds("process_duration_second", 'stage="checkmany"') == [*doubling, "8.192", "+Inf"]  # past 5 s
    assert bounds("process_duration_second", 'stage="total"') == [*doubling, "8.192", "+Inf"]
    assert bounds("batch_duration_second", 'stage="checkmany"') == [*doubling, "+Inf"]
    assert bounds("batch_size", 'stage="checkmany"') == [f"{2**power}.0" for power in range(10)] + ["+Inf"]
    assert "\nengine_remaining_task 0\n" in text
    counted = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("engine_throughput_total")]
    assert counted
    assert all(number.isdigit() for number in counted)


# --- other scripts ---------------------------------------------------------------------------------------------------

SLOW = """
import time
from engine import Server, Worker

class Slow(Worker):
    example = 1

    def forward(self, data):
        time.sleep(data / 1000)
        return data

if __name__ == "__main__":
    server = Server()
    server.append_worker(Slow, start_method="fork")
    server.append_worker(Slow)
    server.run()
"""


def write(folder: Path, code: str) -> Path:
    file = folder / "slow_service.py"
    file.write_text(code)
    return file


def test_milliseconds_on_the_command_line_and_no_path_of_a_file_in_the_answer(folder: Path) -> None:
    with running(write(folder, SLOW), "--timeout", "400", "--debug") as started:
        with started.client() as client:
            answer = client.post("/inference", json=3000)
            assert (answer.status_code, answer.text) == (408, "inference timeout")
            assert answer.elapsed.total_seconds() < 1.5
        assert 'start_method \\"fork\\" of Slow' in started.log or 'start_method "fork" of Slow' in started.log
        assert [record for record in started.records() if record.get("level") == "debug"]


@pytest.mark.parametrize("address", ["localhost", "::1"])
def test_an_address_is_a_name_or_of_either_family(folder: Path, address: str) -> None:
    with running(write(folder, SLOW), "--address", address) as started, started.client() as client:
        assert client.post("/inference", json=1).json() == 1


def run(script: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment("none", env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_dry_run_finds_what_check_finds(folder: Path) -> None:
    script = write(folder, SLOW)
    (folder / "stages.toml").write_text(
        '[[stage]]\nname = "slow"\nworker = "slow_service:Slow"\n'
        '[[stage]]\nname = "slow-2"\nworker = "slow_service:Slow"\n'
    )
    check = subprocess.run(
        [sys.executable, "-m", "engine.cli", "check", str(folder / "stages.toml")],
        env=environment("none"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    def findings(output: str) -> Sequence[list[str]]:
        return [line.split()[:3] for line in output.splitlines()]  # stage, status, device; times differ

    for done in (run(script, "--dry-run"), run(script, env={"ENGINE_DRY_RUN": "1"})):
        assert (done.returncode, findings(done.stdout)) == (0, findings(check.stdout)), done.stderr
    assert findings(check.stdout)[1:3] == [["slow", "ok", "cpu"], ["slow-2", "ok", "cpu"]]
    script.write_text(SLOW.replace("example = 1", 'example = "x"'))
    broken = run(script, "--dry-run")
    assert broken.returncode == 4
    assert "TypeError" in broken.stderr


def test_help_is_the_scripts_own_where_it_has_one(folder: Path) -> None:
    ours = run(write(folder, SLOW), "--help")
    assert ours.returncode == 0
    assert "--max-request-size" in ours.stdout
    theirs = run(PORTED, "--help")
    assert theirs.returncode == 0
    assert "--factor" in theirs.stdout
    assert "--max-request-size" not in theirs.stdout
    parser = "import argparse\nargparse.ArgumentParser(parents=[arguments()]).parse_args()\n    server = Server()"
    both = SLOW.replace("from engine import", "from engine.server import arguments\nfrom engine import")
    told = run(write(folder, both.replace("server = Server()", parser.replace("\n", "\n    ", 1))), "--help")
    assert told.returncode == 0, told.stderr
    assert "--max-request-size" in told.stdout


def test_every_wrong_flag_and_variable_is_told_at_once(folder: Path) -> None:
    env = {"ENGINE_DEBUG": "perhaps", "ENGINE_CAPACITY": "0", "ENGINE_TIMEOUT": "soon"}
    done = run(write(folder, SLOW), "--wait", "long", "--port", "x", env=env)
    assert done.returncode == 3
    for source in ("--wait", "--port", "ENGINE_DEBUG", "ENGINE_CAPACITY", "ENGINE_TIMEOUT"):
        assert f"{source}: expected" in done.stderr


@pytest.mark.parametrize(
    "daemon",
    [
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])",
        "multiprocessing.Process(target=time.sleep, args=(600,))",
    ],
)
def test_a_daemon_lives_and_dies_with_the_deployment(folder: Path, daemon: str) -> None:
    code = SLOW.replace("import time", "import multiprocessing, subprocess, sys, time").replace(
        "server.run()",
        f"daemon = {daemon}\n"
        "    if daemon.pid is None:\n"
        "        daemon.start()\n"
        "    print('daemon', daemon.pid, flush=True)\n"
        "    server.register_daemon('helper', daemon)\n"
        "    server.run()",
    )
    script = write(folder, code)
    with running(script):  # ended with the deployment: `gone` finds nothing that carries the mark
        pass
    started = start(script, folder)
    try:
        started.wait_ready()
        os.kill(int(started.out.partition("daemon ")[2].split()[0]), signal.SIGTERM)
        assert started.exited() == 1, started.tail()
        assert "daemon helper" in started.log
        started.gone()
    finally:
        started.kill()

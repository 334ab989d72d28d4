"""What a Ray cluster is asked for: the parts of a deployment, and how each is started."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import wait_for

from engine import cli, status
from engine.config import Deployment, build, flags_of
from engine.config.flags import overrides
from engine.core.demand import DOWN_S, UP_S
from engine.errors import StartError
from engine.onray import cluster, holder
from engine.onray.actors import Actors, Told
from engine.onray.parts import Crew, Part, crews, given, parts, words
from engine.onray.scaler import STOP_S, Scaler


def deploy(
    engine: dict[str, Any] | None = None,
    frontend: dict[str, Any] | None = None,
    file: Path = Path("/srv/d/stages.toml"),
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    **stage: Any,
) -> Deployment:
    data = {
        "engine": {"name": "d", "insecure": True, **(engine or {})},
        "frontend": {"workers": 2, **(frontend or {})},
        "stage": [{"name": "pre", "worker": "m:W", "num": 2}, {"name": "encode", "worker": "m:W", **stage}],
    }
    return build(data, file=file, label="stages.toml", flags=flags, environ=environ)


def test_each_worker_is_a_part_of_its_own() -> None:
    assert [(part.name, part.only, part.cpus, part.gpus) for part in parts(deploy(), has_gpus=False)] == [
        ("d/broker", "broker", 1.0, 0.0),
        ("d/frontend", "frontend", 2.0, 0.0),
        ("d/pre-1", "pre=1", 1.0, 0.0),
        ("d/pre-2", "pre=1", 1.0, 0.0),
        ("d/encode-1", "encode=1", 1.0, 0.0),
    ]


@pytest.mark.parametrize(
    ("device", "has_gpus", "gpus"),
    [
        ("cpu", True, 0), ("cuda", False, 1), ("cuda:1", True, 1), (["cuda:0", "cuda:1"], True, 1), ("auto", True, 1),
        ("auto", False, 0),
    ],
)  # fmt: skip
def test_a_worker_is_given_a_gpu_where_it_computes_on_one(device: Any, has_gpus: bool, gpus: int) -> None:
    encode = parts(deploy(device=device), has_gpus=has_gpus)[-1]
    assert encode.gpus == gpus


@pytest.mark.parametrize(("cpus", "count"), [("auto", 1), ("all", 1), ([0, 1, 2], 3), ([[0, 1], [2, 3]], 2)])
def test_a_worker_is_given_as_many_cpus_as_it_is_pinned_to(cpus: Any, count: int) -> None:
    assert parts(deploy(cpus=cpus, num=2), has_gpus=False)[-1].cpus == count


def test_what_a_part_needs_is_told_in_words() -> None:
    assert Part("d/x", "x=1", 1.0, 0.0).needs == "1 CPU"
    assert Part("d/x", "x=1", 2.0, 1.0).needs == "2 CPUs and 1 GPU"


def test_a_part_is_a_supervisor_of_the_same_file() -> None:
    part = Part("d/encode-1", "encode=1", 1.0, 0.0)
    assert words(part, "stages.toml", "/tmp/r", broker="@/tmp/b") == [
        "up", "stages.toml", "--only", "encode=1", "--run-dir", "/tmp/r", "--broker", "@/tmp/b",
    ]  # fmt: skip
    assert words(Part("d/broker", "broker", 1.0, 0.0), "f", "/r", bind="tcp://0.0.0.0:1")[-2:] == [
        "--bind",
        "tcp://0.0.0.0:1",
    ]


def test_user_code_sees_nothing_of_rays_own() -> None:
    told = holder.environment({"RAY_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "1"})
    assert told == {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        ({"cells": 1, "broker": ["a:1", "b:1"]}, "has one broker"),
        ({"insecure": False}, "name a key file"),
        ({"key": "deployment.key"}, "^/srv/d/deployment.key is secret, and lies in the folder"),
        ({"key": "keys/of/it"}, "^/srv/d/keys/of/it is secret"),
    ],
)
def test_what_cannot_be_on_a_cluster_is_told_before_there_is_one(engine: dict[str, Any], why: str) -> None:
    with pytest.raises(StartError, match=why):
        cluster.up(deploy(engine, num=2), "", lambda text: None, {})


def test_a_link_to_a_key_in_the_folder_and_one_that_leads_out_of_it_are_refused(tmp_path: Path) -> None:
    service, elsewhere = tmp_path / "service", tmp_path / "elsewhere"
    service.mkdir()
    elsewhere.mkdir()
    (service / "deployment.key").touch()
    (elsewhere / "out.key").touch()
    (service / "in.key").symlink_to(elsewhere / "out.key")
    (elsewhere / "link.key").symlink_to(service / "deployment.key")
    for key in (service / "in.key", elsewhere / "link.key"):
        with pytest.raises(StartError, match=f"^{key} is secret"):
            cluster._check(deploy({"key": str(key)}, file=service / "stages.toml"))
    cluster._check(deploy({"key": str(elsewhere / "out.key")}, file=service / "stages.toml"))


def test_the_secret_of_tls_is_not_brought_to_every_node_either() -> None:
    for names in ({"certfile": "both.pem"}, {"certfile": "cert.pem", "keyfile": "key.pem"}):
        with pytest.raises(StartError, match=f"^/srv/d/{list(names.values())[-1]} is secret"):
            cluster._check(deploy(frontend=names))
    cluster._check(deploy(frontend={"certfile": "cert.pem", "keyfile": "/etc/d/key.pem"}))


def test_flags_and_variables_reach_every_part() -> None:
    flags = {
        "port": "9000", "certfile": "/srv/d/tls/cert.pem", "keyfile": "/etc/d/key.pem", "compression": "on",
        "run_dir": "/tmp/r", "bind": "tcp://0.0.0.0:7000",
    }  # fmt: skip
    environ = {"ENGINE_GRACE": "7s", "ENGINE_PORT": "1", "ENGINE_BROKER": "h:7000"}
    found = deploy(flags=flags, environ=environ)
    told = given(found, overrides(flags, environ)[0])
    assert told == {
        "grace": "7s", "port": "9000", "compression": "true", "certfile": "tls/cert.pem", "keyfile": "/etc/d/key.pem",
    }  # fmt: skip
    line = words(Part("d/frontend", "frontend", 1.0, 0.0), "stages.toml", "/tmp/r", broker="@/tmp/b", given=told)
    options = cli.parser().parse_args(line)
    assert flags_of(options) == {**told, "run_dir": "/tmp/r", "broker": "@/tmp/b"}
    assert (options.file, options.only) == ("stages.toml", "frontend")
    off = words(Part("d/frontend", "frontend", 1.0, 0.0), "f", "/r", given={"compression": "false"})
    assert flags_of(cli.parser().parse_args(off))["compression"] == "false"


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_cluster_has_all_parts(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stages.toml").write_text('[[stage]]\nname = "s"\nworker = "m:W"\n')
    with pytest.raises(SystemExit) as end:
        cli.run([command, str(tmp_path), "--on", "ray", "--only", "broker"])
    assert end.value.code == 2
    assert "--only is of this machine" in capsys.readouterr().err


def test_a_stage_that_could_not_say_how_it_stands_is_waited_for() -> None:
    whole = {"name": "a", "ready": 2, "wanted": 2}
    assert cluster._is_whole({"stages": [whole]})
    assert not cluster._is_whole({"stages": [whole, {"name": "b"}]})


def test_a_part_that_cannot_be_started_says_why_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "n"),
        get_gpu_ids=list,
        util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1"),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(holder, "AGAIN_S", 0.01)
    monkeypatch.setattr(holder, "LOOK_S", 0.01)
    ports: list[int] = []
    programs: list[list[str]] = []

    def free_ports(count: int) -> int:
        if not ports:
            raise RuntimeError("no ports are free")
        return ports[0]

    class Program:
        def __init__(self, command: list[str], **_: Any) -> None:
            if not programs:
                raise OSError("no memory")
            programs.append(command)
            self.returncode: int | None = None

        def poll(self) -> int | None:
            return self.returncode

        def send_signal(self, number: int) -> None:
            self.returncode = -number

        def wait(self) -> None:
            assert self.returncode is not None

    monkeypatch.setattr(holder, "free_ports", free_ports)
    monkeypatch.setattr(holder.subprocess, "Popen", Program)
    part = Part("d/broker", "broker", 1.0, 0.0)
    held = holder.Holder(part, "stages.toml", "d/broker", 7, {"grace": "7s"})
    wait_for("the first reason", lambda: held.state()["failed"] == "no ports are free")
    assert cluster._waits([part], [held.state()]) == "broker cannot be started: no ports are free"
    ports.append(21_000)
    wait_for("the second", lambda: held.state()["failed"] == "no memory")
    assert held.state()["starts"] == 0
    programs.append([])
    wait_for("a start", lambda: held.state()["runs"])
    assert (held.state()["failed"], held.state()["starts"]) == ("", 1)
    assert "--grace=7s" in programs[-1]
    assert held.address() == "10.0.0.1:21000"
    assert held.stop(60.0)


def test_who_has_no_place_is_in_the_status() -> None:
    told = (
        b'{"name": "d", "parts": [{"part": "encode=1", "needs": "1 GPU", "host": ""}, {"part": "broker", "host": "h"}]}'
    )
    assert "encode=1 has no place yet: it waits for 1 GPU" in status.table(told)
    assert "broker has no place" not in status.table(told)


# --- workers by demand ------------------------------------------------------------------------------------------------


class Call:
    """A method of an actor."""

    def __init__(self, does: Any) -> None:
        self.remote = does


class Pretended(Actors):
    """A cluster with room for everybody, in which a worker that was told to stop ends when the test says so."""

    def __init__(self) -> None:
        super().__init__(None)
        self.there: dict[str, dict[str, Any]] = {}
        self.demand: dict[str, float] = {"encode": 0.0}
        self.queued = 0
        self.started: list[str] = []
        self.silent = False

    def add(self, name: str) -> None:
        self.there[name] = {"stopping": False, "ended": False}

    def names(self, deployment: str) -> set[str]:
        return set(self.there)

    def named(self, name: str) -> Any:
        if name == "d/broker":
            told = {"demand": self.demand, "stages": [{"name": "encode", "queued": self.queued}]}
            return SimpleNamespace(ask=Call(lambda what: b"" if self.silent else json.dumps(told).encode()))
        if (one := self.there.get(name)) is None:
            return None

        def stop(within_s: float) -> dict[str, Any]:
            one["stopping"] = True
            return one

        return SimpleNamespace(name=name, state=Call(lambda: dict(one)), stop=Call(stop))

    def start(self, part: Part, told: Told) -> None:
        self.started.append(part.name)
        self.add(part.name)

    def asked(self, questions: Sequence[Any], within_s: float = 1.0) -> list[Any]:
        return list(questions)

    def has_come(self, answer: Any) -> bool:
        return bool(answer["ended"])

    def kill(self, actor: Any) -> None:
        del self.there[actor.name]


def scaler(actors: Pretended, **stage: Any) -> Scaler:
    found = [crew for crew in crews(deploy(**stage), has_gpus=False) if crew.is_scaled]
    return Scaler("d", found, [["encode"]], Told("f", "d/broker", 9, {}), 5.0, actors=actors)


def pass_time(made: Scaler, begin: float, seconds: float) -> float:
    for second in range(round(seconds)):
        made.look(begin + second)
    return begin + seconds


def test_a_crew_has_a_part_for_each_worker_that_there_may_be() -> None:
    (_, encode) = crews(deploy(num=1, min=0, max=3), has_gpus=False)
    assert isinstance(encode, Crew)
    assert [encode.part(slot).name for slot in encode.slots] == ["d/encode-1", "d/encode-2", "d/encode-3"]
    assert [part.name for part in parts(deploy(num=0, min=0, max=3), has_gpus=False)][-1] == "d/pre-2"


def test_workers_come_and_go_with_the_demand_on_a_cluster() -> None:
    actors = Pretended()
    actors.add("d/encode-1")
    made = scaler(actors, max=3)
    actors.demand["encode"] = 2.0
    at = pass_time(made, 0.0, UP_S + 5)
    assert actors.started == ["d/encode-2", "d/encode-3"]
    actors.demand["encode"] = 0.5
    at = pass_time(made, at, DOWN_S + 5)
    assert [name for name, one in actors.there.items() if one["stopping"]] == ["d/encode-2", "d/encode-3"]
    actors.there["d/encode-2"]["ended"] = True
    at = pass_time(made, at, 2)
    assert set(actors.there) == {"d/encode-1", "d/encode-3"}, "one that has not finished is waited for"
    pass_time(made, at, 5.0 + STOP_S + 1)
    assert set(actors.there) == {"d/encode-1"}, "though not for ever: it may never have had a place"


def test_a_request_that_waits_has_a_worker_started_on_a_cluster() -> None:
    actors = Pretended()
    made = scaler(actors, num=0, min=0, max=2)
    at = pass_time(made, 0.0, 5)
    actors.queued = 1
    made.look(at)
    assert actors.started == ["d/encode-1"]


def test_a_scaler_that_was_started_again_goes_on_from_the_workers_there_are() -> None:
    actors = Pretended()
    for slot in (1, 2, 3):
        actors.add(f"d/encode-{slot}")
    actors.there["d/encode-3"]["stopping"] = True
    actors.demand["encode"] = 1.0
    made = scaler(actors, max=4)
    at = pass_time(made, 0.0, 3)
    assert made.nums() == {"encode": 2}
    actors.there["d/encode-3"]["ended"] = True
    at = pass_time(made, at, 2)
    assert set(actors.there) == {"d/encode-1", "d/encode-2"}
    actors.demand["encode"] = 2.0
    pass_time(made, at, UP_S + 2)
    assert actors.started == ["d/encode-3"]


def test_nothing_is_changed_while_the_broker_says_nothing_but_who_is_missing_is_replaced() -> None:
    actors = Pretended()
    for slot in (1, 2):
        actors.add(f"d/encode-{slot}")
    made = scaler(actors, max=4)
    made.look(0.0)
    actors.silent = True
    del actors.there["d/encode-2"]
    pass_time(made, 1.0, 2 * DOWN_S)
    assert actors.started == ["d/encode-2"]
    assert not any(one["stopping"] for one in actors.there.values())

"""Which parts of a deployment run on a host, and where workers run there."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from engine import process
from engine.config import Deployment, build, dump, load
from engine.config.endpoints import PATH_MAX
from engine.core.processes import Kind
from engine.core.scaling import Bounds
from engine.errors import ConfigError
from engine.supervisor import family
from engine.supervisor.parts import WHOLE, parse

SHARED = {"bind": "tcp://127.0.0.1:7000", "insecure": True}


def deployment(*stages: str, engine: dict[str, object] = SHARED, **about: object) -> Deployment:
    tables = [{"name": name, "worker": "m:C", "num": 2, **about} for name in stages or ("encode", "rank")]
    data = {"engine": {"name": "n", "run_dir": "/run/n", **engine}, "stage": tables}
    return build(data, file=Path("/x/stages.toml"), label="f", environ={})


def names(only: str, found: Deployment) -> list[str]:
    parts = parse(only, found)
    return [child.name for child in family.of(family.settled(found, parts), parts)]


def test_what_is_named_runs_here() -> None:
    found = deployment()
    assert names("", found) == [child.name for child in family.whole(found)]
    assert names("frontend,broker", found) == ["broker", "frontend"]
    assert names("rank", found) == ["worker rank-1", "worker rank-2"]
    assert names("rank=1, broker", found) == ["broker", "worker rank-1"]
    assert names("encode=3", deployment(spare=1)) == ["worker encode-1", "worker encode-2", "worker encode-3"]


def test_each_set_of_parts_has_a_run_directory_of_its_own() -> None:
    found = deployment()
    folders = {only: parse(only, found).of(found).engine.run_dir for only in ("", "broker", "rank,encode", "rank=4")}
    assert folders == {"": "/run/n", "broker": "/run/n+broker", "rank,encode": "/run/n+encode+rank",
                       "rank=4": "/run/n+rank"}  # fmt: skip
    assert parse("encode=1", found).of(found).engine.run_dir == parse("encode", found).of(found).engine.run_dir
    long = deployment("a" * 60, "b" * 60, "c")
    assert len(parse(f"{'a' * 60},{'b' * 60}", long).of(long).engine.run_dir) < PATH_MAX - 20


def test_all_parts_are_the_whole_and_need_no_address() -> None:
    found = deployment(engine={})
    assert parse("", found) == WHOLE
    parts = parse("broker,frontend,encode=3,rank", found)
    assert parts.of(found).engine.run_dir == "/run/n"
    assert [stage.num for stage in parts.of(found).stages] == [3, 2]


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("encoder", "expected some of broker, frontend, encode, rank; got encoder"),
        ("encode,", "got nothing"),
        ("encode,encode=2", "encode is named twice"),
        ("broker=2", "expected STAGE=N"),
        ("encode=0", "from 1 to 4096"),
        ("encode=many", "got encode=many"),
    ],
)
def test_what_cannot_be_is_refused(only: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(only, deployment())


def test_a_part_without_an_address_is_refused_and_told_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"leaves frontend, rank to others(?s:.)*bind = ") as caught:
        parse("broker,encode", deployment(engine={}))
    assert len(caught.value.problems) == 1


def test_a_stage_that_is_called_like_another_part_is_not_guessed_at() -> None:
    with pytest.raises(ConfigError, match='stage "broker" has the name of another part'):
        parse("broker", deployment("broker"))


# --- placed by what runs here -----------------------------------------------------------------------------------------


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "available_cpus", lambda: list(range(16)))
    monkeypatch.setattr(process, "usable_cpus", lambda: 16.0)
    monkeypatch.setattr(process, "quota", lambda: None)


def shares(only: str, found: Deployment) -> dict[str, str]:
    parts = parse(only, found)
    here = family.settled(found, parts)
    environments = family.environments(here, family.of(here, parts))
    return {
        child.name: told[process.CPUS_VARIABLE] for child, told in environments.items() if child.kind is Kind.WORKER
    }


@pytest.mark.usefixtures("cpus")
def test_workers_have_the_cpus_of_the_host_they_run_on() -> None:
    found = deployment(device="cpu")
    whole = shares("", found)
    assert all(len(told.split(",")) == 3 for told in whole.values())  # of 16, less a quarter at most for the others
    assert shares("encode=2", found) == {
        "worker encode-1": "0,1,2,3,4,5,6,7", "worker encode-2": "8,9,10,11,12,13,14,15",
    }  # fmt: skip
    assert shares("broker,rank=1", found) == {"worker rank-1": ",".join(map(str, range(1, 16)))}
    assert len(shares("rank=16", found)) == 16
    assert shares("rank=4", deployment(device="cpu", cpus=[[0], [1]])) == {
        f"worker rank-{slot}": cpu for slot, cpu in zip(range(1, 5), "0101", strict=True)
    }


@pytest.mark.usefixtures("cpus")
def test_the_frontend_has_as_many_processes_as_the_host_it_runs_on_carries() -> None:
    found = deployment(num=5)
    assert family.settled(found, WHOLE).frontend.processes == 2  # (16 - 1 - 10) / 2
    assert family.settled(found, parse("frontend", found)).frontend.processes == 4  # what one broker keeps up with


@pytest.mark.usefixtures("cpus")
def test_the_quota_of_the_control_group_bounds_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "quota", lambda: 4.0)
    found = deployment(device="cpu")
    parts = parse("encode=2", found)
    places = process.place(parts.of(found), [("encode", 1), ("encode", 2)], beside=0, environ={})
    assert {place.env["OMP_NUM_THREADS"] for place in places.values()} == {"2"}


@pytest.mark.usefixtures("cpus")
def test_a_part_sees_the_gpus_that_its_host_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(process, "count_gpus", lambda environ=None: 2)
    found = deployment(device="cuda")
    parts = parse("encode=3", found)
    here = family.settled(found, parts)
    environments = family.environments(here, family.of(here, parts))
    assert [told[process.DEVICE_VARIABLE] for told in environments.values()] == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(("engine", "cpus_told"), [(SHARED, 16), ({}, 3)])
def test_a_worker_by_hand_is_alone_where_others_may_be_on_other_hosts(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, object], cpus_told: int
) -> None:
    pinned: list[int] = []
    monkeypatch.setattr(process, "pin", pinned.extend)
    monkeypatch.setattr(process.os, "environ", {})
    process.settle(deployment(engine=engine, device="cpu"), "rank", 2)
    assert len(pinned) == cpus_told


def test_the_supervisor_of_all_of_it_scales_what_has_no_number_of_its_own() -> None:
    found = deployment(max=4)
    assert set(WHOLE.scaled(found)) == {"encode", "rank"}
    assert WHOLE.scaled(found)["rank"] == Bounds(1, 4)
    assert set(parse("broker,frontend,encode=3,rank", found).scaled(found)) == {"rank"}
    assert parse("broker,encode,rank", found).scaled(found) == {}
    many = deployment(max=4, engine={**SHARED, "broker": ["a:7000", "b:7000"]})
    assert WHOLE.scaled(many) == {}, "the other broker's workers are another's"
    assert WHOLE.scaled(deployment()) == {}
    assert WHOLE.scaled(deployment(engine={"cells": 2}, max=4, min=0))["rank"] == Bounds(0, 4, 2)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_a_number_that_is_named_may_lie_beyond_the_bounds_of_all(num: int) -> None:
    found = deployment(min=2, max=4)
    mine = parse(f"encode={num}", found).of(found)
    assert mine.stages[0].num == num
    assert build_again(mine) == mine


def build_again(found: Deployment) -> Deployment:
    """As the processes of it read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deployment.json"
        path.write_bytes(dump(found))
        return load(path)


def test_a_part_that_begins_without_workers_is_named_with_a_number() -> None:
    found = deployment(num=0, min=0, max=2)
    assert names("encode=1", found) == ["worker encode-1"]
    with pytest.raises(ConfigError, match=r"encode begins with no worker \(num = 0\): name a number, encode=1"):
        parse("encode", found)

"""What a Ray cluster is asked for: the parts of a deployment, and how each is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import status
from engine.config import Deployment, build
from engine.errors import StartError
from engine.onray import cluster, holder
from engine.onray.parts import Part, parts, words


def deploy(engine: dict[str, Any] | None = None, **stage: Any) -> Deployment:
    data = {
        "engine": {"name": "d", "insecure": True, **(engine or {})},
        "frontend": {"workers": 2},
        "stage": [{"name": "pre", "worker": "m:W", "num": 2}, {"name": "encode", "worker": "m:W", **stage}],
    }
    return build(data, file=Path("/srv/d/stages.toml"), label="stages.toml")


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
    ],
)
def test_what_cannot_be_on_a_cluster_is_told_before_there_is_one(engine: dict[str, Any], why: str) -> None:
    with pytest.raises(StartError, match=why):
        cluster.up(deploy(engine, num=2), "", lambda text: None)


def test_who_has_no_place_is_in_the_status() -> None:
    told = (
        b'{"name": "d", "parts": [{"part": "encode=1", "needs": "1 GPU", "host": ""}, {"part": "broker", "host": "h"}]}'
    )
    assert "encode=1 has no place yet: it waits for 1 GPU" in status.table(told)
    assert "broker has no place" not in status.table(told)

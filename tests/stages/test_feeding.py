"""What stages without examples are tried and measured with, where requests go on in parts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from engine.config import Deployment, build
from stages.build import is_last, lasts, most_afar, most_between
from stages.dryrun import Finding, run
from stages.profiling import profile_stage

SERVICE = """
from engine import Done, Skip, Worker

seen = {}

class Seeing(Worker):
    def forward(self, data):
        for one in data if isinstance(data, list) and self.max_batch_size > 1 else [data]:
            seen.setdefault(self.stage, []).append(one)
        return data

class Detect(Seeing):
    example = {"crops": ["one", "two", "three"], "page": 7}

class Late(Seeing):
    example = {"crops": 3}

class Long(Seeing):
    example = {"crops": list(range(9))}

class Classify(Seeing):
    def forward(self, data):
        return [{"label": one} for one in super().forward(data)]

class Sure(Seeing):
    def forward(self, data):
        super().forward(data)
        return Done("sure")

class Passing(Seeing):
    example = {"crops": []}
    def forward(self, data):
        return Skip(data, to="format")
"""
CROPS = {"each": "crops", "through": ["classify"], "most": 8}


def deployment(folder: Path, ways: list[Any], **classes: str | dict[str, Any]) -> Deployment:
    """Stage -> its class, or its keys."""
    (folder / "in_parts.py").write_text(SERVICE)
    sys.modules.pop("in_parts", None)
    stages = [
        {"name": name, **({"worker": f"in_parts:{told}"} if isinstance(told, str) else told)}
        for name, told in classes.items()
    ]
    data = {"stage": stages, "route": [{"path": "/page", "stages": ways}]}
    return build(data, file=folder / "stages.toml", label="stages.toml", flags={}, environ={})


def pages(folder: Path, **classes: Any) -> Deployment:
    batched = {"worker": "in_parts:Classify", "max_batch_size": 4}
    return deployment(
        folder, ["detect", CROPS, "format"], **{"detect": "Detect", "classify": batched, "format": "Seeing"} | classes
    )


def checked(of: Deployment) -> tuple[dict[str, Finding], dict[str, list[Any]]]:
    findings = {finding.stage: finding for finding in run(of)}
    return findings, sys.modules["in_parts"].seen


def test_a_check_gives_a_region_elements_and_the_stage_behind_their_results(tmp_path: Path) -> None:
    findings, seen = checked(pages(tmp_path))
    assert {finding.status for finding in findings.values()} == {"ok"}
    assert set(map(str, seen["classify"])) == {"one", "two", "three"}
    assert findings["classify"].fed_by == findings["format"].fed_by == "detect"
    labels = [{"label": one} for one in ("one", "two", "three")]
    assert all(value == {"crops": labels, "page": 7} for value in seen["format"])


def test_a_check_joins_branches_and_regions_within_them(tmp_path: Path) -> None:
    both = {"all": {"boxes": ["detect", CROPS, "format"], "sure": "sure"}}
    of = deployment(
        tmp_path,
        ["load", both, "merge"],
        load="Detect",
        detect="Seeing",
        classify={"worker": "in_parts:Classify", "max_batch_size": 4},
        format="Seeing",
        sure="Sure",
        merge="Seeing",
    )
    findings, seen = checked(of)
    assert {finding.status for finding in findings.values()} == {"ok"}, [one.error for one in findings.values()]
    page = {"crops": ["one", "two", "three"], "page": 7}
    assert all(value == page for value in (*seen["detect"], *seen["sure"]))
    boxes = {"crops": [{"label": one} for one in ("one", "two", "three")], "page": 7}
    assert all(value == {"boxes": boxes, "sure": "sure"} for value in seen["merge"])
    assert (findings["detect"].fed_by, findings["merge"].fed_by) == ("load", "load")


def test_a_check_takes_what_goes_past_the_region(tmp_path: Path) -> None:
    findings, _ = checked(pages(tmp_path, detect="Passing"))
    assert findings["format"].fed_by == "detect"
    assert findings["classify"].status == "not exercised"


def test_an_example_whose_result_cannot_be_split_fails_its_stage(tmp_path: Path) -> None:
    findings, _ = checked(pages(tmp_path, detect="Late"))
    assert findings["detect"].status == "failed"
    assert '"crops" of its result is a int' in str(findings["detect"].error)
    findings, _ = checked(pages(tmp_path, detect="Long"))
    assert '"crops" has 9 elements, and at most 8 are taken' in str(findings["detect"].error)


def test_a_region_and_the_stage_behind_are_measured_with_parts(tmp_path: Path) -> None:
    of = pages(tmp_path)
    assert profile_stage(of, "classify").times
    assert set(map(str, sys.modules["in_parts"].seen["classify"])) == {"one", "two", "three"}
    said: list[str] = []
    assert profile_stage(of, "format", said.append).times
    labels = [{"label": one} for one in ("one", "two", "three")]
    assert all(value == {"crops": labels, "page": 7} for value in sys.modules["in_parts"].seen["format"])
    assert [line for line in said if "whose results it is given" in line][:2] == [
        "format: it has no example; loading detect, whose results it is given",
        "format: it has no example; loading classify, whose results it is given",
    ]


def test_who_reads_a_result_is_who_it_has_to_fit(tmp_path: Path) -> None:
    def sized(number: int, kind: str = "Seeing") -> dict[str, Any]:
        return {"worker": f"in_parts:{kind}", "max_queue_bytes": number << 20}

    of = pages(tmp_path, detect=sized(40, "Detect"), classify=sized(30), format=sized(20))
    assert most_between(of, "detect") == 20 << 20  # the head is larger
    assert most_between(of, "classify") == most_afar(of, "classify") == 20 << 20  # its reader is past the region
    assert most_between(of, "format") == most_afar(of, "format") == sys.maxsize
    of = pages(tmp_path, detect=sized(40, "Detect"), classify=sized(20), format=sized(30))
    assert most_between(of, "detect") == 20 << 20
    assert [is_last(of, stage) for stage in ("detect", "classify", "format")] == [False, False, True]
    assert [lasts(of, stage) for stage in ("detect", "classify", "format")] == [{False}, {False}, {True}]

"""``engine why``: what is printed of the account of one broker or several, and what is said when there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine import admin, cli, why
from engine.core.messages import Ask
from engine.errors import Unavailable
from engine.exitcodes import ExitCode
from engine.joined import join

BATCH: dict[str, Any] = {
    "what": "batch", "age_s": 2.0, "stage": "encode", "reason": "full", "items": 8, "waiting": 20, "waited_ms": 12.1,
    "worker": 1, "ahead": 0, "predicted_ms": 25.0, "took_ms": 24.3, "is_done": True, "is_cut": False, "failed": 0,
    "fate": "", "requests": ["a"],
}  # fmt: skip
REFUSAL: dict[str, Any] = {
    "what": "refusal", "age_s": 1.0, "stage": "", "reason": "predicted", "items": 3, "waiting": 412,
    "route": "/inference", "predicted_ms": 512.0, "had_ms": 200.0, "retry_ms": 1200.0, "requests": ["b"],
}  # fmt: skip
STAGE: dict[str, Any] = {
    "name": "encode", "since_s": 12.3, "batches": {"idle": 100, "full": 300}, "items": 2400, "compared": 200,
    "within_20_percent": 186, "refused": {"hopeless": 2},
}  # fmt: skip
DOOR: dict[str, Any] = {
    "since_s": 5.0,
    "refused": {"predicted": 30, "capacity": 7},
    "compared": 64,
    "within_20_percent": 60,
}
TOLD: dict[str, Any] = {"name": "n", "stages": [STAGE], "door": DOOR, "decisions": [BATCH, REFUSAL]}
CLOCK = 1_790_000_000.0


def lines(told: dict[str, Any], **asked: Any) -> list[str]:
    """Without the clock times, which are those of a time zone."""
    found = why.text(json.dumps(told).encode(), CLOCK, **asked).splitlines()
    return [re.sub(r"^\d\d:\d\d:\d\d\.\d{3}", "CLOCK-CLOCK-", line) for line in found]


def test_first_what_all_of_it_amounts_to_and_then_the_last_decisions() -> None:
    found = lines(TOLD)
    assert found == [
        "encode    400 batches in the last 12 s, mean size 6.0: full 75 %, idle 25 %",
        "          took what was predicted, within 20 %: 93 % of 200 batches",
        "          refused here: hopeless 2",
        "the door  refused: predicted 30, capacity 7",
        "          done when predicted, within 20 %: 94 % of 64 compared requests",
        "",
        "TIME          WHERE     WHY            ITEMS    WAITED  WORKER       PREDICTED      TOOK",
        "CLOCK-CLOCK-  encode    full         8 of 20   12.1 ms  1 idle         25.0 ms   24.3 ms",
        "CLOCK-CLOCK-  the door  predicted  3 refused  takes 512 ms, had 200 ms, 412 served, back in 1.2 s, /inference",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"took_ms": None, "is_done": False}, "1 idle         25.0 ms         -  under way"),
        ({"took_ms": None}, "1 idle         25.0 ms         -"),
        ({"ahead": 2, "predicted_ms": None}, "1 behind 2           -   24.3 ms"),
        ({"is_cut": True, "failed": 3}, "25.0 ms   24.3 ms  cut to be in time, 3 failed"),
        ({"took_ms": None, "is_done": False, "fate": "died"}, "25.0 ms         -  its worker died"),
        ({"fate": "given to others"}, "25.0 ms   24.3 ms  given to others"),
    ],
)
def test_what_became_of_a_batch(changes: dict[str, Any], said: str) -> None:
    assert lines({**TOLD, "decisions": [{**BATCH, **changes}]})[-1].endswith(said)


def test_lines_are_found_by_the_clock_on_the_wall() -> None:
    shown = why.text(json.dumps(TOLD).encode(), CLOCK).splitlines()[-2:]
    minutes = [re.match(r"\d\d:(\d\d):(\d\d)\.(\d{3})  ", line) for line in shown]
    assert [found and found.groups() for found in minutes] == [("13", "18", "000"), ("13", "19", "000")]


def test_of_one_stage_nothing_is_said_of_others() -> None:
    other = {**STAGE, "name": "other"}
    assert lines({**TOLD, "stages": [STAGE, other], "decisions": []}, stage="other")[0].startswith("other     400")
    assert len(lines({**TOLD, "stages": [STAGE, other], "decisions": []}, stage="other")) == 3


def test_a_request_of_which_nothing_is_kept() -> None:
    assert lines({**TOLD, "decisions": []}, request="x")[-1] == "no decision about request x is kept"


def test_a_service_that_has_done_nothing_yet() -> None:
    idle = {**STAGE, "batches": {}, "items": 0, "compared": 0, "refused": {}}
    assert lines({"name": "n", "stages": [idle], "door": {"refused": {}}, "decisions": []}) == [
        "encode    no batch yet",
        "the door  refused nobody",
    ]
    assert lines({"name": "n", "error": "not told", "stages": []}) == ["n: not told"]


def test_several_brokers_tell_as_one() -> None:
    other = {
        **TOLD,
        "stages": [{**STAGE, "since_s": 20.0, "batches": {"full": 100}, "items": 600, "refused": {}}],
        "decisions": [{**BATCH, "age_s": 1.5}],
    }
    told = json.loads(join("why", [json.dumps(TOLD).encode(), None, json.dumps(other).encode()]))
    (stage,) = told["stages"]
    assert (stage["batches"], stage["items"], stage["since_s"]) == ({"idle": 100, "full": 400}, 3000, 20.0)
    assert (stage["compared"], stage["within_20_percent"], stage["refused"]) == (400, 372, {"hopeless": 2})
    assert told["door"]["refused"] == {"predicted": 60, "capacity": 14}
    assert [(one["what"], one["cell"]) for one in told["decisions"]] == [("batch", 1), ("batch", 3), ("refusal", 1)]
    assert lines(told, last=1)[-1].startswith("CLOCK-CLOCK-  the door/1  predicted")
    assert len(json.loads(why.latest(json.dumps(told).encode(), 2))["decisions"]) == 2
    broken = json.dumps({"name": "n", "error": "not told", "stages": []}).encode()
    assert json.loads(join("why", [json.dumps(TOLD).encode(), broken]))["error"] == "not told"


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "stages.toml"
    path.write_text(f'[engine]\nname = "n"\nrun_dir = "{tmp_path}/r"\n[[stage]]\nname = "encode"\nworker = "m:W"\n')
    return str(path)


def test_the_command_asks_for_what_it_was_asked(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def ask(deployment: object, what: object, timeout_s: float) -> bytes:
        asked.append(what)
        return json.dumps(TOLD).encode()

    monkeypatch.setattr(admin, "ask", ask)
    assert cli.run(["why", file]) == ExitCode.OK
    assert "the door  refused: predicted 30" in capsys.readouterr().out
    assert cli.run(["why", file, "--stage", "encode", "--last", "1", "--request", "a", "--json"]) == ExitCode.OK
    assert [one["what"] for one in json.loads(capsys.readouterr().out)["decisions"]] == ["refusal"]
    assert asked == [Ask("why", 20), Ask("why", 1, "encode", "a")]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stage", "other"], "--stage: expected one of encode; got other"),
        (["--request", "\u00e4"], "--request: expected an x-request-id"),
        (["--request", "a" * 129], "--request: expected an x-request-id"),
    ],
)
def test_what_cannot_be_meant_is_said(
    file: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["why", file, *flags]) == ExitCode.CONFIG
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("knows_status", "said"), [(True, "it is of an older version"), (False, "no running deployment")]
)
def test_who_does_not_answer_is_an_older_broker_or_none(
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    knows_status: bool,
    said: str,
) -> None:
    def ask(deployment: object, what: object, timeout_s: float) -> bytes:
        if what == "status" and knows_status:
            return b"{}"
        raise Unavailable(503, "nobody")

    monkeypatch.setattr(admin, "ask", ask)
    assert cli.run(["why", file]) == ExitCode.UNREACHABLE
    assert said in capsys.readouterr().err

"""What was found, as it is shown: to people, to programs, and as a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from engine.simulation.figures import Figures, StageFigures, percentile
from engine.simulation.picture import Line, Mark, chart, drawn
from engine.simulation.table import Plan, PlanError, Seen, compared, read_plan, text

ENCODE = StageFigures("encode", 3, 0.95, 7.5, 0.12, 0.031, 0.9)
TOKENIZE = StageFigures("tokenize", 1, 0.124, 1.2, 0.001, 0.0005, 0.1)
BEST = Figures(
    400.0, 30000, 0.9941, 0.9902, 0.004, 0.0019, 0.9960, 0.0411, 0.16, (TOKENIZE, ENCODE), (0.01, 0.04, 0.21)
)
MORE = replace(BEST, in_time=1.0, stages=(TOKENIZE, replace(ENCODE, workers=4, busy=0.5, load=0.6)))
PLAN = Plan("embedding", 400.0, (0.2,), 0.99, "Poisson", "measured", BEST, MORE, is_met=True, notes=("mind the gap",))


def test_a_plan_says_how_many_and_one_more_with_both_sets_of_figures() -> None:
    lines = text(PLAN).splitlines()
    assert lines[0] == "embedding: the fewest workers for 400 requests/s, within 200 ms for 99 %"
    head, best, more = (line for line in lines if "  " in line)
    assert head.split() == ["WORKERS", "P50", "P99", "IN", "TIME", "REFUSED", "LATE", "BUSY", "LOAD"]
    assert best.startswith("tokenize 1, encode 3  41.1 ms  160 ms  99.41 %")
    assert best.endswith("12.4 %, 95 %  10 %, 90 %")
    assert more.startswith("tokenize 1, encode 4")
    assert "limited by encode: at 90 % of what full batches carry there is little room" in lines
    assert lines[-1] == "(!) mind the gap"


def test_a_rate_that_was_asked_for_is_told() -> None:
    assert "up to 400 requests/s" in text(replace(PLAN, devices=4))
    assert "the highest rate of 4 workers" in text(replace(PLAN, devices=4))


def test_a_goal_that_is_not_met_is_said_with_what_stands_in_its_way() -> None:
    told = text(replace(PLAN, is_met=False, alone_s=(0.25,)))
    assert "NOT MET: within 200 ms for 99 % cannot be had" in told
    assert "one request alone takes 250 ms, and no number of workers changes that" in told


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (replace(ENCODE, load=0.5, wait_p99_s=0.01), "the workers: not waiting but the batches themselves, 31 ms"),
        (replace(ENCODE, load=0.5), "the workers: requests come together, and one in a hundred waits 120 ms"),
    ],
)
def test_what_limits_is_said_by_what_was_seen(stage: StageFigures, words: str) -> None:
    assert words in text(replace(PLAN, best=replace(BEST, stages=(stage,)), more=replace(MORE, stages=(stage,))))


def test_a_plan_is_read_as_it_was_written() -> None:
    written = PLAN.to_json()
    assert read_plan(written, "plan.json") == PLAN
    assert json.loads(written)["limits"].startswith("encode: at 90 %")


@pytest.mark.parametrize(
    "wrong", ["", "{}", "[]", '{"format": "stageline profile 1"}', PLAN.to_json().replace("p99_s", "p9")]
)
def test_what_is_no_plan_is_said(wrong: str) -> None:
    with pytest.raises(PlanError, match=r"plan.json: not a plan .*engine plan .* --json > plan.json writes one"):
        read_plan(wrong, "plan.json")


def test_a_plan_stands_beside_what_was_seen() -> None:
    seen = Seen(10.0, 390.0, 0.99, None, 0.04, 0.2, {"encode": 0.9}, {"encode": 3})
    rows = [line.split("  ") for line in compared(BEST, seen).splitlines()]
    cells = {row[0]: [cell.strip() for cell in row[1:] if cell] for row in rows[1:]}
    assert cells["requests/s"] == ["400", "390"]
    assert cells["encode: busy"] == ["95 %", "90 %"]
    assert cells["tokenize: busy"] == ["12.4 %", "-"]
    assert cells["refused"] == ["0.4 %", "-"]


def test_a_picture_is_svg_with_both_lines_and_the_goal() -> None:
    root = ElementTree.fromstring(drawn(replace(PLAN, name="a <b> & c")))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    words = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(lines) == 2
    assert {"tokenize 1, encode 3", "tokenize 1, encode 4", "goal", "99 %"} <= set(words)
    assert any(word and word.startswith("a <b> & c: 400 requests/s") for word in words)


def test_a_picture_of_nothing_is_a_picture() -> None:
    ElementTree.fromstring(chart("t", "x", "y", [Line("none", [])], [Mark("m", x=0.0)]))


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, q) for q in (0, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([], 99) == 0.0

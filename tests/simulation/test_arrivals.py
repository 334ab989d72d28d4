"""When requests come: drawn, or read from a recording."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.simulation.arrivals import Recording, Renewal, TraceError, read_trace, taken


def moments(instants: list[float]) -> tuple[float, float]:
    gaps = [later - former for former, later in pairwise([0.0, *instants])]
    mean = sum(gaps) / len(gaps)
    return mean, sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean


@pytest.mark.parametrize(("cv", "rel"), [(0.0, 1e-9), (0.5, 0.05), (1.0, 0.05), (2.0, 0.1), (4.0, 0.15)])
def test_drawn_gaps_have_the_rate_and_the_irregularity_that_were_asked_for(cv: float, rel: float) -> None:
    mean, found = moments(taken(Renewal(200.0, cv), 1, 20_000))
    assert mean == pytest.approx(0.005, rel=max(rel, 0.05))
    assert found == pytest.approx(cv, rel=rel, abs=1e-6)


def test_arrivals_are_the_same_for_one_seed_whatever_else_is_drawn() -> None:
    assert taken(Renewal(10.0), 3, 50) == taken(Renewal(10.0), 3, 50)
    assert taken(Renewal(10.0), 3, 50) != taken(Renewal(10.0), 4, 50)


def test_a_recording_is_gone_round_in_its_order_from_a_place_of_each_seed() -> None:
    gaps = (1.0, 2.0, 3.0, 4.0)
    recording = Recording(gaps, 0.4, "t")
    for seed in range(8):
        found = taken(recording, seed, 9)
        steps = [round(later - former, 9) for former, later in pairwise([0.0, *found])]
        place = gaps.index(steps[0])
        assert steps == [gaps[(place + number) % 4] for number in range(9)]
    assert len({taken(recording, seed, 1)[0] for seed in range(20)}) > 1


def test_a_recording_is_stretched_to_the_rate_that_is_asked_for() -> None:
    recording = read_trace("gap\n" + "\n".join(["0.1", "0.3"] * 500), "t")
    assert recording.rate == pytest.approx(5.0)
    mean, cv = moments(taken(recording.at(50.0), 1, 1000))
    assert mean == pytest.approx(0.02)
    assert cv == pytest.approx(recording.cv) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "gaps"),
    [
        ("1\n2\n4\n", [1.0, 2.0]),  # instants, in order
        ("0.5\n0.2\n0.4\n", [0.5, 0.2, 0.4]),  # no order: gaps
        ("gap\n1\n2\n4\n", [1.0, 2.0, 4.0]),  # in order, and gaps all the same
        ("interval_ms,path\n100,/a\n50,/b\n", [0.1, 0.05]),
        ("path,timestamp,status\n/a,10.5,200\n/b,10,200\n/c,12,500\n", [0.5, 1.5]),  # as they ended
        ("ts\n1700000000000\n1700000000250\n1700000001000\n", [0.25, 0.75]),  # milliseconds since 1970
        ("ts\n1700000000000000000\n1700000000250000000\n1700000001000000000\n", [0.25, 0.75]),
        ("1700000001\n1700000000\n1700000003\n", [1.0, 2.0]),  # no order, and no gaps
        ("time\n2026-11-01T10:00:00Z\n2026-11-01T10:00:00.5Z\n2026-11-01T10:00:02+00:00\n", [0.5, 1.5]),
        ("user,when\nx,2026-11-01 10:00:00\nx,2026-11-01 10:00:03\ny,2026-11-01 10:00:04\n", [3.0, 1.0]),
        ("\ntimestamp\n\n1\n2\n\n4\n", [1.0, 2.0]),
        ("one word\n,1\n,2\n,4\n", [1.0, 2.0]),
    ],
)
def test_what_is_in_a_recording_is_found(text: str, gaps: list[float]) -> None:
    assert list(read_trace(text, "t").gaps) == pytest.approx(gaps)


def test_a_column_is_taken_by_name_or_number() -> None:
    text = "a,b\n1,10\n2,30\n4,60\n"
    assert read_trace(text, "t", "b").gaps == (20.0, 30.0)
    assert read_trace(text, "t", "2").gaps == (20.0, 30.0)
    assert read_trace(text, "t").gaps == (1.0, 2.0)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", "", "it is empty"),
        ("path,code\n/a,x\n", "", "no column of numbers or dates in its first row; say which one with --column"),
        ("a,b\n1,2\n", "c", "there is no column c; expected one of a, b"),
        ("1,2\n3,4\n", "3", "there is no column 3; expected one of 1 to 2"),
        ("ts\n1\nsoon\n3\n", "", "line 3: expected a number of seconds or a date, got 'soon'"),
        ("ts,x\n1,y\n2,y\n,y\n", "", "line 4: expected a number"),
        ("gap\n0.1\n-0.2\n0.1\n", "", "a gap of -0.2 s"),
        ("ts\n5\n", "", "0 gaps"),
        ("gap\n0\n0\n", "", "2 gaps of 0 s together"),
        ("ts\n1\nnan\n", "", "got 'nan'"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(text: str, column: str, words: str) -> None:
    with pytest.raises(TraceError, match=words.replace("(", r"\(")) as error:
        read_trace(text, "trace.csv", column)
    assert str(error.value).startswith("trace.csv")


@given(st.text(alphabet=' \n",;.0123456789eE+-:TZabgps', max_size=60))
def test_whatever_a_file_holds_it_is_read_or_refused(text: str) -> None:
    try:
        found = read_trace(text, "t")
    except TraceError:
        return
    assert min(found.gaps) >= 0.0
    assert found.rate > 0.0

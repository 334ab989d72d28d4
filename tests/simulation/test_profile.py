"""Profiles: at which sizes they are taken, what lies between these, and their files."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.simulation.profile import FORMAT, Profile, ProfileError, StageProfile, read_profile, sizes, spread

STEPS = StageProfile({1: 0.004, 2: 0.004, 3: 0.008, 4: 0.008, 5: 0.016, 8: 0.016})


def test_sizes_are_the_powers_of_two_those_after_them_and_the_largest() -> None:
    assert sizes(32) == [1, 2, 3, 4, 5, 8, 9, 16, 17, 32]
    assert sizes(20) == [1, 2, 3, 4, 5, 8, 9, 16, 17, 20]
    assert sizes(1) == [1]
    assert len(sizes(65536)) < 40


def test_where_sizes_are_restricted_the_smallest_batch_of_each_is_measured_too() -> None:
    assert sizes(16, (4, 16)) == [1, 4, 5, 16]


def test_between_two_sizes_it_is_a_straight_line_and_steps_stay_steps() -> None:
    assert [STEPS.curve(n) for n in (1, 2, 3, 4, 5, 6, 7, 8)] == [0.004, 0.004, *[0.008] * 2, *[0.016] * 4]
    line = StageProfile({1: 0.002, 3: 0.006})
    assert line.curve(2) == pytest.approx(0.004)
    assert line.curve(10) == pytest.approx(0.020)  # beyond the last it goes on
    assert StageProfile({8: 0.5}).curve(3) == 0.5
    assert StageProfile({4: 0.5, 8: 0.6}).curve(1) == 0.5


def test_the_best_size_is_that_with_which_most_is_done() -> None:
    assert STEPS.best(8)[0] == 8
    assert StageProfile({1: 0.001, 2: 0.010, 8: 0.1}).best(8)[0] == 1
    assert STEPS.best(4) == (4, pytest.approx(4 / 0.0082))


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_noise_leaves_the_mean_as_it_is(noise: float) -> None:
    rng = random.Random(1)
    drawn = [spread(noise)(rng) for _ in range(20_000)]
    mean = sum(drawn) / len(drawn)
    assert mean == pytest.approx(1.0, abs=0.01)
    assert (sum((one - mean) ** 2 for one in drawn) / len(drawn)) ** 0.5 == pytest.approx(noise, rel=0.05, abs=1e-9)
    assert min(drawn) > 0.0


@given(
    st.dictionaries(
        st.text("abc-", min_size=1, max_size=5),
        st.builds(
            StageProfile,
            st.dictionaries(st.integers(1, 512), st.floats(0.001, 10).map(lambda s: round(s, 6)), min_size=1),
            st.floats(0, 2).map(lambda share: round(share, 4)),
            st.sampled_from(["", "cpu", "cuda:0"]),
            st.dictionaries(st.sampled_from(["/a", "/b"]), st.lists(st.floats(0, 4096), min_size=1).map(tuple)),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_profile_is_read_as_it_was_written(stages: dict[str, StageProfile]) -> None:
    profile = Profile(stages, "somewhere", 0.0005, 0.001)
    found = read_profile(profile.to_json(), "p.json")
    assert found.source == "somewhere"
    assert (found.hop_s, found.edge_s) == (pytest.approx(0.0005), pytest.approx(0.001))
    assert {name: stage.noise for name, stage in found.stages.items()} == {
        name: stage.noise for name, stage in stages.items()
    }
    for name, stage in stages.items():
        assert found.of(name).times == pytest.approx(stage.times)
        assert found.of(name).device == stage.device
        assert found.of(name).parts == stage.parts


def test_a_stage_that_does_next_to_nothing_can_be_read_again() -> None:
    profile = Profile({"a": StageProfile({1: 9e-7, 2: 1e-9})}, "somewhere")
    assert read_profile(profile.to_json(), "p.json").of("a").times == {1: 1e-6, 2: 1e-6}


def told(**changes: object) -> str:
    return json.dumps({"format": FORMAT, "stages": {"a": {"ms": {"1": 5}}}} | changes)


def test_one_that_was_written_by_hand_needs_times_and_nothing_else() -> None:
    profile = read_profile(told(), "p.json")
    assert profile.of("a").times == {1: 0.005}
    assert profile.source == "p.json"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "p.json: not JSON"),
        ("[]", "not a profile"),
        ('{"format": "stageline plan 1"}', "not a profile: expected"),
        (told(stages={}), 'expected "stages"'),
        (told(stages={"a": 3}), 'stages.a: expected "ms"'),
        (told(stages={"a": {"ms": {}}}), 'stages.a: expected "ms"'),
        (told(stages={"a": {"ms": {"two": 1}}}), "stages.a.ms: expected sizes of batches, got 'two'"),
        (told(stages={"a": {"ms": {"2": 0}}}), "stages.a.ms.2: expected milliseconds"),
        (told(stages={"a": {"ms": {"2": "1"}}}), "stages.a.ms.2: expected milliseconds"),
        (told(stages={"a": {"ms": {"2": 1}, "noise": -1}}), "stages.a.noise: expected 0 to 2"),
        (told(stages={"a": {"ms": {"2": 1}, "parts": {"/p": ["2"]}}}), "stages.a.parts: expected how many"),
        (told(stages={"a": {"ms": {"2": 1}, "parts": [2]}}), "stages.a.parts: expected how many"),
        (told(stages={"a": {"ms": {"2": 1}, "parts": 2}}), "stages.a.parts: expected how many"),
        (told(hop_ms=-1), "hop_ms: expected milliseconds of at least 0"),
    ],
)
def test_what_is_no_profile_is_said(text: str, words: str) -> None:
    with pytest.raises(ProfileError) as error:
        read_profile(text, "p.json")
    assert words in str(error.value)


def test_a_stage_that_is_missing_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ProfileError, match=r"no stage b \(it has: a\); measure it anew"):
        read_profile(told(), "p.json").of("b")

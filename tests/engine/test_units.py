"""Sizes and times as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.units import SIZES, TIMES, UnitError, format_size, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("17 B", 17),
        ("10 MiB", 10 << 20),
        ("10MiB", 10 << 20),
        ("  64KiB ", 64 << 10),
        ("1.5 GB", 1_500_000_000),
        ("0.1 MB", 100_000),
        (".5 KiB", 512),
        ("1. KiB", 1024),
        ("2 TiB", 2 << 40),
        ("10 mb", 10_000_000),
        ("1.0001 kB", 1000),
    ],
)
def test_sizes_are_bytes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("3 s", 3.0),
        ("250ms", 0.25),
        ("250 ms", 0.25),
        ("2 min", 120.0),
        ("1.5h", 5400.0),
        ("10us", 0.00001),
        ("0.1", 0.1),
        ("-1s", -1.0),
    ],
)
def test_times_are_seconds(text, seconds):
    assert parse_time(text) == seconds


def test_a_bare_time_is_in_the_unit_of_its_key():
    assert parse_time("10", "ms") == 0.01
    assert parse_time("10 s", "ms") == 10.0


@pytest.mark.parametrize(
    "text", ["", "ten", "1e3", "0x10", "1 000", "1,5 s", "nan", "inf", "--1", "1.2.3", "٣ s", "9" * 19]
)
def test_what_is_no_number_is_refused_and_units_are_listed(text):
    with pytest.raises(UnitError, match="not a number with a unit; units are B, kB, MB"):
        parse_size(text)
    with pytest.raises(UnitError, match="units are us, ms, s, min, h"):
        parse_time(text)


@pytest.mark.parametrize(("parse", "text"), [(parse_size, "3 s"), (parse_time, "3 MiB"), (parse_time, "3 days")])
def test_an_unknown_unit_is_named(parse, text):
    with pytest.raises(UnitError, match=f"unknown unit '{text.split()[1]}'; units are"):
        parse(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1, "1 B"), (1000, "1 kB"), (1024, "1 KiB"), (10 << 20, "10 MiB"), (1025, "1025 B")]
)
def test_a_size_is_shown_in_its_largest_exact_unit(size, text):
    assert format_size(size) == text


@given(st.integers(0, 10**18 - 1))
def test_shown_sizes_are_read_back_exactly(size):
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**15), st.sampled_from(sorted(SIZES)))
def test_whole_sizes_are_exact_in_every_unit(number, unit):
    assert parse_size(f"{number} {unit}") == number * SIZES[unit]


@given(st.integers(0, 10**9), st.sampled_from(sorted(TIMES)))
def test_whole_times_are_the_nearest_float_in_every_unit(number, unit):
    assert parse_time(f"{number}{unit}") == number * TIMES[unit] / 1_000_000

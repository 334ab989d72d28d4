"""When a worker has served long enough."""

from __future__ import annotations

import pytest

from engine.config.units import UnitError, wear_limits
from engine.core.wear import Limits, worn


def test_the_first_limit_that_is_reached_is_the_reason() -> None:
    limits = Limits(age_s=100, batches=10, nbytes=1 << 30)
    assert worn(limits, age_s=99, batches=9, nbytes=(1 << 30) - 1) == ""
    assert "100 s" in worn(limits, age_s=100, batches=9, nbytes=0)
    assert "10 batches" in worn(limits, age_s=99, batches=10, nbytes=1 << 31)
    assert "2048 MiB" in worn(limits, age_s=99, batches=9, nbytes=1 << 31)
    assert worn(Limits(), age_s=1e9, batches=1 << 60, nbytes=1 << 60) == ""


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", Limits()),
        ("12 h", Limits(age_s=12 * 3600)),
        ("90s", Limits(age_s=90)),
        ("100000 batches", Limits(batches=100_000)),
        ("8 GiB", Limits(nbytes=8 << 30)),
        ("12 h, 8 GiB, 5 batches", Limits(age_s=12 * 3600, nbytes=8 << 30, batches=5)),
    ],
)
def test_how_limits_are_written(text: str, limits: Limits) -> None:
    assert wear_limits(text) == limits
    assert limits.are_none == (text == "")


@pytest.mark.parametrize("text", ["12", "12 h, 3 h", "0 s", "-1 h", "1.5 batches", "batches", "soon", "12 h 8 GiB"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(UnitError):
        wear_limits(text)

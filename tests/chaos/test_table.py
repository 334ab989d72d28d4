"""The page about reliability has every row, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from faults.rows import ROWS, SOAKED

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def test_every_row_is_on_the_page() -> None:
    table = PAGE.read_text().partition("\n| row | fault |\n")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| ([A-Z]\w*) \| (.*) \|$", table, re.MULTILINE))
    assert list(told) == [row.id for row in ROWS if not row.instead] + [row.id for row in ROWS if row.instead]
    for row in ROWS:
        if not row.instead:
            assert told[row.id].startswith(row.about), row.id
        assert row.allowed.cut in told[row.id]


def test_what_is_soaked_is_a_row() -> None:
    assert {row.id for row in ROWS} >= SOAKED

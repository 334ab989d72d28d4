"""What the tests of faults are given: a seed, and patience for machines that do other things as well."""

from __future__ import annotations

import os
from typing import Final

import pytest

from faults.rows import ROWS

SEED: Final = int(os.environ.get("CHAOS_SEED", "1"))
LATE_S: Final = 5.0  # beyond a deadline; scripts/chaos, which has its machine for itself, grants one second


@pytest.hookimpl(trylast=True)  # behind whoever shuffles them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ends the shared deployment comes last in its module, else that would have to be made twice."""
    ends = {f"test_a_row_costs_what_it_may[{row.id}]" for row in ROWS if row.ends}
    for last in [item for item in items if item.name in ends]:
        at = max(number for number, item in enumerate(items) if item.path == last.path)
        items.insert(at, items.pop(items.index(last)))


@pytest.fixture(autouse=True)
def test_leaves_nothing(module_leaves_nothing: None) -> None:
    """In place of what other tests are held to one by one: these share deployments, whose processes are replaced all
    the time. What a module leaves behind is looked for as everywhere."""

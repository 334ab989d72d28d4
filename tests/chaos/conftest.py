"""What the tests of faults are given: a seed, and patience for machines that do other things as well."""

from __future__ import annotations

import os
from typing import Final

import pytest

SEED: Final = int(os.environ.get("CHAOS_SEED", "1"))
LATE_S: Final = 5.0  # beyond a deadline; scripts/chaos, which has its machine for itself, grants one second


@pytest.fixture(autouse=True)
def test_leaves_nothing(module_leaves_nothing: None) -> None:
    """In place of what other tests are held to one by one: these share deployments, whose processes are replaced all
    the time. What a module leaves behind is looked for as everywhere."""

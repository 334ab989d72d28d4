"""Makes the harness importable; the fixtures that hold deployments stand in the modules that use them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a short path."""
    with short_folder() as made:
        yield made

"""A deployment for a broker that runs in the test's own process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from engine.config import Deployment
from tests.engine.test_broker import deploy


@pytest.fixture(params=["one", "stage"])
def threads(request: pytest.FixtureRequest) -> str:
    """What carries the broker: what is tested of it holds for both."""
    return str(request.param)


@pytest.fixture
def deployment(threads: str) -> Iterator[Deployment]:
    folder = tempfile.mkdtemp(prefix="sl-", dir="/tmp")  # short: an ipc path holds about 100 bytes
    yield deploy(folder, threads=threads)
    shutil.rmtree(folder)

"""A deployment for a broker that runs in the test's own process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from engine.config import Deployment
from tests.engine.test_broker import deploy


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    folder = tempfile.mkdtemp(prefix="sl-", dir="/tmp")  # short: an ipc path holds about 100 bytes
    yield deploy(folder)
    shutil.rmtree(folder)

"""Makes the harness importable; the fixtures that hold deployments stand in the modules that use them."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

sys.path.insert(0, str(Path(__file__).parent))

from harness import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a short path."""
    with short_folder() as made:
        yield made


@pytest.fixture
def browser() -> Iterator[Chrome]:
    """A browser of its own for every test: it starts and ends processes as it likes while it runs."""
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    assert binary, "a browser is needed (Debian: apt-get install chromium chromium-driver)"
    assert driver, "chromedriver is needed (Debian: apt-get install chromium chromium-driver)"
    profile = Path(tempfile.mkdtemp(prefix="sl-browser-"))
    options = ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
        "--window-size=1280,1600", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()
        shutil.rmtree(profile, ignore_errors=True)

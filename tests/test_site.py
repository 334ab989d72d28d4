"""The site made of the pages: it builds, whole, with links that lead somewhere and nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.unmeasured

ROOT: Final = Path(__file__).parents[1]


def build(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


class Fetched(HTMLParser):
    """What a browser fetches to show a page, and what the page links to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source"):
            self.fetched.append(said.get("src", ""))
        elif tag == "link" and said.get("rel") != "canonical":
            self.fetched.append(said.get("href", ""))
        elif tag == "a":
            self.links.append(said.get("href", ""))


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(tmp_path)  # strict: a link, an anchor or a page of the navigation that is missing fails it
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} < {page.stem for page in pages}
    examples = list((ROOT / "examples").glob("*/README.md"))
    assert len(list(tmp_path.glob("repository/examples/*/index.html"))) == len(examples)
    for page in pages:
        seen = Fetched(page)
        assert not [one for one in seen.fetched if "//" in one], page
        if page.name != "404.html":  # it does not know where it is shown
            inside = (link.partition("#")[0] for link in seen.links if not re.match("[a-z]+:", link))
            assert not [link for link in inside if link and not (page.parent / link).exists()], page

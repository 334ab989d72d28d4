"""The README is true: its service runs as written, and what it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import deployed, write_service

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]


def block(page: str, language: str) -> str:
    """The first code block in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert found, f"no {language} in the README"
    return found[1]


def test_the_service_of_the_readme_runs_as_written(folder: Path) -> None:
    page = (ROOT / "README.md").read_text()
    file = write_service(folder, block(page, "toml"), block(page, "python"))
    with deployed(file) as running, running.client() as client:
        assert client.post("/inference", content=b'{"x": 3}').text == "9"
        refused = client.post("/inference", json={"x": "three"})
        assert (refused.status_code, refused.text) == (422, "request validation error: x is not a number")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_two_commands_stand_at_the_top() -> None:
    top = (ROOT / "README.md").read_text().split("\n## ")[0]
    for script in ("scripts/up", "scripts/test"):
        assert script in top
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} can be run"

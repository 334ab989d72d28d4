"""What mkdocs needs beside docs/: the README as the first page, the examples with their files, and links among them.

Pages link as files of the repository do, so that they can be read there as well: `../examples/echo/README.md`. In the
site the repository's top is the first page's folder, and what lies elsewhere than docs/ lies below `repository/`. A
link to a file brings that file along; one to a folder leads to its README, or stays text where it has none.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

ROOT: Final = Path(__file__).resolve().parents[1]
LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE: Final = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)


def place(path: str) -> str:
    """Where a file of the repository lies in the site's sources."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def home(src_uri: str) -> str:
    """The inverse."""
    if src_uri == "index.md":
        return "README.md"
    return src_uri.removeprefix("repository/") if src_uri.startswith("repository/") else f"docs/{src_uri}"


def linked(text: str) -> list[str]:
    """What a page links to, outside its blocks of code."""
    return [found[3] for part in FENCE.split(text) if not part.startswith("```") for found in LINK.finditer(part)]


def target(path: str, link: str) -> str | None:
    """The file that a link of the page at ``path`` means; None: it is none of the repository, or a mere folder."""
    if re.match(r"[a-z]+:|#|/", link):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), link.partition("#")[0]))
    if (ROOT / found).is_dir():
        found = posixpath.normpath(posixpath.join(found, "README.md"))
    return found if (ROOT / found).is_file() and not found.startswith("..") else None


def on_config(config: Any) -> Any:
    """All the examples in the navigation. ``Any``: mkdocs' configuration is a mapping of all sorts."""
    pages = [place(str(page.relative_to(ROOT))) for page in sorted((ROOT / "examples").glob("*/README.md"))]
    config.nav.insert(1, {"Examples": ["examples.md", *({Path(page).parent.name: page} for page in pages)]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """README, examples and whatever they and docs/ link to. ``Any``: see above."""
    waiting = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
    waiting += [str(page.relative_to(ROOT)) for page in sorted((ROOT / "examples").glob("*/README.md"))]
    known = set()
    while waiting:
        path = waiting.pop()
        if path in known:
            continue
        known.add(path)
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += filter(None, (target(path, link) for link in linked((ROOT / path).read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Links as they have to be in the site. ``Any``: of mkdocs."""
    own = page.file.src_uri

    def changed(found: re.Match[str]) -> str:
        picture, text, link = found.groups()
        meant = target(home(own), link)
        if meant is None:
            is_folder = not re.match(r"[a-z]+:|#|/", link) and (ROOT / Path(home(own)).parent / link).is_dir()
            return text if is_folder else found[0]  # what leads nowhere is left for mkdocs to refuse
        anchor = "#" + link.partition("#")[2] if "#" in link else ""
        return f"{picture}[{text}]({posixpath.relpath(place(meant), posixpath.dirname(own) or '.')}{anchor})"

    return "".join(part if part.startswith("```") else LINK.sub(changed, part) for part in FENCE.split(markdown))

"""Which files of a deployment have changed since the last look."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, cast

import pytest

from engine.core.edits import SETTLE_S
from engine.core.processes import Replace
from engine.supervisor.changes import Changes
from engine.supervisor.development import Development
from engine.supervisor.sources import Sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for name in ("stages.toml", "service.py", "words.txt", "model/net.py", "model/__init__.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


@pytest.fixture
def sources(folder: Path) -> Sources:
    return Sources(folder / "stages.toml")


def test_nothing_has_changed_at_first(sources: Sources) -> None:
    assert sources.look() == set()


def test_the_file_and_the_modules_beside_it_are_looked_at(sources: Sources, folder: Path) -> None:
    for name in ("stages.toml", "service.py", "words.txt", "model/net.py"):
        (folder / name).write_text("changed\n")
    (folder / "new.py").write_text("\n")
    assert sources.look() == {"stages.toml", "service.py", "new.py"}
    assert sources.look() == set()


def test_what_is_imported_is_looked_at_from_then_on_and_so_is_what_lies_beside_it(
    sources: Sources, folder: Path
) -> None:
    sources.add(["model/net.py"])
    assert sources.look() == set()
    (folder / "model" / "net.py").write_text("changed\n")
    (folder / "model" / "more.py").write_text("\n")
    assert sources.look() == {"model/net.py", "model/more.py"}
    (folder / "service.py").write_text("changed before somebody says so\n")
    sources.add(["service.py"])
    assert sources.look() == {"service.py"}


def test_a_file_that_is_saved_as_it_was_has_not_changed(sources: Sources, folder: Path) -> None:
    path = folder / "service.py"
    os.utime(path, (1, 1))
    assert sources.look() == set()
    other = folder / "other"
    other.write_bytes(path.read_bytes())
    other.replace(path)
    assert sources.look() == set()


def test_the_same_size_within_the_same_second_is_seen(sources: Sources, folder: Path) -> None:
    path = folder / "service.py"
    about = path.stat()
    path.write_text(path.read_text().upper())
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1000))
    assert sources.look() == {"service.py"}


def test_a_file_that_goes_and_one_that_comes_back(sources: Sources, folder: Path) -> None:
    path = folder / "service.py"
    text = path.read_bytes()
    path.unlink()
    assert sources.look() == {"service.py"}
    assert sources.look() == set()
    path.write_bytes(text)
    assert sources.look() == {"service.py"}


def test_a_folder_that_goes_is_survived(sources: Sources, folder: Path) -> None:
    sources.add(["model/net.py"])
    for path in (folder / "model").iterdir():
        path.unlink()
    (folder / "model").rmdir()
    assert sources.look() == {"model/net.py", "model/__init__.py"}


class Renewing:
    """Changes that replace whatever is asked for."""

    is_changing = False

    def renew(self, stages: frozenset[str], what: str) -> Replace:
        return Replace((), what, renew=stages)


@pytest.mark.parametrize(("stopping", "said"), [(True, []), (False, ["service.py changed, and is not served: why"])])
def test_an_edit_that_the_end_overtakes_is_no_failure(
    stopping: bool,
    said: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock: list[float] = [0.0]
    monkeypatch.setattr("engine.supervisor.development.now", lambda: clock[0])
    development = Development(folder / "stages.toml")
    development.imported("first", ["service.py"])
    (folder / "service.py").write_text("changed\n")
    changes = cast(Changes, cast(Any, Renewing()))
    assert development.look(changes, serving=True) is None
    clock[0] += 2 * SETTLE_S
    assert development.look(changes, serving=True) is not None
    with caplog.at_level(logging.INFO):
        development.over("why", stopping=stopping)
    assert not development.is_under_way
    assert [record.getMessage() for record in caplog.records] == said

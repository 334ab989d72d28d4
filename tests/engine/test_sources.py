"""Which files of a deployment have changed since the last look."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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

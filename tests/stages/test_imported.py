"""Which files a worker says that it has imported."""

from __future__ import annotations

import json
import select
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from engine.process import SOURCES_VARIABLE
from stages.runtime.imported import LINE_BYTES, Imported, _files


class Told:
    """In a Notifier's place."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.takes = True

    def send(self, event: str, **fields: list[str]) -> bool:
        assert event == "imported"
        if self.takes:
            self.lines.append(fields["files"])
        return self.takes


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def imported(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Imported:
    monkeypatch.setenv(SOURCES_VARIABLE, str(tmp_path))
    return Imported(told)  # type: ignore[arg-type]


def module(monkeypatch: pytest.MonkeyPatch, name: str, file: Path | str | None) -> None:
    made = ModuleType(name)
    made.__file__ = None if file is None else str(file)
    monkeypatch.setitem(sys.modules, name, made)


def test_files_below_the_folder_are_told_once(
    imported: Imported, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(monkeypatch, "mine_one", tmp_path / "service.py")
    module(monkeypatch, "mine_two", tmp_path / "model" / "net.py")
    module(monkeypatch, "mine_native", tmp_path / "fast.so")
    module(monkeypatch, "mine_none", None)
    module(monkeypatch, "theirs_one", tmp_path / ".venv" / "lib" / "x.py")
    module(monkeypatch, "theirs_two", tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "x.py")
    module(monkeypatch, "theirs_three", f"{tmp_path}-other/x.py")
    imported()
    imported()
    assert told.lines == [["model/net.py", "service.py"]]
    module(monkeypatch, "mine_late", tmp_path / "late.py")
    imported()
    assert told.lines[1:] == [["late.py"]]


def test_what_could_not_be_told_is_told_later(
    imported: Imported, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.takes = False
    module(monkeypatch, "mine_one", tmp_path / "service.py")
    imported()
    told.takes = True
    imported()
    assert told.lines == [["service.py"]]


def test_no_line_is_longer_than_what_a_pipe_takes_at_once(
    imported: Imported, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{'größer' * 10}-{number:03}.py" for number in range(200)]
    for number, name in enumerate(names):
        module(monkeypatch, f"mine_{number}", tmp_path / name)
    module(monkeypatch, "mine_long", tmp_path / f"z/{'x' * 4000}.py")
    imported()
    assert sorted(name for line in told.lines for name in line) == sorted([*names, f"z/{'x' * 4000}.py"])
    assert all(len(json.dumps(line)) <= select.PIPE_BUF - 100 for line in told.lines if len(line) > 1)
    assert LINE_BYTES < select.PIPE_BUF


def test_a_module_that_failed_is_told_by_its_traceback(
    imported: Imported, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_one.py").write_text("import failing_two\n")
    (tmp_path / "failing_two.py").write_text("def broken(:\n")
    with pytest.raises(SyntaxError) as caught:
        __import__("failing_one")
    imported.failed(caught.value)
    assert sorted(name for line in told.lines for name in line) == ["failing_one.py", "failing_two.py"]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_error_that_comes_from_itself_has_an_end(
    imported: Imported, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"circular_{length}.py").write_text("raise ValueError('mine')\n")
    with pytest.raises(ValueError, match="mine") as caught:
        __import__(f"circular_{length}")
    errors = [caught.value, *(ValueError(number) for number in range(1, length))]
    for error, cause in zip(errors, [*errors[1:], errors[0]], strict=True):
        error.__cause__ = cause
    assert len(list(islice(_files(caught.value), 100))) < 100
    imported.failed(caught.value)
    assert told.lines == [[f"circular_{length}.py"]]


def test_modules_that_load_when_they_are_asked_are_not_asked(
    imported: Imported, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy(ModuleType):
        def __getattribute__(self, name: str) -> object:
            raise RuntimeError("it cannot be loaded")

    class Slim:
        __slots__ = ()

    lazy = Lazy("mine_lazy")
    ModuleType.__setattr__(lazy, "__file__", str(tmp_path / "lazy.py"))
    monkeypatch.setitem(sys.modules, "mine_lazy", lazy)
    monkeypatch.setitem(sys.modules, "mine_slim", Slim())  # type: ignore[arg-type]
    module(monkeypatch, "mine_one", tmp_path / "service.py")
    imported()
    assert told.lines == [["lazy.py", "service.py"]]


def test_where_nobody_asks_nothing_is_told(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SOURCES_VARIABLE, raising=False)
    quiet = Imported(told)  # type: ignore[arg-type]
    quiet()
    quiet.failed(ValueError())
    assert told.lines == []

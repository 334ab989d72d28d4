"""A mistake in user code is told from the user's own line on, and telling it never fails."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import EncodingError, StartError
from engine.loader import load_class
from stages import blame, plainjson
from stages.build import create

CODE = """
from engine import Worker

def helper():
    raise KeyError("weights")

class Init(Worker):
    def __init__(self):
        try:
            helper()
        except KeyError as error:
            raise RuntimeError("no such model") from error

    def forward(self, data):
        return data

class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("not even this")

class Mute(Init):
    def __init__(self):
        raise Unspeakable

class Quits(Init):
    def __init__(self):
        import sys
        sys.exit("licence file missing")

class Base(BaseException):
    pass

class Panics(Init):
    def __init__(self):
        raise Base("panic")
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    name = f"blamed_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CODE)
    before = list(sys.path)
    yield name
    sys.path[:] = before
    sys.modules.pop(name, None)


def raised(call: Callable[[], object]) -> BaseException:
    """What it raises, as if it had been caught in a module of ours and not in this one."""
    with pytest.raises(BaseException) as caught:
        call()
    error, trace = caught.value, caught.tb
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return error.with_traceback(trace)


def failure(folder: Path, module: str, cls: str) -> BaseException:
    return raised(
        lambda: create(
            load_class(f"{module}:{cls}", folder), stage="s", worker_id=1, max_batch_size=1, device="cpu", args={}
        )
    )


def files(trace: str) -> list[str]:
    return [line.split('"')[1] for line in trace.splitlines() if line.startswith('  File "')]


def test_the_traceback_begins_at_the_users_line_also_of_its_causes(tmp_path: Path, module: str) -> None:
    error = failure(tmp_path, module, "Init")
    trace = blame.traceback(error)
    assert {Path(file).name for file in files(trace)} == {f"{module}.py"}
    assert trace.count("Traceback (most recent call last)") == 2
    assert blame.line(error) == f"RuntimeError: no such model ({module}.py, line 12)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\ndef broken(:\n", "SyntaxError: invalid syntax ({0}, line 2)"),
        (
            "import a_package_that_nobody_has\n",
            "ModuleNotFoundError: No module named 'a_package_that_nobody_has'; is it",
        ),
        ("  x = 1\n", "IndentationError: unexpected indent ({0}, line 1)"),
        ("1 / 0\n", "ZeroDivisionError: division by zero ({0}, line 1)"),
    ],
)
def test_a_module_that_cannot_be_imported(tmp_path: Path, module: str, text: str, line: str) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    importlib.invalidate_caches()
    error = failure(tmp_path, module, "Init")
    assert blame.line(error).startswith(line.format(f"{module}.py"))
    assert {Path(file).name for file in files(blame.traceback(error))} == {f"{module}.py"}


def test_an_error_that_cannot_be_shown_is_told_all_the_same(tmp_path: Path, module: str) -> None:
    error = failure(tmp_path, module, "Mute")
    assert "Unspeakable: its text cannot be shown" in blame.line(error)
    assert files(blame.traceback(error))


def test_an_exit_of_user_code_keeps_its_words(tmp_path: Path, module: str) -> None:
    assert "sys.exit('licence file missing')" in blame.line(failure(tmp_path, module, "Quits"))


def test_what_is_no_exception_is_told_like_one(tmp_path: Path, module: str) -> None:
    assert blame.line(failure(tmp_path, module, "Panics")).startswith("Base: panic (")


@pytest.mark.parametrize("error", [StartError("a sentence"), StartError("two\nlines")])
def test_a_sentence_of_ours_needs_no_traceback(error: StartError) -> None:
    assert blame.line(error) == " ".join(str(error).split())
    assert blame.traceback(error) == ""


def test_an_error_of_ours_about_a_value_needs_no_traceback() -> None:
    error = raised(lambda: plainjson.encode({"x": object()}))
    assert isinstance(error, EncodingError)
    assert blame.traceback(error) == ""
    assert "type object" in blame.line(error)


def test_a_fault_of_ours_is_shown_whole() -> None:
    error = raised(lambda: plainjson.decode(None))  # type: ignore[arg-type]
    assert isinstance(error, TypeError)
    assert {Path(file).name for file in files(blame.traceback(error))} >= {"plainjson.py"}

"""gunicorn's private names: the table of them is complete, true of what is installed, and looked at before a start."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import logging
import os
from pathlib import Path
from typing import Final

import gunicorn
import pytest
from fakes import deployment

from engine.config.schema import FrontendSection
from engine.errors import StartError
from engine.exitcodes import ExitCode
from engine.process import Notifier
from frontend import serve
from frontend.serving import names
from frontend.serving.names import Name

ROOT: Final = Path(__file__).parents[2]
FILES: Final = {path.stem: path for path in sorted((ROOT / "frontend/serving").glob("*.py"))}
OURS: Final = ("application", "master", "process", "connection")  # the modules whose classes derive from gunicorn's

# What gunicorn documents for whoever embeds it, and what asyncio documents of a protocol: no business of the table.
PROMISED: Final = {"load", "load_config", "run", "info", "connection_made", "connection_lost", "data_received",
                   "eof_received"}  # fmt: skip


def test_what_is_installed_has_every_name() -> None:
    names.check()
    assert names.missing() == []


def test_the_version_that_was_checked_is_the_one_that_is_required() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (required,) = (
        line for line in setup["options"]["install_requires"].splitlines() if line.partition(">")[0] == "gunicorn"
    )
    major, minor = names.CHECKED
    assert required == f"gunicorn>={major}.{minor},<{major}.{minor + 1}"


DOCUMENTED: Final = {"_exit", "_replace"}  # of os, and of a namedtuple: names that only look private

GONE: Final = Name("gunicorn.asgi.protocol:ASGIProtocol", "_no_such", "connection", "closes a connection")


@pytest.mark.parametrize(
    "gone",
    [
        GONE,
        Name("gunicorn.asgi.protocol:NoSuchClass", "_closed", "connection", "closes a connection"),
        Name("gunicorn.no_such_module:Thing", "_closed", "connection", "closes a connection"),
        Name("gunicorn.asgi.parser", "NoSuchError", "connection", "closes a connection"),
    ],
)
def test_a_name_that_is_missing_is_told_with_the_version(gone: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "NAMES", (*names.NAMES, gone))
    with pytest.raises(StartError) as told:
        names.check()
    assert f"gunicorn {gunicorn.__version__} is installed and has no {gone}" in str(told.value)
    assert "closes a connection" in str(told.value)
    assert 'pip install "gunicorn>=27.0,<27.1"' in str(told.value)


def test_another_minor_version_with_all_names_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gunicorn, "version_info", (27, 9, 0))
    monkeypatch.setattr(gunicorn, "__version__", "27.9.0")
    with caplog.at_level(logging.WARNING, "stageline.frontend"):
        names.check()
    assert "gunicorn 27.9.0 is installed" in caplog.text


def test_a_frontend_does_not_start_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "NAMES", (GONE,))
    reading, writing = os.pipe()
    try:
        code = serve.serve(deployment(FrontendSection(port=0)), Notifier(writing))
        told = json.loads(os.read(reading, 65536))
    finally:
        os.close(reading)
        os.close(writing)
    assert code == ExitCode.START
    assert told["event"] == "failed"
    assert "_no_such" in told["reason"]


# --- the table is complete -------------------------------------------------------------------------------------------


def derived() -> list[tuple[str, type, type]]:
    """The classes of ours that derive from one of gunicorn's: module, class, and the base."""
    found = []
    for module in OURS:
        for cls in vars(importlib.import_module(f"frontend.serving.{module}")).values():
            if isinstance(cls, type) and cls.__module__ == f"frontend.serving.{module}":
                found += [(module, cls, base) for base in cls.__bases__ if base.__module__.startswith("gunicorn")]
    return found


def test_there_is_something_to_look_at() -> None:
    assert {cls.__name__ for _, cls, _ in derived()} == {
        "Application",
        "Connection",
        "Log",
        "Master",
        "Parser",
        "Worker",
    }


def listed(module: str) -> set[str]:
    return {name.name for name in names.NAMES if name.used == module}


@pytest.mark.parametrize(("module", "cls", "base"), derived())
def test_what_overrides_something_of_gunicorns_stands_in_the_table(module: str, cls: type, base: type) -> None:
    overriding = {name for name in vars(cls) if not name.startswith("__") and hasattr(base, name)}
    assert overriding <= listed(module) | PROMISED


@pytest.mark.parametrize("module", OURS)
def test_what_is_used_with_an_underscore_stands_in_the_table(module: str) -> None:
    """Every attribute that begins so is one of our own, made in that file, or listed for it."""
    tree = ast.parse(FILES[module].read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            own |= {target.id for line in node.body if isinstance(line, ast.Assign) for target in line.targets
                    if isinstance(target, ast.Name)}  # fmt: skip
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(node.name)
            if node.name == "__init__":
                own |= {target.attr for target in ast.walk(node) if isinstance(target, ast.Attribute)}
    theirs = {name.name for name in names.NAMES}
    assert used - (own - theirs) - DOCUMENTED <= listed(module)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("name", names.NAMES, ids=str)
def test_nothing_stands_in_the_table_that_is_not_used(name: Name) -> None:
    assert name.why
    assert name.name in FILES[name.used].read_text()

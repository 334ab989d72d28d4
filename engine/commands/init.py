"""``engine init``: a service to start from, which runs at once."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Final

from engine.commands.command import Plain
from engine.errors import StartError
from engine.exitcodes import ExitCode

TEMPLATES: Final = Path(__file__).parents[1] / "templates"
KINDS: Final = ("text", "image", "embedding", "streaming")  # the first needs nothing installed
DOCKERFILE: Final = "Dockerfile"


def init(options: argparse.Namespace) -> int:
    folder = Path(options.folder)
    files = files_of(options.kind)
    there = sorted(name for name in [*files, DOCKERFILE] if (folder / name).exists())
    if there:
        raise StartError(f"nothing was written: {folder.resolve()} has {', '.join(there)} already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in files.items():
            with (folder / name).open("xb") as file:
                file.write(source.read_bytes())
        with (folder / DOCKERFILE).open("x", encoding="utf-8") as file:
            file.write(_dockerfile(folder))
    except OSError as error:
        raise StartError(f"cannot write to {folder}: {error}") from error
    print(_told(options, folder, [*files, DOCKERFILE]))
    return ExitCode.OK


def files_of(kind: str) -> dict[str, Path]:
    """What is written, by the names it gets, but for the Dockerfile, which tells this version."""
    own = {path.name: path for path in sorted((TEMPLATES / kind).iterdir()) if path.is_file()}
    return {**own, ".dockerignore": TEMPLATES / "common" / "dockerignore"}


def _dockerfile(folder: Path) -> str:
    from engine import render
    from engine.commands.version import installed
    from engine.config import load

    return render.TARGETS["dockerfile"](load(folder, environ={}), render.About(version=installed() or ""))


def _told(options: argparse.Namespace, folder: Path, files: list[str]) -> str:
    from engine.supervisor.address import command_here

    engine = command_here(absolute=True)
    python = "python" if engine == "engine" else sys.executable
    steps = [f"{engine} check --strict", f"{engine} up --reload"]
    if any(not line.startswith("#") for line in (folder / "requirements.txt").read_text().splitlines()):
        steps.insert(0, f"{python} -m pip install -r requirements.txt")
    beside = [f"{python} client.py", f"{python} -m pytest"]
    if importlib.util.find_spec("pytest") is None:
        beside.insert(1, f"{python} -m pip install pytest")
    if folder.resolve() != Path.cwd():
        for terminal in (steps, beside):
            terminal.insert(0, f"cd {shlex.quote(str(folder))}")
    return "\n".join(
        [
            f"{options.kind} service in {folder.resolve()}: {', '.join(files)}",
            "next:",
            *(f"  {step}" for step in steps),
            "and in another terminal:",
            *(f"  {step}" for step in beside),
        ]
    )


def _arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", metavar="FOLDER", nargs="?", default=".", help="made where it is not there; default: .")
    sub.add_argument("--kind", choices=KINDS, default=KINDS[0], help=f"what it serves; default: {KINDS[0]}")


INIT: Final = Plain(
    "init",
    "write a service to start from, with a test, a client and a Dockerfile",
    init,
    "engine init spam\nengine init vectors --kind embedding",
    _arguments,
)

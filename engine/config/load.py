"""Files: a ``stages.toml`` or a snapshot read into a :class:`Deployment`, and the snapshot written.

A snapshot is the deployment as JSON, in the structure of the file, with everything resolved. The supervisor
writes one for its children, so that all processes of a deployment agree even when the file, the flags or
the environment have changed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from engine.config.build import build, default_run_dir, name_from, rebuild
from engine.config.mistakes import is_python, not_toml, numbered
from engine.config.schema import CELLS_MOST, Deployment
from engine.config.ways import plain
from engine.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME: Final = "stages.toml"
SNAPSHOT: Final = "deployment.json"  # in a run directory
NEXT: Final = "next.json"  # what the deployment shall be, while it is being changed
SHOWN: Final = 5  # files that could be meant

_NO_FLAGS: Final[Mapping[str, str]] = {}


def load(
    path: str | os.PathLike[str],
    *,
    flags: Mapping[str, str] = _NO_FLAGS,
    environ: Mapping[str, str] = os.environ,
) -> Deployment:
    """The deployment that a file describes; a folder stands for the ``stages.toml`` in it.

    ``flags`` (key name -> text) override ``environ`` (``ENGINE_...``), which overrides the file. A path
    that ends in ``.json`` is a snapshot: it is complete, so the environment is not looked at and flags are
    refused. Raises ConfigError with every problem found, each on a line that names file, key and what was
    expected.
    """
    path = Path(path)
    if path.is_dir():
        path /= FILE_NAME
    label = str(path)
    if path.is_file() and (told := is_python(path, label)):
        raise ConfigError([told])
    text = _read(path, label)
    if path.suffix == ".json":
        if flags:
            raise ConfigError([f"{label}: a snapshot cannot be changed by flags; give the {FILE_NAME} instead"])
        return _load_snapshot(text, label)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([not_toml(path, label, text, str(error))]) from None
    try:
        return build(data, file=Path(os.path.abspath(path)), label=label, flags=flags, environ=environ)
    except ConfigError as error:
        raise ConfigError(numbered(error.problems, label, text)) from None


def dump(deployment: Deployment) -> bytes:
    """The snapshot of a deployment; :func:`load` gives back an equal one."""
    data = {
        "file": str(deployment.file),
        "argv": deployment.argv,
        "path": deployment.path,
        "grown": deployment.grown,
        "engine": asdict(deployment.engine),
        "frontend": asdict(deployment.frontend),
        "stage": [asdict(stage) for stage in deployment.stages],
        "route": [{**asdict(route), "stages": plain(route.stages)} for route in deployment.routes],
        "client": [asdict(client) for client in deployment.clients],
        "endpoint": [asdict(endpoint) for endpoint in deployment.endpoints],
    }
    return json.dumps(data, indent=1).encode() + b"\n"


def later(file: str | os.PathLike[str]) -> Path:
    """What a process reads later that was started with this file: of one that described what the deployment was to be,
    what it is."""
    path = Path(file)
    return path.with_name(SNAPSHOT) if path.name == NEXT else path


def as_it_runs(deployment: Deployment) -> Deployment:
    """The deployment of a file with as many brokers as it has by now, where it runs on this machine."""
    if not deployment.engine.may_grow:
        return deployment
    try:
        found = load(run_dir(deployment) / SNAPSHOT)
    except ConfigError:  # nothing runs, or one by hand
        return deployment
    return replace(deployment, grown=found.grown)


def run_dir(deployment: Deployment) -> Path:
    """The run directory of a deployment. Only the path: the supervisor makes the folder, private, on start."""
    engine = deployment.engine
    name = engine.name or name_from(deployment.file.parent.name)
    return Path(engine.run_dir or default_run_dir(name, os.environ))


def _read(path: Path, label: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors of Windows begin a file with a mark
    except FileNotFoundError:
        expected = f"no such file; expected a {FILE_NAME}, or a folder that holds one{_beside(path)}"
        raise ConfigError([f"{label}: {expected}"]) from None
    except OSError as error:
        raise ConfigError([f"{label}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{label}: expected UTF-8 text; byte {error.start} is not"]) from None


def _beside(path: Path) -> str:
    """What lies where a file was looked for and could be meant."""
    try:
        names = sorted(item.name for item in path.parent.iterdir() if item.suffix == ".toml" and item.is_file())
        folders = sorted(item.parent.name for item in path.parent.glob(f"*/{FILE_NAME}"))
    except OSError:  # no such folder, or none that may be read
        return ""
    names = [name for name in names if name != "pyproject.toml"] + folders
    where = "this folder" if path.parent == Path() else path.parent
    return f"; in {where} there is {', '.join(names[:SHOWN])}" if names else ""


def _load_snapshot(text: str, label: str) -> Deployment:
    try:
        data: Any = json.loads(text)  # whatever JSON holds: checked key by key below
    except ValueError as error:
        raise ConfigError([f"{label}: expected JSON: {error}"]) from None
    file = data.pop("file", None) if isinstance(data, dict) else None
    if not isinstance(file, str) or not os.path.isabs(file):
        raise ConfigError([f"{label}: file: expected the absolute path of the file this is a snapshot of"])
    argv, path = (_texts(data.pop(name, []), label, name) for name in ("argv", "path"))
    grown = data.pop("grown", 0)
    if type(grown) is not int or not 0 <= grown <= CELLS_MOST:
        raise ConfigError([f"{label}: grown: expected an integer from 0 to {CELLS_MOST}"])
    return replace(rebuild(data, file=Path(file), label=label), argv=argv, path=path, grown=grown)


def _texts(value: object, label: str, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError([f"{label}: {name}: expected a list of strings"])
    return tuple(value)

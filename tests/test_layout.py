"""The shape of the code: which module may import which, what stays light, and what lies at the top.

Imports go one way, from the command line down to the errors. The rule is read from the source, so that an import inside
a function counts too: it breaks a layer as surely as one at the top.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("engine", "frontend", "stages")

# From the lowest layer up. A module belongs to the first prefix that fits; it may import its own layer and lower ones.
LAYERS: Final = (
    ("errors", ("engine.errors", "engine.exitcodes", "engine.names")),
    ("core", ("engine.core",)),
    ("config, metrics", (
        "engine.config", "engine.metrics", "engine.metrictext", "engine.clock", "engine.log", "engine.loader",
        "engine.simulation", "engine.sink", "engine.specs",
    )),
    ("client, transport", (
        "engine.addresses", "engine.apikeyfile", "engine.cells", "engine.client", "engine.joined", "engine.curve",
        "engine.keyfile",
        "engine.transport", "engine.unix", "engine.memory", "engine.cgroups", "engine.cpus", "engine.descriptors",
        "engine.handles", "engine.nearby", "engine.oom", "engine.proc",
        "engine.process", "engine.titles", "engine.signals", "engine.mailbox", "engine.tracing", "engine.admin",
        "engine.usage",
    )),
    ("frontend | stages | engine.broker", ("frontend", "stages", "engine.broker")),
    ("supervisor", ("engine.supervisor",)),
    ("cli", (
        "engine.cli", "engine.commands", "engine.bench", "engine.doctor", "engine.bootstrap", "engine.planning",
        "engine.server", "engine.status", "engine.mixin", "engine.onray", "engine.ports", "engine.render", "engine.why",
        "engine.graph", "engine.logs", "engine.top", "engine.worker", "engine.runtime", "engine.templates",
        "engine.testing", "engine.__main__",
    )),
)  # fmt: skip

# Within their layer these know nothing of each other; they meet in the broker's sockets only.
STRANGERS: Final = ("frontend", "stages", "engine.broker")

# `engine` itself and its Python API re-export from above by name, lazily: nothing is imported until it is asked for.
FACADES: Final = ("engine",)

ZMQ_USERS: Final = (
    "engine.transport",
    "engine.curve",
)  # sockets' options, their types and their quirks are known in one module

# gunicorn's private names are relied upon, and change: they are known in one folder, which has them in a table.
GUNICORN_USER: Final = "frontend.serving"

# The pure parts do not wait, look at a clock, or touch the system.
PURE: Final = ("engine.core", "engine.simulation", "engine.specs")
IMPURE: Final = frozenset(
    ("asyncio", "multiprocessing", "os", "select", "selectors", "socket", "subprocess", "threading", "time", "zmq")
)  # fmt: skip

WALL_CLOCK: Final = re.compile(
    r"\btime\.(?:time|time_ns|localtime|gmtime)\(|\b(?:datetime|date)\.(?:now|utcnow|today)\(|from time import .*\btime"
)

# They show when something was, to be found in other logs or in traces, or look at when a certificate ends.
WALL_CLOCK_READERS: Final = (
    "engine.why",
    "frontend.accesslog",
    "frontend.jobs.runner",
    "engine.doctor.place",
    "engine.tracing",
)

HEAVY: Final = (
    "zmq", "falcon", "gunicorn", "torch", "numpy", "uvloop", "prometheus_client", "opentelemetry",
)  # fmt: skip
LIGHT: Final = ("engine", "engine.cli", "engine.config", "engine.supervisor", "engine.server", "engine.loader")

TOP: Final = {
    ".ci", "LICENSE", "README.md", "docs", "engine", "examples", "frontend", "mkdocs.yml", "pyproject.toml", "scripts",
    "setup.cfg", "stages", "tests", ".gitignore",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


MODULES: Final = dict(modules())


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports, anywhere in it; imports for the type checker alone do not count."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            # `from engine.core import messages` names a module; `from engine.clock import now` does not
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def layer(module: str) -> int | None:
    for height, (_, prefixes) in enumerate(LAYERS):
        if any(within(module, prefix) for prefix in prefixes):
            return height
    return None


@pytest.mark.parametrize("module", [name for name in MODULES if name not in FACADES])
def test_imports_go_one_way(module: str) -> None:
    height = layer(module)
    assert height is not None, f"{module} has no layer: add it to LAYERS"
    for imported in imports(module):
        if imported.partition(".")[0] not in PACKAGES or imported in FACADES:
            continue
        below = layer(imported)
        assert below is not None, f"{imported} has no layer: add it to LAYERS"
        assert below <= height, f"{module} ({LAYERS[height][0]}) imports {imported} ({LAYERS[below][0]})"


@pytest.mark.parametrize("module", [name for name in MODULES if any(within(name, own) for own in STRANGERS)])
def test_the_processes_know_nothing_of_each_other(module: str) -> None:
    own = next(prefix for prefix in STRANGERS if within(module, prefix))
    for imported in imports(module):
        others = [prefix for prefix in STRANGERS if prefix != own and within(imported, prefix)]
        assert not others, f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if any(within(name, part) for part in PURE)])
def test_the_core_is_pure(module: str) -> None:
    impure = {imported for imported in imports(module) if imported.partition(".")[0] in IMPURE}
    assert not impure


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "engine.simulation")])
def test_the_simulator_knows_the_rules_and_nothing_else_of_ours(module: str) -> None:
    """And none of its own: what decides is looked for in one place."""
    ours = {name for name in imports(module) if name.partition(".")[0] in PACKAGES}
    assert all(within(name, "engine.core") or within(name, "engine.simulation") for name in ours)


@pytest.mark.parametrize("module", MODULES)
def test_time_is_what_passes_and_not_what_clocks_show(module: str) -> None:
    """Clocks are set, by hours and while requests wait; the log alone says what they show, and WALL_CLOCK_READERS."""
    read = WALL_CLOCK.findall(MODULES[module].read_text())
    assert not read or module in WALL_CLOCK_READERS, f"{module} reads the clock on the wall"


def test_errors_import_nothing_of_ours() -> None:
    for module in LAYERS[0][1]:
        assert not [name for name in imports(module) if name.partition(".")[0] in PACKAGES]


@pytest.mark.parametrize("module", MODULES)
def test_zmq_is_known_to_one(module: str) -> None:
    if any(name.partition(".")[0] == "zmq" for name in imports(module)):
        assert module in ZMQ_USERS, f"{module} imports zmq"


@pytest.mark.parametrize("module", MODULES)
def test_gunicorn_is_known_in_one_folder(module: str) -> None:
    if any(name.partition(".")[0] == "gunicorn" for name in imports(module)):
        assert within(module, GUNICORN_USER), f"{module} imports gunicorn"


@pytest.mark.parametrize("module", LIGHT)
def test_what_starts_everything_is_light(module: str) -> None:
    """Also through others: each start of a process pays for what the command line imports at once."""
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[]"


def test_a_worker_of_the_user_needs_no_heavy_package() -> None:
    code = f"import sys; from engine import Worker; print([name for name in {HEAVY!r} if name in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[]"


def test_nothing_else_lies_at_the_top() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached"], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    if listed.returncode != 0:
        pytest.fail(f"git does not list the files: {listed.stderr}")
    assert {line.partition("/")[0] for line in listed.stdout.splitlines()} <= TOP


@pytest.mark.parametrize("module", MODULES)
def test_every_module_begins_with_its_reason(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text()))
    assert docstring
    assert len(docstring) > 20


@pytest.mark.parametrize("module", MODULES)
def test_programs_lie_in_files_called_so(module: str) -> None:
    """Who looks for what a process does first finds it by name."""
    made = [node.name for node in ast.parse(MODULES[module].read_text()).body if isinstance(node, ast.FunctionDef)]
    assert "serve" not in made or module.endswith(".serve")


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.stem == "__init__"])
def test_a_package_begins_with_its_map(package: str) -> None:
    """Every module of it stands there; what it does itself stands in one of them."""
    if package in FACADES:
        return
    path = MODULES[package]
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    for module in sorted(path.parent.glob("*.py")):
        if module.stem != "__init__":
            assert re.search(rf"\b{module.stem}\b", said), f"{package} does not mention {module.stem}"

"""docs/architecture.md says how a stage, a key, a metric and a message are added: here it is done, in a copy.

What the page calls one line is one line here. A copy that needs more than the page says fails, and then either the page
or the code is to be mended.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core import wire
from engine.core.messages import AnyMessage, Message, Ready, Submit

ROOT = Path(__file__).parents[1]


class Copy:
    """The source in a folder of its own, to be changed; what runs in it imports that and nothing of the original."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for package in ("engine", "frontend", "stages"):
            shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "docs").mkdir()
        shutil.copy(ROOT / "docs" / "reference.md", root / "docs")

    def insert(self, file: str, line: int, text: str) -> None:
        """Put ``text`` behind the line of this number (from 1)."""
        path = self.root / file
        lines = path.read_text().splitlines(keepends=True)
        lines.insert(line, text)
        path.write_text("".join(lines))

    def end_of_class(self, file: str, name: str) -> int:
        found = next(node for node in self.nodes(file) if isinstance(node, ast.ClassDef) and node.name == name)
        assert found.end_lineno is not None
        return found.end_lineno

    def start_of_list(self, file: str, function: str, variable: str) -> int:
        """The line on which the list begins that a function assigns to this variable."""
        inside = next(node for node in self.nodes(file) if isinstance(node, ast.FunctionDef) and node.name == function)
        return next(
            node.value.lineno
            for node in ast.walk(inside)
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.List)
            and any(isinstance(target, ast.Name) and target.id == variable for target in node.targets)
        )

    def nodes(self, file: str) -> list[ast.AST]:
        return list(ast.walk(ast.parse((self.root / file).read_text())))

    def run(self, *arguments: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ENGINE_")}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.root, env={**kept, "PYTHONPATH": str(self.root)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_a_stage_is_a_class_and_a_table(copy: Copy) -> None:
    lines = [
        "from engine import Worker",
        "class Twice(Worker):",
        "    example = 2",
        "    forward = lambda self, x: 2 * x",
    ]
    (copy.root / "service.py").write_text("\n".join(lines))
    (copy.root / "stages.toml").write_text('[[stage]]\nname = "twice"\nworker = "service:Twice"\n')
    assert "twice" in copy.run("-m", "engine.cli", "check", "stages.toml")


def test_a_key_is_one_line(copy: Copy) -> None:
    """Type, default, range and documentation: file, flag, variable and page follow."""
    line = '    patience: float = setting(7.0, "How long to be patient.", unit=Unit.SECONDS, least=1, flag=True)\n'
    copy.insert("engine/config/schema.py", copy.end_of_class("engine/config/schema.py", "EngineSection"), line)
    (copy.root / "stages.toml").write_text('[engine]\npatience = "9 s"\n[[stage]]\nname = "a"\nworker = "a:A"\n')
    code = "from engine.config import load\n"
    code += "print(load('stages.toml', environ={}).engine.patience)\n"
    code += "print(load('stages.toml', environ={'ENGINE_PATIENCE': '11'}).engine.patience)\n"
    code += "print(load('stages.toml', environ={'ENGINE_PATIENCE': '11'}, flags={'patience': '13'}).engine.patience)\n"
    assert copy.run("-c", code).split() == ["9.0", "11.0", "13.0"]
    assert "--patience" in copy.run("-m", "engine.cli", "up", "--help")
    copy.run("-m", "engine.config.reference")
    row = "| `patience` | How long to be patient. | `7` s |"
    assert row in (copy.root / "docs" / "reference.md").read_text()


def test_a_metric_is_a_count_and_its_name(copy: Copy) -> None:
    stats, report = "engine/core/stats.py", "engine/broker/report.py"
    copy.insert(stats, copy.end_of_class(stats, "StageStats"), "    yawns: int = 0\n")
    line = '        counter(f"{namespace}_yawns", "Times that a stage was bored.", [(here, stats.yawns)]),\n'
    copy.insert(report, copy.start_of_list(report, "stage_families", "own"), line)
    code = """
from engine.broker.report import stage_families
from engine.specs import stage_spec
from engine.config.schema import EngineSection, StageSection
from engine.core.routing import Route, Topology
from engine.core.stage import StageMachine
spec = stage_spec(StageSection(name="s", worker="s:S"), EngineSection())
machine = StageMachine(0, spec, Topology(("s",), (Route("/", (0,)),)), epoch=1)
machine.stats.yawns += 3
for family in stage_families(machine, (), 0.0, "engine").own:
    for sample in family.samples:
        print(sample.name, sample.labels, sample.value)
"""
    assert "engine_yawns_total {'stage': 's'} 3" in copy.run("-c", code)


def test_a_field_of_a_message_is_one_line_that_older_peers_pass_over(copy: Copy) -> None:
    file = "engine/core/messages.py"
    copy.insert(file, copy.end_of_class(file, "Ready"), '    greeting: str = "none"\n')
    old = Ready(worker=2, mime="text/plain")
    code = f"""
from engine.core import wire
from engine.core.messages import Ready
came, _ = wire.decode([bytes.fromhex({encoded(old)!r})])
print(came.mime, came.greeting)
print(wire.encode(Ready(worker=2, mime="text/plain", greeting="hello"))[0].hex())
"""
    first, new = copy.run("-c", code).splitlines()
    assert first == "text/plain none"
    assert decoded(new) == old


def test_a_column_of_a_message_is_one_line_and_older_peers_mean_its_default(copy: Copy) -> None:
    file = "engine/core/messages.py"
    line = "    weights: Annotated[list[int], column(7)] = []\n"
    copy.insert(file, copy.end_of_class(file, "Submit"), line)
    (old,) = wire.encode(Submit([1, 2], [0, 0], [9, 9], [b"", b""]), [b"a", b"b"])
    code = f"""
from engine.core import wire
came, _ = wire.decode([bytes.fromhex({bytes(old).hex()!r})])
print(came.weights)
came = wire.decode(wire.encode(type(came)([1], [0], [9], [b""], weights=[3]), [b"a"]))[0]
print(came.weights)
"""
    assert copy.run("-c", code).splitlines() == ["[7, 7]", "[3]"]


def test_a_message_is_a_class_that_joins_the_others(copy: Copy) -> None:
    file = "engine/core/messages.py"
    tags = {kind.__struct_config__.tag for kind in everyone()}
    tag = max(tag for tag in tags if isinstance(tag, int)) + 1
    copy.insert(
        file, copy.end_of_class(file, "Bye"), f"\n\nclass Wave(Message, frozen=True, tag={tag}):\n    hands: int\n"
    )
    path = copy.root / file
    before = path.read_text()
    path.write_text(before.replace("AnyMessage: TypeAlias = (", "AnyMessage: TypeAlias = (\n    Wave |"))
    assert path.read_text() != before
    code = "from engine.core import wire\nfrom engine.core.messages import Wave\n"
    code += "print(wire.decode(wire.encode(Wave(hands=2))))"
    assert copy.run("-c", code).strip() == "(Wave(hands=2), [])"


def everyone() -> list[type[Message]]:
    found: Any = AnyMessage  # a union at run time
    return list(found.__args__)


def encoded(message: Message) -> str:
    (frame,) = wire.encode(message)
    return bytes(frame).hex()


def decoded(frame: str) -> Message:
    message, _ = wire.decode([bytes.fromhex(frame)])
    return message


def test_every_field_behind_the_first_release_has_a_default() -> None:
    """What an older peer does not send must not be missed: behind a field with a default all have one."""
    for kind in everyone():
        defaults = [field.required for field in msgspec.structs.fields(kind)]
        assert defaults == sorted(defaults, reverse=True), kind

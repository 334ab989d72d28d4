"""Classes and functions as their source has them. Nothing is imported: what a module needs need not be installed."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Entry:
    """One name of a class or module: how it is written, and what is said of it."""

    name: str
    written: str
    doc: str


@lru_cache
def parsed(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    for node in parsed(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    raise LookupError(f"{module} has no {name}")


def members(node: ast.ClassDef) -> Iterator[Entry]:
    """What a class says in public, in its order. An attribute's docstring is the string behind it."""
    for at, item in enumerate(node.body):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            behind = node.body[at + 1] if at + 1 < len(node.body) else None
            doc = ""
            if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                doc = inspect.cleandoc(str(behind.value.value))
            value = f" = {ast.unparse(item.value)}" if item.value is not None else ""
            found = Entry(item.target.id, f"{item.target.id}: {ast.unparse(item.annotation)}{value}", doc)
        elif isinstance(item, ast.FunctionDef):
            found = Entry(item.name, signature(item), ast.get_docstring(item) or "")
        else:
            continue
        if not found.name.startswith("_"):
            yield found


def signature(node: ast.FunctionDef, name: str = "") -> str:
    """``name(arguments) -> result``, without ``self``; a property as an attribute."""
    arguments = re.sub(r"^(self|cls)(, )?(/, )?", "", ast.unparse(node.args))
    arguments = re.sub(r"(: [^=:]+?)=", r"\1 = ", arguments)  # as it is written, not as ast does
    marks = {ast.unparse(mark) for mark in node.decorator_list}
    result = ast.unparse(node.returns) if node.returns is not None else ""
    if "property" in marks:
        return f"{node.name}: {result}"
    if "contextmanager" in marks:
        result = re.sub(r"^Iterator\[(.*)\]$", r"with ... as \1", result)
    arrow = f" -> {result}" if result and not name else ""
    return f"{name or node.name}({arguments}){arrow}"


def markdown(doc: str) -> str:
    """A docstring as these files write them (reST's roles and doubled quotes) for a page."""
    text = re.sub(r":\w+:`~(?:\w+\.)*(\w+)`", r"``\1``", doc)
    text = re.sub(r":\w+:`([^`]+)`", r"``\1``", text)
    out, block = [], False
    for line in text.split("\n"):
        if line.rstrip() == "::":
            out.append("```python")
            block = True
            continue
        if block and line and not line.startswith(" "):
            while out[-1] == "":
                out.pop()
            out += ["```", ""]
            block = False
        if block and out[-1] == "```python" and not line:
            continue
        out.append(line.removeprefix("    ") if block else line.replace("``", "`"))
    if block:
        while out[-1] == "":
            out.pop()
        out.append("```")
    return "\n".join(out)

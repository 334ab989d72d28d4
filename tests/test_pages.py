"""The pages say what is so: those made of the source are up to date, and what code they show can be read as such."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import engine
import engine.mixin
import engine.testing
from pages import metrics, source, worker

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.unmeasured

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/*.md"))]
MADE: Final = (worker, metrics)


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.PAGE.name)
def test_a_page_that_is_made_of_the_source_is_up_to_date(made: ModuleType) -> None:
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run scripts/docs write"


def test_the_reference_names_all_that_is_promised() -> None:
    named = set(re.findall(r"^### (\w+)$", worker.page(), re.MULTILINE))
    promised = {*engine.__all__, *dir(engine.mixin), *engine.testing.__all__} - {"__version__"}
    classes = {name for name in promised if not name.startswith("_") and name[0].isupper()}
    assert (classes & {name for name in classes if name.endswith(("Mixin", "Error", "Worker"))}) <= named
    assert {name for name in (*engine.__all__, *engine.testing.__all__) if not name.startswith("_")} <= named


def test_a_metric_is_found_wherever_its_name_is_put_together() -> None:
    found = {metric.name: metric for metric in metrics.found()}
    assert found["engine_slo_second"].labels == ("endpoint",)  # in a variable
    assert found["engine_workers"].labels == ("stage", "state")  # by a function
    assert found["engine_process_open_fds"].kind == "gauge"  # of a list
    assert found["engine_build_info"].labels == ("version", "python")
    homes = {home for _, home, _ in metrics.PARTS}
    assert {metric.home for metric in found.values()} <= homes, "a part of the page for each"
    made = "\n".join(ast.unparse(source.parsed(name)) for name in metrics.MODULES)
    names = set(re.findall(r"\{(?:namespace|prefix|self\._namespace)\}_(\w+)'", made)) - {"process_", "build_info"}
    assert names <= {
        name.removeprefix("engine_").removesuffix(metrics.ENDINGS.get(metric.kind, ""))
        for name, metric in found.items()
    }


def test_nobody_makes_metrics_where_they_are_not_looked_for() -> None:
    makes = re.compile(r"\b(?:counter|gauge|histogram|Family)\(\s*f?\"")
    for package in ("engine", "frontend", "stages"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert name in metrics.MODULES or not makes.search(path.read_text()), f"{name} is not in metrics.MODULES"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_a_page_is_code(page: Path) -> None:
    """Python compiles and TOML is read; ``py`` (signatures) and ``text`` are neither."""
    for language, block in re.findall(r"^```(python|toml)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language == "python":
            compile(block, str(page), "exec")
        else:
            tomllib.loads(block)

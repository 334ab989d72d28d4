"""The pages say what is so: those made of the source are up to date, and what code they show can be read as such."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

import engine
import engine.config
import engine.mixin
import engine.testing
from frontend import head, media
from frontend.endpoints import Request
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


# --- docs/troubleshooting.md -----------------------------------------------------------------------------------------

LOGS: Final = ("warning", "error", "exception", "critical")


def texts(node: ast.AST) -> list[str]:
    """What a string says, in pieces between what is put in."""
    if isinstance(node, ast.JoinedStr):
        return [text for part in node.values for text in texts(part)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [piece for piece in re.split(r"%[-.\w]", node.value) if piece.strip()]
    return []


def trees() -> list[ast.Module]:
    files = [path for package in ("engine", "frontend", "stages") for path in (ROOT / package).rglob("*.py")]
    return [ast.parse(path.read_text()) for path in files if "templates" not in path.parts]


def quotes() -> list[list[str]]:
    """What the page quotes, each in the pieces between what differs."""
    rows = re.findall(r"^\| (`.*?`) \| ", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    found = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]
    return [[piece.strip() for piece in quote.split("…") if piece.strip(" :;")] for quote in found]


def test_what_the_page_on_trouble_quotes_is_said() -> None:
    said = "\n".join(str(n.value) for tree in trees() for n in ast.walk(tree) if isinstance(n, ast.Constant))
    assert [quote for quote in quotes() if not all(piece in said for piece in quote)] == []


def test_every_warning_stands_on_the_page_on_trouble() -> None:
    told = [
        pieces
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute)
        if node.func.attr in LOGS and "log" in ast.unparse(node.func.value).lower()
        if (pieces := texts(node.args[0]))
    ]
    assert len(told) > 60
    known = quotes()

    def is_quoted(pieces: list[str], quote: list[str]) -> bool:
        """Most of it, so that "failed" is not taken for all that fails; of a long line its beginning."""
        size = sum(map(len, quote))
        is_most = size >= min(0.6 * sum(len(piece.strip()) for piece in pieces), 45)
        return is_most and all(any(part in piece for piece in pieces) for part in quote)

    assert [pieces for pieces in told if not any(is_quoted(pieces, quote) for quote in known)] == []


# --- docs/moving.md, docs/headers.md ---------------------------------------------------------------------------------

MOVED: Final = {  # a request and its answer, as they were before the move
    "LitServe": ("/predict", {"input": 4}, {"output": 16}),
    "BentoML": ("/classify", {"text": "a prize"}, {"label": "spam"}),
    "TorchServe": ("/predictions/square", {"x": 3}, {"y": 9}),
    "Triton": (
        "/v2/models/square/infer",
        {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [3.0]}]},
        {
            "model_name": "square",
            "model_version": "1",
            "outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [9.0]}],
        },
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_service_that_has_moved_answers_as_before(name: str, tmp_path: Path) -> None:
    part = (ROOT / "docs" / "moving.md").read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    module = f"moved_{name.lower()}"  # each has its own: modules are imported once
    before, after = re.findall(r"^```python\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
    (toml,) = re.findall(r"^```toml\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
    assert before != after
    (tmp_path / f"{module}.py").write_text(after)
    (tmp_path / "stages.toml").write_text(toml.replace("service:", f"{module}:"))
    path, asked, answered = MOVED[name]
    with engine.testing.local(tmp_path) as service:
        told = service.post(asked, path)
        assert (told.status, told.json()) == (200, answered)


def test_every_header_that_is_read_or_kept_back_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "headers.md").read_text()
    named = set(re.findall(r"`([a-z-]+)`", page))
    assert {one.decode() for one in head.SINGLE} <= named
    assert named >= media._RESERVED


# --- docs/testing.md, docs/errors.md ---------------------------------------------------------------------------------


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_tests_on_the_page_on_testing_pass(tmp_path: Path) -> None:
    service, tests = blocks("testing.md", "python")
    (toml,) = blocks("testing.md", "toml")
    for name, text in (("service.py", service), ("stages.toml", toml), ("test_service.py", tests)):
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_endpoints_are_what_their_page_says(tmp_path: Path) -> None:
    (toml,), (code,) = blocks("endpoints.md", "toml"), blocks("endpoints.md", "python")
    stage = '[[stage]]\nname = "a"\nworker = "m:A"\n[[route]]\npath = "/v1/labels"\nstages = ["a"]\n'
    (tmp_path / "stages.toml").write_text(stage + toml)
    (own,) = engine.config.load(tmp_path / "stages.toml").endpoints
    assert own.methods == ("GET",)
    made: dict[str, Any] = {}
    exec(code, made)
    handler = made[own.handler.partition(":")[2]]
    assert handler(Request("GET", own.path, "prefix=c", {}, b"", "1")) == ["cat"]
    with pytest.raises(engine.ClientError):
        handler(Request("GET", own.path, f"prefix={'c' * 21}", {}, b"", "1"))


def test_errors_are_what_their_page_says(tmp_path: Path) -> None:
    embed, lookup, form = blocks("errors.md", "python")
    made: dict[str, Any] = {}
    exec(form, made)  # our own page
    problem = {"reason": "capacity", "detail": "too many requests", "request_id": "1", "status": 429}
    said = {"code": "capacity", "message": "too many requests", "id": "1"}
    assert made["error_body"](429, problem, "/api/x") == (said, "application/json")
    assert made["error_body"](429, problem, "/other") is None
    (tmp_path / "erring.py").write_text(embed + lookup)
    routes = "".join(
        f'[[stage]]\nname = "{name}"\nworker = "erring:{name}"\nmax_batch_size = {size}\n'
        f'[[route]]\npath = "/{name}"\nstages = ["{name}"]\n'
        for name, size in (("Embed", 4), ("Lookup", 1))
    )
    (tmp_path / "stages.toml").write_text(routes)
    with engine.testing.local(tmp_path) as service:
        assert service.post("hey", "/Embed").json() == [3.0]
        assert service.post("", "/Embed").text == "request validation error: the text is empty"
        missing = service.post({"used": 1, "name": "x"}, "/Lookup")
        assert (missing.status, missing.text) == (404, "not there: x")
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)\(\"(.*)\"\)` \| (\d+) \| `(.*)` \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for name, message, status, told in rows:
        error = getattr(engine, name)(message)
        assert (error.status, error.text) == (int(status), told)

"""Whole routes in one process, and the dry run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import Deployment, load
from engine.exitcodes import ExitCode
from stages.dryrun import Finding, table
from stages.local import Pipeline, check

SERVICE = """
import os
from stages import Worker
from engine.errors import ValidationError

TORN = []

class Parse(Worker):
    example = [{"text": "a b"}, {"text": "c"}]
    colour = os.environ.get("COLOUR")

    def forward(self, data):
        return [value["text"].split() if value["text"] else ValidationError("empty") for value in data]

    def teardown(self):
        TORN.append("parse")

class Count(Worker):
    resp_mime_type = "text/plain"

    def __init__(self, offset=0):
        self.offset = offset

    def forward(self, data):
        return len(data) + self.offset

    def serialize(self, data):
        context = self.context()
        return f"{data} {context.query.get('q')} {context.headers.get('X-A')} {context.request_id}".encode()

    def teardown(self):
        raise RuntimeError("torn")

class Big(Worker):
    example = "x"

    def forward(self, data):
        import array
        return bytes(200_000)

class Failing(Worker):
    example = 1

    def forward(self, data):
        raise RuntimeError("cannot compute")

class Unpackable(Worker):
    example = 1

    def forward(self, data):
        return lambda: 0

class Size(Worker):
    def forward(self, data):
        return {"n": len(data)}

class NoInit(Worker):
    def __init__(self):
        raise RuntimeError("cannot load")

    def forward(self, data):
        return data
"""

TWO = """
[[stage]]
name = "parse"
worker = "{module}:Parse"
max_batch_size = 4
env = {{ COLOUR = "green" }}
[[stage]]
name = "count"
worker = "{module}:Count"
args = {{ offset = 1 }}
[[route]]
path = "/count"
stages = ["parse", "count"]
[[route]]
path = "/parse"
stages = ["parse"]
"""


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Deployment]]:
    """Deployments of the service above, as a module of this test's own that is forgotten after it."""
    import sys

    module = f"service_{abs(hash(tmp_path)):x}"
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("COLOUR", raising=False)

    def make(text: str, code: str = SERVICE) -> Deployment:
        (tmp_path / f"{module}.py").write_text(code)
        file = tmp_path / "stages.toml"
        file.write_text(text.format(module=module))
        return load(file, environ={})

    yield make
    sys.modules.pop(module, None)


def stage(name: str, cls: str) -> str:
    return f'[[stage]]\nname = "{name}"\nworker = "{{module}}:{cls}"\n'


# --- Pipeline --------------------------------------------------------------------------------------------------------


def test_a_request_goes_through_the_stages_of_its_route(deployment: Any) -> None:
    with Pipeline(deployment(TWO)) as pipeline:
        reply = pipeline.call("/count", b'{"text": "a b c"}', query="q=1", headers=[("x-a", "2")], request_id="me")
        assert reply == (200, b"4 1 2 me", "text/plain")
        assert pipeline.call("/parse", b'{"text": "a b"}') == (200, b'["a","b"]', "application/json")


def test_failures_are_the_answers_a_client_would_get(deployment: Any) -> None:
    with Pipeline(deployment(TWO)) as pipeline:
        assert pipeline.call("/count", b'{"text": ""}') == (422, b"request validation error: empty", "text/plain")
        assert pipeline.call("/count", b"{").status == 400
        assert pipeline.call("/count", b'{"no": 1}') == (500, b"inference internal error", "text/plain")
        with pytest.raises(KeyError):
            pipeline.call("/nowhere", b"")


def test_environment_is_there_while_loading_and_gone_after(deployment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("COLOUR", "red")
    with Pipeline(deployment(TWO)) as pipeline:
        assert pipeline.workers[0].colour == "green"  # type: ignore[attr-defined]
        assert os.environ["COLOUR"] == "red"


def test_every_worker_is_torn_down_whatever_one_does(deployment: Any, caplog: pytest.LogCaptureFixture) -> None:
    import sys

    pipeline = Pipeline(deployment(TWO))
    module = sys.modules[type(pipeline.workers[0]).__module__]
    pipeline.close()
    assert module.TORN == ["parse"]
    assert "teardown failed" in caplog.text


def test_what_was_loaded_is_torn_down_when_the_rest_cannot_be(deployment: Any) -> None:
    import sys

    before = set(sys.modules)  # other tests leave modules of theirs
    with pytest.raises(RuntimeError, match="cannot load"):
        Pipeline(deployment(stage("parse", "Parse") + stage("bad", "NoInit")))
    (name,) = [name for name in set(sys.modules) - before if name.startswith("service_")]
    assert sys.modules[name].TORN == ["parse"]


# --- check -----------------------------------------------------------------------------------------------------------


def found(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["stages"]
    return stages


def test_a_stage_without_example_runs_on_the_results_of_the_one_before(
    deployment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    two = deployment(stage("parse", "Parse") + "max_batch_size = 4\n" + stage("size", "Size"))
    assert check(two, as_json=True) == ExitCode.OK
    parse, size = found(capsys)
    assert (parse["status"], parse["examples"], parse["fed_by"], parse["batch"]) == ("ok", 1, None, 2)
    assert (size["status"], size["examples"], size["fed_by"], size["batch"]) == ("ok", 0, "parse", 1)
    assert size["result_bytes"] == len(b'{"n":2}')
    for finding in (parse, size):
        assert finding["load_s"] >= 0
        assert finding["first_s"] > 0
        assert finding["median_s"] > 0
        assert finding["memory_bytes"] >= 0


def test_failures_are_shown_whole_and_the_others_still_checked(
    deployment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ("NoInit", "Failing", "Unpackable", "Missing", "Big")
    text = "".join(stage(cls.lower(), cls) for cls in classes)
    text += "".join(f'[[route]]\npath = "/{cls}"\nstages = ["{cls.lower()}"]\n' for cls in classes)
    assert check(deployment(text), as_json=False) == ExitCode.START
    out, err = capsys.readouterr()
    status = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:6]}
    assert status == {cls.lower(): "ok" if cls == "Big" else "failed" for cls in classes}
    for reason in ("cannot load", "cannot compute", "Traceback"):
        assert reason in err
    assert "dryrun.py" not in err
    assert "failing: RuntimeError: cannot compute (" in out
    assert "missing: " in out


def test_stage_that_nothing_reaches_is_named(deployment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(deployment(stage("size", "Size")), as_json=False) == ExitCode.OK
    assert "size: not exercised" in capsys.readouterr().out


MISTAKES = """
from engine import Worker

class Forgotten(Worker):
    example = [1, 2]

    def forward(self, data):
        return sum(data)

class Short(Forgotten):
    def forward(self, data):
        return data[:1]

class NoReturn(Worker):
    def forward(self, data):
        print(len(data))

class Coroutine(Worker):
    async def forward(self, data):
        return data

class Numpy(Worker):
    example = [1, 2]

    def forward(self, data):
        import numpy
        return [numpy.arange(2) for _ in data]

class Quits(Worker):
    def __init__(self):
        raise SystemExit(3)

    def forward(self, data):
        return data
"""


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        ("Forgotten", "forward returned a int for 2 values; it must return a list"),
        ("Short", "forward returned 1 results for 2 values"),
        ("NoReturn", 'is a "return" missing?'),
        ("Coroutine", 'is "async def"'),
        ("Numpy", "type numpy.ndarray is unsupported; call .tolist() on it"),
        ("Quits", "sys.exit(3)"),
    ],
)
def test_a_mistake_that_would_answer_500_to_everybody_is_found(
    deployment: Any, capsys: pytest.CaptureFixture[str], cls: str, words: str
) -> None:
    made = deployment(stage("s", cls) + "max_batch_size = 8\n", MISTAKES)
    assert check(made, as_json=False) == ExitCode.START
    out, err = capsys.readouterr()
    assert words in out
    assert "dryrun" not in err
    assert "build.py" not in err
    assert out.splitlines()[-1] == "check FAILED: 1 stage: 1 failed"


def test_what_was_not_tried_is_an_error_when_asked_for(deployment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = deployment(stage("size", "Size"))
    assert check(made, as_json=False) == ExitCode.OK
    assert capsys.readouterr().out.splitlines()[-1] == (
        "check passed: 1 stage: 1 not exercised (an error with --strict)"
    )
    assert check(made, as_json=False, strict=True) == ExitCode.START
    assert capsys.readouterr().out.splitlines()[-1] == "check FAILED: 1 stage: 1 not exercised"


def test_a_mistake_that_two_stages_meet_is_shown_once(deployment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = deployment(stage("one", "A") + stage("two", "B"), "def broken(:\n")
    assert check(made, as_json=False) == ExitCode.START
    out, err = capsys.readouterr()
    assert err.count("SyntaxError") == 1
    assert out.count("SyntaxError") == 2  # each stage says what is wrong with it


SIZES = """
import time

from engine import SSEWorker, Worker

class Compiled(Worker):
    example = {"n": 1}

    def setup(self):
        self.known = set()

    def forward(self, data):
        if len(data) not in self.known:
            self.known.add(len(data))
            time.sleep(0.02)
        return [len(data)] * len(data)

class Talking(SSEWorker):
    def forward(self, data):
        for index, text in enumerate(data):
            self.send_stream_event(text, index=index)
        return data

class Large(Compiled):
    def forward(self, data):
        if len(data) > 4:
            raise MemoryError
        return super().forward(data)
"""


def test_the_first_and_the_second_call_of_every_size_are_shown(
    deployment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = deployment(stage("s", "Compiled") + "batch_sizes = [1, 4, 16]\n", SIZES)
    assert check(made, as_json=True) == ExitCode.OK
    (finding,) = found(capsys)
    assert [one["size"] for one in finding["sizes"]] == [1, 4, 16]
    assert all(one["first_s"] >= 0.02 and one["second_s"] > 0 for one in finding["sizes"])
    assert check(made, as_json=False) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "s: first and second call by size of batch:"
    assert [line.split()[0] for line in lines[3:6]] == ["1", "4", "16"]
    assert [line.split()[2] for line in lines[3:6]] == ["ms"] * 3


def test_a_size_that_memory_does_not_take_is_shown_and_no_failure(
    deployment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = deployment(stage("s", "Large") + 'max_batch_size = 16\nwarm_up = "60 s"\n', SIZES)  # enough anywhere
    assert check(made, as_json=False) == ExitCode.OK
    out = capsys.readouterr().out
    assert "       5  does not fit in memory: such batches are computed in parts" in out
    assert check(made, as_json=True) == ExitCode.OK
    (finding,) = found(capsys)
    assert ([one["size"] for one in finding["sizes"]], finding["exhausted"]) == ([1, 2, 3, 4], 5)


def test_a_request_is_padded_as_behind_http_and_nobody_sees_it(deployment: Any) -> None:
    text = stage("s", "Compiled") + "batch_sizes = [4]\n" + stage("t", "Talking") + "batch_sizes = [2, 8]\n"
    text += '[[route]]\npath = "/s"\nstages = ["s"]\n[[route]]\npath = "/t"\nstages = ["t"]\n'
    with Pipeline(deployment(text, SIZES)) as pipeline:
        assert pipeline.call("/s", b"{}").body == b"4"
        assert pipeline.call("/t", b'"once"').body == b"data: once\n\n"


def test_what_the_values_of_examples_cost_is_shown_and_whose_word_it_is() -> None:
    counted = Finding("s", status="ok", max_batch_cost=100, costs=[3.0, 2.5])
    assert "s: the values of its examples cost 3, 2.5; a batch, 100" in table([counted])
    many = Finding("s", status="ok", max_batch_cost=100, costs=[1.0] * 20)
    assert "cost 1, 1, 1, 1, 1, 1, 1, 1 and 12 more; a batch, 100" in table([many])
    by_bytes = Finding("s", status="ok", max_batch_cost=100)
    assert "s: its class has no cost(value): what a payload costs is its bytes" in table([by_bytes])
    assert "cost" not in table([Finding("s", status="ok")])


def test_functions_that_the_file_names_are_loaded_too(deployment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    own = '[[endpoint]]\npath = "/v1/%s"\nhandler = "%s"\n'
    good, bad = own % ("good", "json:dumps"), own % ("bad", "json:dump_all")
    whole = stage("size", "Size")
    made = deployment(whole + good + '[frontend]\nerrors = "json:loads"\n')
    assert check(made, as_json=False) == ExitCode.OK
    assert "[[endpoint]] /v1/good: ok\n[frontend] errors: ok\n" in capsys.readouterr().out
    made = deployment(whole + good + bad)
    assert check(made, as_json=True) == ExitCode.START
    told = json.loads(capsys.readouterr().out)
    assert told["functions"]["[[endpoint]] /v1/good"] is None
    assert "has no dump_all; did you mean dump" in told["functions"]["[[endpoint]] /v1/bad"]
    assert not told["ok"]

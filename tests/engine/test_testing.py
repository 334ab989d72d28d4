"""What is offered for tests of a service: a stage, all of them in this process, a deployment over HTTP."""

from __future__ import annotations

import os
import signal
import ssl
from pathlib import Path

import psutil
import pytest

from engine import SSEWorker, StreamWorker, ValidationError, Worker, testing
from engine.errors import StartError
from tests.frontend import certificates

TOML = """
[engine]
name = "tried-by-tests"
[[stage]]
name = "first"
worker = "tried_service:First"
[[stage]]
name = "second"
worker = "tried_service:Second"
args = { by = 3 }
max_batch_size = 4
[[route]]
path = "/times"
stages = ["first", "second"]
"""
SERVICE = """
import os
from engine import ValidationError, Worker

class First(Worker):
    example = {"x": 1}

    def forward(self, data):
        print("it prints", flush=True)
        if "x" not in data:
            raise ValidationError("no x")
        return data["x"] + int(self.context().query.get("more", 0))

class Second(Worker):
    def __init__(self, by):
        if os.environ.get("TRIED_FAILS"):
            raise RuntimeError("no weights")
        self.by = by

    def forward(self, data):
        return [value * self.by for value in data]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stages.toml").write_text(TOML)
    (tmp_path / "tried_service.py").write_text(SERVICE)
    return tmp_path


class Halve(Worker):
    torn = 0

    def __init__(self, by: int = 2) -> None:
        self.by = by
        self.at = (self.worker_id, self.device)

    def forward(self, data: list[int]) -> list[object]:
        return [value // self.by if value else ValidationError("nothing") for value in data]

    def teardown(self) -> None:
        type(self).torn += 1


class Pieces(StreamWorker):
    def forward(self, data: int):  # type: ignore[no-untyped-def]
        yield from (b"x" for _ in range(data))


class Events(SSEWorker):
    def forward(self, data: int) -> None:
        self.send_stream_event(f"{data}\nlines")


def test_a_stage_is_called_in_lists_no_longer_than_it_takes() -> None:
    seen = []

    class Watched(Halve):
        def forward(self, data: list[int]) -> list[object]:
            seen.append(len(data))
            return super().forward(data)

    results = testing.call(Watched, [2, 4, 0, 8, 10], max_batch_size=2, args={"by": 2})
    assert seen == [2, 2, 1]
    assert isinstance(results.pop(2), ValidationError)
    assert results == [1, 2, 4, 5]
    assert Watched.torn == 1


def test_a_stage_that_gets_single_values_gets_those() -> None:
    class Double(Worker):
        def forward(self, data: int) -> int:
            if data < 0:
                raise ValidationError("negative")
            return 2 * data

    assert testing.call(Double, [1, 2]) == [2, 4]
    with pytest.raises(ValidationError):
        testing.call(Double, [1, -1])


def test_a_stage_is_made_as_a_worker_process_makes_it() -> None:
    assert testing.made(Halve, max_batch_size=4, device="cuda:1").at == (1, "cuda:1")
    with pytest.raises(StartError, match="args"):
        testing.made(Halve, args={"times": 2})


def test_what_a_stage_sends_is_there_to_be_looked_at() -> None:
    assert testing.call(Pieces, [3, 0]) == [b"xxx", b""]
    with testing.made(Events).collect() as events:
        assert testing.call(Events, [1]) == [None]
    assert events == []


def test_events_are_read_as_a_browser_would() -> None:
    answer = testing.Answer(200, b":\n\ndata: one\n\ndata: two\ndata: lines\n\nevent: error\ndata: it failed\n\n")
    assert answer.events == ["one", "two\nlines", "it failed"]


def test_all_stages_in_this_process(folder: Path) -> None:
    with testing.local(folder) as service:
        assert service.post({"x": 2}).json() == 6
        assert service.post(b'{"x": 2}', "/times?more=1").json() == 9
        assert service.post({}).status == 422
        assert "no x" in service.post({}).text
        with pytest.raises(KeyError):
            service.post({}, "/other")


def test_a_deployment_over_http_and_its_end(folder: Path) -> None:
    with testing.running(folder / "stages.toml", "--capacity", "7") as service:
        answer = service.post({"x": 2}, headers={"x-request-id": "mine"})
        assert (answer.status, answer.json(), answer.headers["x-request-id"]) == (200, 6, "mine")
        assert service.post({"x": 2}, "/times?more=2").json() == 12
        assert service.get("/readyz").status == 200
        assert "it prints" in service.log
        everybody = psutil.Process(service.pid).children(recursive=True)
        assert len(everybody) >= 4
        with testing.running(folder) as beside:
            assert beside.url != service.url
    assert not [process for process in everybody if process.is_running()]


def test_one_with_a_certificate_of_its_own(folder: Path) -> None:
    made = certificates.make(folder, "service.example")
    flags = ("--certfile", str(made.cert), "--keyfile", str(made.key))
    with testing.running(folder, *flags) as service:
        assert service.url.startswith("https://")
        assert service.post({"x": 2}).json() == 6
        impostor = certificates.make(folder, "other.example")
        context = ssl.create_default_context(cafile=str(impostor.cert))
        service._trusted = context
        context.check_hostname = False
        with pytest.raises(ssl.SSLCertVerificationError):
            service.get("/readyz")


def test_one_that_cannot_start_says_why(folder: Path) -> None:
    with pytest.raises(StartError, match="no weights"), testing.running(folder, env={"TRIED_FAILS": "1"}):
        pass


def test_one_that_was_killed_is_no_success_and_a_test_that_fails_shows_the_log(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StartError, match="exit code -9"), testing.running(folder) as service:
        os.kill(service.pid, signal.SIGKILL)
    with pytest.raises(AssertionError, match="mine"), testing.running(folder) as service:
        raise AssertionError("mine")
    assert "is ready" in capsys.readouterr().err

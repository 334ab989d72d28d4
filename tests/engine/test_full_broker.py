"""A broker that computes all the time says so to its supervisor, which has another beside it or says why not; or, where
it has none, to the log."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.broker import serve
from engine.broker.loop import PartThread
from engine.broker.service import Broker
from engine.config import SNAPSHOT, FrontendSection, build, load
from engine.config.endpoints import room
from engine.config.load import as_it_runs
from engine.core.ebb import Ebb
from engine.core.fullness import AGAIN_S, FULL_S, Fullness
from engine.core.growth import SETTLE_S, Growth
from engine.core.processes import Child, Kind, Replace
from engine.process import Notifier
from engine.signals import STOPPING, Signals
from engine.specs import front_spec
from engine.supervisor import family
from engine.supervisor.changes import Changes, Refused
from engine.supervisor.growing import Grower
from engine.supervisor.parts import parse


class Busy(Broker):
    """As much of a broker as a beat looks at. Its one thread works for ``share`` of the time, which goes on by a second
    a look, until it has been looked at often enough."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.now = 0.0
        self.reader, self.writer = os.pipe()

    def clock(self) -> float:
        return self.now

    def is_outdated(self) -> bool:
        self.now += 1.0
        return self.now > 2 * FULL_S

    def fileno(self) -> int:
        return self.reader

    @property
    def held(self) -> int:
        return 0

    @property
    def passes(self) -> list[int]:
        return [int(self.now)]

    @property
    def cpu_s(self) -> list[float]:
        return [self.share * self.now]

    def demand(self) -> dict[str, float]:
        return {}

    def waiting(self, now: float) -> dict[str, float]:
        return {}

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def busy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    broker = Busy(request.param)
    monkeypatch.setattr(serve, "clock", broker.clock)
    monkeypatch.setattr(serve, "BEAT_S", 0.0)
    yield broker
    broker.close()


@pytest.mark.parametrize(("busy", "times"), [(1.0, 1), (0.7, 0)], indirect=["busy"])
def test_it_is_logged_once_where_nobody_listens(busy: Busy, times: int, caplog: pytest.LogCaptureFixture) -> None:
    with Signals(STOPPING) as signals, caplog.at_level(logging.WARNING):
        serve._beat(Notifier(), busy, signals, Ebb(), Fullness())
    assert caplog.text.count("the broker is full") == times
    assert caplog.text.count("[engine] cells") == times


@pytest.mark.parametrize(("busy", "is_full"), [(1.0, True), (0.7, False)], indirect=["busy"])
def test_the_supervisor_is_told_for_as_long_as_it_lasts(
    busy: Busy, is_full: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reading, writing = os.pipe()
    with Signals(STOPPING) as signals, caplog.at_level(logging.WARNING):
        serve._beat(Notifier(writing), busy, signals, Ebb(), Fullness())
    os.close(writing)
    with open(reading, "rb") as told:
        assert told.read().count(b'"full"') == (FULL_S if is_full else 0)
    assert "full" not in caplog.text


class Told:
    """What a supervisor has, but for processes."""

    def __init__(self, folder: Path, *, left: float = 4.0, only: str = "", **engine: object) -> None:
        stages = [{"name": name, "worker": "service:Encode", "num": 4} for name in ("first", "second")]
        data = {"engine": {"run_dir": str(folder), **engine}, "stage": stages, "frontend": {"workers": 1}}
        deployment = build(data, file=folder / "stages.toml", label="it", flags={}, environ={})
        parts = parse(only, deployment)
        self.environments = dict(family.environments(deployment, family.of(deployment, parts)))
        self.changes = Changes(
            deployment, folder, None, self.environments, recounted=lambda found: replace(found, frontend=FOUR)
        )
        places = {child: {"PLACE": child.name} for child in self.environments if child.kind is Kind.WORKER}
        self.environments.update(places)
        self.places = {(child.stage, child.slot): place for child, place in places.items()}
        self.now = 100.0
        self.grower = Grower(self.changes, parts, Growth(watch_s=2.0), lambda: [left * self.now])

    def hear(self, *cells: int) -> Replace | None:
        for _ in range(5):
            self.now += 1.0
            for cell in cells:
                broker = Child(Kind.BROKER, "broker", slot=cell)
                if (asked := self.grower.hear(broker, self.now)) is not None:
                    return asked
        return None


FOUR = FrontendSection(workers=4)


def names(children: Iterable[Child]) -> list[str]:
    return [child.name for child in children]


def test_another_broker_comes_with_half_of_the_workers(tmp_path: Path) -> None:
    told = Told(tmp_path)
    asked = told.hear(0)
    assert asked is not None
    assert names(asked.brokers) == ["broker 2"]
    assert asked.moved == {(stage, slot) for stage in ("first", "second") for slot in (2, 4)}
    assert names(asked.workers)[:4] == ["worker first-1", "worker second-1", "worker first-2", "worker second-2"]
    for child in (*asked.brokers, *asked.workers):
        assert child in told.environments
    for child in asked.workers:  # where the one was whose place it takes, however CPUs would be dealt out today
        assert told.environments[child] == told.places[child.stage, child.slot]
        assert load(told.changes.snapshot(child)).cells == 2  # before anybody else knows of it
    assert told.hear(0) is None, "it is under way"
    told.changes.commit()
    told.changes.end()
    told.grower.settle("", told.now)
    now = told.changes.deployment
    assert (now.cells, now.brokers, now.keyed, now.frontend.processes) == (2, 2, 1, 4)
    assert load(tmp_path / SNAPSHOT) == now
    assert as_it_runs(replace(now, grown=0)) == now
    told.now += SETTLE_S
    again = told.hear(0, 1)
    assert again is not None
    assert names(again.brokers) == ["broker 3", "broker 4"]
    assert again.moved == {(stage, slot) for stage in ("first", "second") for slot in (3, 4)}


def test_the_first_broker_keeps_its_room_for_keys_which_all_go_there(tmp_path: Path) -> None:
    frontend = {"idempotency_bytes": "8 MiB", "capacity": 64}
    for cells, grown, room_for_keys in (("auto", 2, 8 << 20), (2, 0, 4 << 20)):
        stage = {"name": "encode", "worker": "service:Encode", "num": 2}
        data = {"engine": {"cells": cells}, "frontend": frontend, "stage": [stage]}
        deployment = build(data, file=tmp_path / "stages.toml", label="it", flags={}, environ={})
        spec = front_spec(replace(deployment, grown=grown))
        assert (spec.idempotency_bytes, spec.capacity) == (room_for_keys, 32)


def test_what_was_given_up_is_left_for_long(tmp_path: Path) -> None:
    told = Told(tmp_path)
    assert told.hear(0) is not None
    told.changes.end()
    told.grower.settle("broker 2 could not start", told.now)
    assert told.changes.deployment.cells == 1
    told.now += AGAIN_S / 2
    assert told.hear(0) is None
    told.now += AGAIN_S / 2
    assert told.hear(0) is not None


@pytest.mark.parametrize(
    ("engine", "only", "left", "word"),
    [
        ({"cells": 1}, "", 4.0, "[engine] cells"),
        ({"cells": 2}, "", 4.0, "[engine] cells"),
        ({}, "", 0.5, "no CPU left"),
        ({"bind": "tcp://127.0.0.1:7000", "insecure": True}, "", 4.0, "[engine] broker"),
        ({"bind": "tcp://127.0.0.1:7000", "insecure": True}, "broker", 4.0, "[engine] broker"),
    ],
)
def test_where_there_can_be_none_the_log_says_why(
    tmp_path: Path, engine: dict[str, object], only: str, left: float, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(tmp_path, left=left, only=only, **engine)
    with caplog.at_level(logging.WARNING):
        assert [told.hear(0, 1), told.hear(0, 1)] == [None, None]
    assert caplog.text.count("the broker is full") == 1
    assert word in caplog.text


def test_a_path_that_has_no_room_for_their_folders_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = Told(tmp_path)
    engine = replace(told.changes.deployment.engine, run_dir="/" + "x" * (room(2, 1) - 1))
    told.changes.deployment = replace(told.changes.deployment, engine=engine)
    with caplog.at_level(logging.WARNING):
        assert told.hear(0) is None
    assert "run_dir is too long" in caplog.text


def test_a_file_that_is_read_again_leaves_them(tmp_path: Path) -> None:
    told = Told(tmp_path)
    asked = told.hear(0)
    assert asked is not None
    told.changes.commit()
    told.changes.end()
    read = replace(told.changes.deployment, grown=0)
    told.changes._reread = lambda: read
    assert told.changes.reload().brokers == ()
    told.changes.commit()
    told.changes.end()
    assert told.changes.deployment.cells == 2
    read = replace(read, stages=tuple(replace(stage, num=1) for stage in read.stages))
    with pytest.raises(Refused, match="first: 2 brokers run by now"):
        told.changes.reload()
    with pytest.raises(Refused, match="one for each cell"):
        told.changes.scale({"second": 1})


def test_a_thread_tells_its_own_time() -> None:
    thread = PartThread("nobody", [], lambda: None)
    assert thread.cpu_s == 0.0  # it has not begun
    thread.start()
    try:
        assert thread.started.wait(10.0)
        assert 0.0 < thread.cpu_s < 5.0
    finally:
        assert thread.stop(5.0)

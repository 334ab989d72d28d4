"""Numbers of workers that follow the demand, in the supervisor: what it keeps of each change, and whom it believes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from engine.config import Deployment, build
from engine.core.demand import Windows
from engine.core.lifecycle import Machine
from engine.core.processes import Begin, Child, Died, Kind, Ready, Replaced
from engine.core.scaling import Bounds
from engine.supervisor import family
from engine.supervisor.changes import Changes, placed
from engine.supervisor.loop import Loop
from engine.supervisor.scaling import Scaler

AT_ONCE = Windows(0.0, 0.0)


class Scaled:
    """A deployment that serves, whose processes are nobody."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stage = {"name": "encode", "worker": "service:Encode", "num": 1, "min": 1, "max": 4, "env": {"COLOUR": "red"}}
        deployment = build({"stage": [stage]}, file=folder / "stages.toml", label="it", flags={}, environ={})
        members = family.whole(deployment)
        self.environments: dict[Child, Mapping[str, str]] = family.environments(deployment, members)
        self.changes = Changes(deployment, folder, None, self.environments, scaled=self._bounds)
        self.machine = Machine(members, grace_s=1.0)
        self.machine.handle(Begin(), 0.0)
        for child in members:
            self.machine.handle(Ready(child), 0.0)
        self.broker = next(child for child in members if child.kind is Kind.BROKER)
        self.scaler = Scaler(self.changes, self.machine, AT_ONCE)
        self.told: list[tuple[Child, int]] = []
        monkeypatch.setattr(Loop, "_spawn", lambda loop, child: None)
        monkeypatch.setattr(Loop, "_send", lambda loop, child, number: self.told.append((child, number)))
        self.loop = Loop(
            self.machine,
            lambda child, status_fd: [],
            self.environments,
            daemons={},
            on_url=lambda url, on: None,
            on_serving=lambda: None,
            changes=self.changes,
            scaler=self.scaler,
        )
        self.loop._pids[self.broker] = 0

    @staticmethod
    def _bounds(deployment: Deployment) -> Mapping[str, Bounds]:
        return {stage.name: Bounds(stage.min, stage.most) for stage in deployment.stages}

    def resize(self, workers: int) -> None:
        asked = self.changes.resize({"encode": workers}, "scaling")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Scaler, "look", lambda *_: asked)
            self.loop._rescale()

    def settle(self) -> None:
        """Whoever starts is ready, and whoever was told to stop has gone."""
        for child in self.machine.workers:
            self.machine.handle(Ready(child), 1.0)
        for child, number in self.told:
            if number == signal.SIGTERM and child in self.machine.children:
                self.machine.handle(Died(child, 0), 1.0)


@pytest.fixture
def scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scaled]:
    made = Scaled(tmp_path, monkeypatch)
    yield made
    made.loop._selector.close()


def test_of_changes_nothing_is_kept_but_for_those_that_are_there(scaled: Scaled) -> None:
    for _ in range(20):
        for workers in (4, 1):
            scaled.resize(workers)
            scaled.settle()
    assert (scaled.broker, signal.SIGHUP) in scaled.told
    assert len(scaled.machine.workers) == 1
    assert len(scaled.environments) <= len(scaled.machine.children) + 3, (
        "and those that had not gone at the last change"
    )
    for child in scaled.machine.children:
        assert placed(child) in scaled.environments
    (worker,) = scaled.machine.workers
    assert scaled.environments[worker]["COLOUR"] == "red"


def test_what_a_change_that_was_given_up_would_have_needed_is_forgotten(scaled: Scaled) -> None:
    before = dict(scaled.environments)
    asked = scaled.changes.scale({"encode": 3})
    assert len(scaled.environments) > len(before)
    scaled.loop._carry_out(Replaced("it was not done"))
    assert scaled.environments == before
    assert asked.workers


def test_what_a_dead_broker_has_told_is_forgotten(scaled: Scaled) -> None:
    scaled.scaler.hear(scaled.broker, {"encode": 4.0}, 10.0)
    scaled.scaler.forget(scaled.broker)
    assert scaled.scaler.look([scaled.broker], (), 10.1) is None
    scaled.scaler.hear(scaled.broker, {"encode": 4.0}, 10.2)
    assert scaled.scaler.look([scaled.broker], (), 10.3) is not None

"""A broker that computes all the time says so, and what is to be done about it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from engine.broker import serve
from engine.broker.loop import PartThread
from engine.broker.service import Broker
from engine.core.ebb import Ebb
from engine.core.fullness import FULL_S, Fullness
from engine.process import Notifier
from engine.signals import STOPPING, Signals


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
def test_it_is_logged_once(busy: Busy, times: int, caplog: pytest.LogCaptureFixture) -> None:
    with Signals(STOPPING) as signals, caplog.at_level(logging.WARNING):
        serve._beat(Notifier(), busy, signals, Ebb(), Fullness())
    assert caplog.text.count("the broker is full") == times
    assert caplog.text.count("[engine] cells") == times


def test_a_thread_tells_its_own_time() -> None:
    thread = PartThread("nobody", [], lambda: None)
    assert thread.cpu_s == 0.0  # it has not begun
    thread.start()
    try:
        assert thread.started.wait(10.0)
        assert 0.0 < thread.cpu_s < 5.0
    finally:
        assert thread.stop(5.0)

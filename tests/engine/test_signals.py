"""Signals as input: in order, without disturbing what was set up before."""

from __future__ import annotations

import os
import select
import signal
import threading

import pytest

from engine.errors import StartError
from engine.signals import Signals

HUP, USR1, USR2 = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2


def arrive(signals: Signals) -> list[int]:
    assert select.select([signals], [], [], 20.0)[0]
    return signals.read()


def test_signals_arrive_as_numbers_in_order() -> None:
    with Signals((USR1, USR2)) as signals:
        assert signals.read() == []
        for number in (USR2, USR1, USR2):
            os.kill(os.getpid(), number)
        assert arrive(signals) == [USR2, USR1, USR2]
        assert signals.read() == []


def test_what_was_set_up_before_is_put_back() -> None:
    seen: list[int] = []
    former = signal.signal(USR1, lambda number, frame: seen.append(number))
    try:
        with Signals((USR1,)) as signals:
            os.kill(os.getpid(), USR1)
            assert arrive(signals) == [USR1]
        assert seen == []
        os.kill(os.getpid(), USR1)
        assert seen == [USR1]
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(USR1, former)


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    former = signal.signal(HUP, signal.SIG_IGN)
    try:
        with Signals((HUP, USR1)) as signals:
            os.kill(os.getpid(), HUP)
            os.kill(os.getpid(), USR1)
            assert arrive(signals) == [USR1]
    finally:
        signal.signal(HUP, former)


def test_another_thread_is_refused_and_nothing_changes() -> None:
    refused: list[str] = []

    def use() -> None:
        with pytest.raises(StartError) as caught, Signals((USR1,)):
            pass
        refused.append(str(caught.value))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(20.0)
    assert "main thread" in refused[0]
    assert signal.getsignal(USR1) is signal.SIG_DFL

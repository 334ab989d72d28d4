"""Signals as input: in order, without disturbing what was set up before."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

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


def test_what_interrupts_may_raise_out_of_the_main_thread() -> None:
    def interrupt(number: int) -> None:
        raise KeyError(number)

    def signalled() -> None:
        os.kill(os.getpid(), USR1)
        signal.pause()  # the handler runs at the latest here

    with Signals((USR1,), interrupt=interrupt) as signals:
        with pytest.raises(KeyError):
            signalled()
        assert arrive(signals) == [USR1]


# --- other users of the wake-up descriptor ---------------------------------------------------------------------------


async def watch(number: int, during: Callable[[], None] = lambda: None) -> None:
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_signal_handler(number, seen.set)
    during()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(seen.wait(), 20.0)
    loop.remove_signal_handler(number)


def test_an_event_loop_that_watched_signals_takes_none_of_ours_along() -> None:
    with Signals((USR1,)) as signals:
        asyncio.run(watch(USR2))
        assert signals.read() == []
        for _ in range(2):
            os.kill(os.getpid(), USR1)
            assert arrive(signals) == [USR1]


def test_while_an_event_loop_watches_both_hear_their_own() -> None:
    with Signals((USR1,)) as signals:

        def ours() -> None:
            os.kill(os.getpid(), USR1)
            assert arrive(signals) == [USR1]

        asyncio.run(watch(USR2, during=ours))


def test_a_signal_that_other_code_took_over_can_be_taken_back() -> None:
    with Signals((USR1,)) as signals:
        asyncio.run(watch(USR1))  # leaves the default action, which would end this process
        signals.renew()
        os.kill(os.getpid(), USR1)
        assert arrive(signals) == [USR1]


# --- forks: in programs of their own, because this process has threads -----------------------------------------------

FORKS = """
import os, select, signal, sys

def early():
    if sending:
        os.kill(os.getpid(), signal.SIGUSR1)

sending = []
os.register_at_fork(after_in_child=early)  # comes before what the module below registers

from engine.signals import Signals

def forked(work):
    pid = os.fork()
    if pid == 0:
        try:
            code = work()
        except BaseException as error:
            print("child:", repr(error))
            code = 99
        sys.stdout.flush()
        os._exit(code)
    return pid

def end_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def arrive(signals):
    assert select.select([signals], [], [], 20.0)[0]
    return signals.read()
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_forked_child_can_be_stopped_and_its_parent_hears_nothing_of_it() -> None:
    run("""
ready, told = os.pipe()

def wait():
    os.write(told, b".")
    signal.pause()
    return 7

with Signals((signal.SIGTERM, signal.SIGUSR1)) as signals:
    pid = forked(wait)
    os.read(ready, 1)
    os.kill(pid, signal.SIGTERM)
    assert end_of(pid) == -signal.SIGTERM
    assert signals.read() == []
    os.kill(os.getpid(), signal.SIGUSR1)
    assert arrive(signals) == [signal.SIGUSR1]  # its own still arrive
""")


def test_a_signal_in_the_instant_of_the_fork_is_the_childs_own() -> None:
    """It is held back until the child has its handlers, and then taken by those."""
    run("""
signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(5))
with Signals((signal.SIGUSR1,)) as signals:
    sending.append(True)
    pid = forked(lambda: 0)
    assert end_of(pid) == 5
    assert signals.read() == []
""")


def test_a_child_that_leaves_as_its_parent_will_disturbs_nothing() -> None:
    run("""
with Signals((signal.SIGUSR1,)) as signals:
    def leave():
        signals.__exit__(None, None, None)
        return 0 if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1 else 1

    assert end_of(forked(leave)) == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    assert arrive(signals) == [signal.SIGUSR1]
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
""")

"""The thread that sends on what the broker has not taken at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from stages.runtime.sender import Sender

CAP_S = 20.0


class Keeper:
    """Keeps so many things; its descriptor tells that one more is taken."""

    def __init__(self, things: int) -> None:
        self.left = things
        self.sent = threading.Event()
        self.threads: set[str] = set()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.is_closed = False

    def take(self) -> None:
        os.write(self._write, b"x")

    def fileno(self) -> int:
        if self.is_closed:
            raise ValueError("closed")
        return self._read

    def go_on(self) -> bool:
        self.threads.add(threading.current_thread().name)
        if self.is_closed:
            return True
        try:
            self.left -= len(os.read(self._read, 1))
        except BlockingIOError:
            pass
        if not self.left:
            self.sent.set()
        return not self.left

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender()
    yield made
    made.stop()
    assert "sender" not in [thread.name for thread in threading.enumerate()]


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper(3)
    yield made
    made.close()


def test_there_is_no_thread_before_something_is_kept(sender: Sender) -> None:
    assert "sender" not in [thread.name for thread in threading.enumerate()]


def test_what_is_kept_leaves_as_it_is_taken_and_by_another_thread(sender: Sender, keeper: Keeper) -> None:
    sender.see_to(keeper)
    for _ in range(3):
        assert not keeper.sent.is_set()
        keeper.take()
    assert keeper.sent.wait(CAP_S)
    assert keeper.threads == {"sender"}


def test_it_may_be_asked_again_and_again_and_of_several(sender: Sender, keeper: Keeper) -> None:
    others = [Keeper(1) for _ in range(3)]
    try:
        for one in (keeper, *others):
            sender.see_to(one)
        for other in reversed(others):
            other.take()
            assert other.sent.wait(CAP_S)
        sender.see_to(keeper)
        for _ in range(3):
            keeper.take()
        assert keeper.sent.wait(CAP_S)
    finally:
        sender.stop()
        for other in others:
            other.close()


def test_what_is_kept_just_as_the_last_leaves_is_seen_to(sender: Sender, keeper: Keeper) -> None:
    """The main thread sends more between the word that nothing is left and what the other one makes of it."""
    again = threading.Event()

    class Late(Keeper):
        def go_on(self) -> bool:
            done = super().go_on()
            if done and not again.is_set():
                again.set()
                self.left = 1
                self.sent.clear()
                sender.see_to(self)
            return done

    late = Late(1)
    try:
        sender.see_to(late)
        late.take()
        assert again.wait(CAP_S)
        late.take()
        assert late.sent.wait(CAP_S)
    finally:
        sender.stop()
        late.close()


def test_one_that_is_closed_is_forgotten(sender: Sender, keeper: Keeper) -> None:
    closed = Keeper(1)
    sender.see_to(closed)
    closed.is_closed = True
    sender.see_to(keeper)
    for _ in range(3):
        keeper.take()
    assert keeper.sent.wait(CAP_S)
    sender.stop()
    closed.close()


def test_it_ends_though_something_is_left(sender: Sender, keeper: Keeper) -> None:
    sender.see_to(keeper)
    sender.stop()
    assert not keeper.sent.is_set()

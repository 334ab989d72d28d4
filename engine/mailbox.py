"""How threads of a process hand each other work: a deque each, and a bell for each thread that sleeps in a poll.

The thread announces that it is about to sleep, looks at its mailboxes once more, and polls; a poster rings the bell
only when the thread has announced that. Interleavings: a letter posted before the announcement is seen by the second
look; one posted after it finds the flag set and ends the poll. A needless wake-up is possible and harmless. So a busy
thread costs its posters no system call, and neither does a letter to a part of the same thread.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Generic, TypeVar

Letter = TypeVar("Letter")


class Bell:
    """A descriptor that ends a thread's poll. ``ring`` may be called from anywhere; the rest by the thread."""

    def __init__(self) -> None:
        self.asleep = False
        self.idle = False  # asleep, and not to be woken for what is not urgent, where posters make that difference
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """To be polled for reading."""
        return self._read

    def ring(self) -> None:
        self.asleep = False
        try:
            os.write(self._write, b"\0")
        except OSError:
            pass  # full: the thread is awake already; closed: its owner is ending and nobody reads any more

    def silence(self) -> None:
        """Call when the descriptor was readable. More bytes than this are there only where it is rung without being
        announced; then it is readable once more."""
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass  # an earlier call has taken what was rung meanwhile

    def close(self) -> None:
        reading, writing = self._read, self._write
        self._read = self._write = -1  # whoever still rings must not write into a descriptor that is somebody else's
        os.close(reading)
        os.close(writing)


class Mailbox(Generic[Letter]):
    """Many posters, one owner. ``post`` may be called from any thread; ``take`` only by the owner."""

    def __init__(self, bell: Bell | None = None) -> None:
        self.letters: deque[Letter] = deque()  # to be looked at, not to be changed
        self.bell = bell  # of the thread that takes, once there is one

    def post(self, letter: Letter) -> None:
        self.letters.append(letter)
        bell = self.bell
        if bell is not None and bell.asleep:
            bell.ring()

    def take(self, most: int = 1024) -> list[Letter]:
        """Up to ``most`` letters, in order."""
        letters = self.letters
        taken: list[Letter] = []
        while letters and len(taken) < most:
            taken.append(letters.popleft())
        return taken

"""How the broker's parts hand each other work: a deque each, and one bell for each thread.

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
        except (BlockingIOError, OSError):
            pass  # full: the thread is awake already; closed: the broker is ending and nobody reads any more

    def silence(self) -> None:
        """Call when the descriptor was readable, and only then. More bytes than this cannot be there: between two calls
        the flag is set once, and each poster that saw it set wrote one."""
        os.read(self._read, 4096)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Mailbox(Generic[Letter]):
    """Many posters, one owner. ``post`` may be called from any thread; ``take`` only by the owner."""

    def __init__(self) -> None:
        self.letters: deque[Letter] = deque()  # to be looked at, not to be changed
        self.bell: Bell | None = None  # of the thread that takes, once there is one

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

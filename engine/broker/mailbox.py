"""How broker threads hand each other work: a deque, and a file descriptor that ends the receiver's poll.

The receiver announces that it is about to sleep, looks once more, and polls; a sender writes to the descriptor only
when the receiver has announced that. Interleavings: a letter posted before the announcement is seen by the second
look; one posted after it finds the flag set and wakes the poll. A needless wake-up is possible and harmless. So a
busy receiver costs its senders no system call.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Generic, TypeVar

Letter = TypeVar("Letter")


class Mailbox(Generic[Letter]):
    """Many posters, one owner. ``post`` may be called from any thread; everything else only by the owner."""

    def __init__(self) -> None:
        self._letters: deque[Letter] = deque()
        self._asleep = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._read

    def post(self, letter: Letter) -> None:
        self._letters.append(letter)
        if self._asleep:
            self._asleep = False
            try:
                os.write(self._write, b"\0")
            except (BlockingIOError, OSError):
                pass  # full: the owner is awake already; closed: the broker is ending and nobody reads any more

    def may_sleep(self) -> bool:
        """Announce a poll. False when a letter is here already: do not block."""
        self._asleep = True
        if self._letters:
            self._asleep = False
            return False
        return True

    def take(self, most: int = 1024) -> list[Letter]:
        """Up to ``most`` letters, in order."""
        self._asleep = False
        letters = self._letters
        taken: list[Letter] = []
        while letters and len(taken) < most:
            taken.append(letters.popleft())
        return taken

    def clear_signal(self) -> None:
        """Call when the descriptor was readable, and only then. More bytes than this cannot be there: between two calls
        the flag is set once, and each poster that saw it set wrote one."""
        os.read(self._read, 4096)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

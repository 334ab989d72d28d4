"""Who may ask: the API keys of a frontend process, as their file says at the moment. Judged by :mod:`frontend.gate`.

A token is looked for by what it hashes to. How long that takes says nothing of any key: to come near one's hash is as
hard as to guess its token. What was found is compared in constant time all the same.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import replace
from typing import Final

from engine import apikeyfile
from engine.core.apikeys import ApiKey, Limits, digest_of
from engine.errors import StartError
from frontend import errors
from frontend.board import Board
from frontend.errors import Problem, Refusal

LOOK_S: Final = 1.0  # between two looks at the file
ADMITTED: Final = "admitted"  # beside the reasons of refusals

log = logging.getLogger("stageline.frontend")


class Key:
    """One of them, in one process."""

    __slots__ = ("digest", "limits", "name", "outcomes", "row")

    def __init__(self, key: ApiKey, row: int) -> None:
        self.name = key.name
        self.digest = key.digest
        self.limits: Limits = key.limits
        self.row = row  # of the board
        self.outcomes: dict[str, int] = {}  # requests, by what became of them here

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


class Keys:
    """Those of a file. One event loop."""

    def __init__(self, path: str, board: Board) -> None:
        """Raises StartError for a file that cannot be read."""
        self.path = path
        self._board = board
        self._stamp: apikeyfile.Stamp | None = None
        self._looked_at = 0.0
        self._complaint = ""
        self._by_digest: dict[bytes, Key] = {}
        self._take(apikeyfile.read(path))

    def _take(self, found: tuple[ApiKey, ...]) -> None:
        former, self._by_digest = self._by_digest, {}
        rows: set[int] = {key.row for key in former.values()}
        for one in found:
            key = former.get(one.digest)
            if key is None:
                key = Key(one, self._board.row(one.digest, rows))
                rows.add(key.row)
            key.name, key.limits = one.name, one.limits  # what is under way stays counted
            self._by_digest[one.digest] = key

    def look(self, instant: float) -> None:
        """Take what has changed in the file, at the price of a ``stat`` a second. One that cannot be read changes
        nothing."""
        if instant - self._looked_at < LOOK_S:
            return
        self._looked_at = instant
        self._board.sweep()
        try:
            stamp = apikeyfile.stamp(self.path)
            if stamp == self._stamp:
                return
            found = apikeyfile.read(self.path)
        except (OSError, StartError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("the file of API keys has changed, and is not taken: %s", error)
            return
        is_first, self._stamp, self._complaint = self._stamp is None, stamp, ""
        self._take(found)
        if not is_first:
            log.info("API keys read anew", extra={"keys": len(found)})

    def find(self, credentials: bytes) -> Key | None:
        """Whose ``authorization`` or ``x-api-key`` this is."""
        digest = digest_of(credentials)
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None

    def refusal(self, credentials: bytes) -> Problem | None:
        """Why whoever sends this is nobody we know; None: it is a key's."""
        if not credentials:
            return errors.NO_API_KEY
        return None if self.find(credentials) is not None else errors.WRONG_API_KEY

    def enter(self, credentials: bytes, instant: float) -> Key:
        """Count one more request of this key, until :meth:`leave`. Raises Refusal: 401 or 429."""
        key = self.find(credentials)
        if key is None:
            raise Refusal(errors.WRONG_API_KEY if credentials else errors.NO_API_KEY)
        wait_s = self._board.enter(key.row, key.limits, instant)
        if wait_s:
            problem = errors.KEY_CONCURRENCY if wait_s < 0 else replace(errors.KEY_RATE, retry_after_s=wait_s)
            key.count(problem.reason)
            raise Refusal(problem)
        key.count(ADMITTED)
        return key

    def leave(self, key: Key) -> None:
        self._board.leave(key.row)

    def outcomes(self) -> list[tuple[dict[str, str], int]]:
        """Requests by key and by what became of them, for the metrics: as many labels as the file has names."""
        return [
            ({"key": key.name, "outcome": outcome}, count)
            for key in self._by_digest.values()
            for outcome, count in key.outcomes.items()
        ]

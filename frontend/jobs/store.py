"""The file of jobs: SQLite in its write-ahead mode, shared by the processes of the frontend on this machine.

What :meth:`Store.add` has returned from is on the disk. Large values stand in tables of their own, for SQLite writes a
row whole when any of it changes. Times are the wall clock's, which all processes of one machine share; where it is set
while jobs run, a lease may end early, and a job is computed twice: its first answer counts.

Used by one thread at a time: :class:`frontend.jobs.runner.Runner` has one for it. Any method raises ``sqlite3.Error``.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.core.call import Answer
from frontend.jobs.rules import LATE, LEASE_S, State, after, taken_over

VERSION = 1
BUSY_S = 10.0  # how long a process waits for another one's write

_SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, route TEXT NOT NULL, whose BLOB NOT NULL, key BLOB UNIQUE, what BLOB NOT NULL,
    state INTEGER NOT NULL, created REAL NOT NULL, started REAL, ended REAL, expires REAL NOT NULL,
    owner TEXT NOT NULL DEFAULT '', until REAL NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, until);
CREATE INDEX IF NOT EXISTS by_end ON jobs (expires);
CREATE TABLE IF NOT EXISTS asked (id TEXT PRIMARY KEY, body BLOB NOT NULL, meta BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS hooks (id TEXT PRIMARY KEY, url TEXT NOT NULL, due REAL, tries INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS answered (id TEXT PRIMARY KEY, answer BLOB NOT NULL);
PRAGMA user_version = {VERSION};
COMMIT;
"""
_COLUMNS = "id, route, whose, what, state, created, expires, started, ended"


class Job(NamedTuple):
    """A job as its client sees it. Times in seconds since 1970; ``expires``: when it is given up, or forgotten.
    ``whose``: a digest of what its client authenticates with; ``what``: of what was asked, where it has a key."""

    id: str
    route: str
    whose: bytes
    what: bytes
    state: State
    created: float
    expires: float
    started: float | None = None
    ended: float | None = None


class Taken(NamedTuple):
    """A job that this process has computed now. ``refused``: how often in a row it was."""

    id: str
    route: str
    whose: bytes
    body: bytes
    meta: bytes
    expires: float
    refused: int


class Hook(NamedTuple):
    """Somebody who is told of a job, for the so manieth time."""

    job: Job
    url: str
    tries: int


class Kept(msgspec.Struct, array_like=True):
    """An answer in the file."""

    status: int
    body: bytes
    mime: str
    trail: bytes
    headers: dict[str, str]
    speaker: int

    @staticmethod
    def of(answer: Answer) -> Kept:
        return Kept(
            answer.status, bytes(answer.body), answer.mime, answer.trail, dict(answer.headers), int(answer.speaker)
        )

    def answer(self) -> Answer:
        return Answer(self.status, self.body, self.mime, self.trail, self.headers, self.speaker)


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Kept).decode


class Store:
    """See the module. ``kept_s``: how long an answer is kept."""

    def __init__(self, path: str | Path, *, kept_s: float) -> None:
        """Opens the file, or makes it, for this user alone. Raises sqlite3.Error, OSError."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._kept_s = kept_s
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise sqlite3.DatabaseError(f"{path} was made by a later version of Stageline")
        self._db.executescript(_SCHEMA)
        self._db.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """All of it, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- for clients -------------------------------------------------------------------------------------------------

    def used(self) -> int:
        """Bytes of what is kept."""
        pages = (
            self._db.execute("PRAGMA page_count").fetchone()[0]
            - self._db.execute("PRAGMA freelist_count").fetchone()[0]
        )
        return int(pages * self._db.execute("PRAGMA page_size").fetchone()[0])

    def add(
        self,
        job: Job,
        body: bytes,
        meta: bytes,
        *,
        key: bytes | None = None,
        hook: str = "",
    ) -> Job:
        """A new job, which is given back; with a ``key`` the one that there is with it. ``hook``: who is told
        that it is over."""
        with self._write() as db:
            if key is not None and (found := self._one("key = ?", key)) is not None:
                return found
            db.execute(
                "INSERT INTO jobs (id, route, whose, key, what, state, created, expires) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (job.id, job.route, job.whose, key, job.what, job.state, job.created, job.expires),
            )
            db.execute("INSERT INTO asked VALUES (?, ?, ?)", (job.id, body, meta))
            if hook:
                db.execute("INSERT INTO hooks (id, url) VALUES (?, ?)", (job.id, hook))
        return job

    def find(self, id: str) -> Job | None:
        return self._one("id = ?", id)

    def answer(self, id: str) -> Answer | None:
        row = self._db.execute("SELECT answer FROM answered WHERE id = ?", (id,)).fetchone()
        return None if row is None else _unpack(row[0]).answer()

    def cancel(self, id: str, now: float) -> None:
        """Nobody wants it any more: it is not computed, or its answer is forgotten. Who computes it hears of it by
        :meth:`renew`."""
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = ?, ended = ?, expires = ?, owner = '' WHERE id = ?",
                (State.CANCELLED, now, now + self._kept_s, id),
            )
            self._drop(db, [id])

    def _one(self, where: str, value: object) -> Job | None:
        row = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where}", (value,)).fetchone()
        return (
            None if row is None else Job(row[0], row[1], row[2], row[3], State(row[4]), row[5], row[6], row[7], row[8])
        )

    # --- for whoever has them computed -------------------------------------------------------------------------------

    def take(self, owner: str, most: int, now: float, *, once: Collection[str]) -> list[Taken]:
        """Jobs for this process, the oldest first, and those of processes that have gone; ``once``: routes on which
        nothing is computed twice."""
        if self._db.execute(
            "SELECT 1 FROM jobs WHERE state <= ? AND until <= ? LIMIT 1", (State.RUNNING, now)
        ).fetchone() is None:  # fmt: skip  # most often: nothing is written then
            return []
        taken = []
        with self._write() as db:
            rows = db.execute(
                "SELECT id, route, whose, state, tries, expires, refused FROM jobs "
                "WHERE state <= ? AND until <= ? ORDER BY created LIMIT ?",
                (State.RUNNING, now, most),
            ).fetchall()
            for id, route, whose, state, tries, expires, refused in rows:
                over = LATE if expires <= now else None
                if over is None and state == State.RUNNING:
                    over = taken_over(tries, idempotent=route not in once)
                if over is not None:
                    self._end(db, id, over, now)
                    continue
                db.execute(
                    "UPDATE jobs SET state = ?, owner = ?, until = ?, tries = tries + 1, started = ? WHERE id = ?",
                    (State.RUNNING, owner, now + LEASE_S, now, id),
                )
                body, meta = db.execute("SELECT body, meta FROM asked WHERE id = ?", (id,)).fetchone()
                taken.append(Taken(id, route, whose, body, meta, expires, refused))
        return taken

    def renew(self, owner: str, ids: Sequence[str], now: float) -> list[str]:
        """Says that this process lives and has these jobs. Gives those of them that are not its any more."""
        with self._write() as db:
            db.executemany(
                "UPDATE jobs SET until = ? WHERE id = ? AND state = ? AND owner = ?",
                [(now + LEASE_S, id, State.RUNNING, owner) for id in ids],
            )
            own = {
                row[0]
                for row in db.execute("SELECT id FROM jobs WHERE state = ? AND owner = ?", (State.RUNNING, owner))
            }
        return [id for id in ids if id not in own]

    def give_back(self, owner: str, ids: Sequence[str], until: float, *, refused: bool = False) -> None:
        """These were not computed, as they were ``refused`` or for another reason, and are not to be taken before
        ``until``."""
        with self._write() as db:
            db.executemany(
                "UPDATE jobs SET state = ?, owner = '', until = ?, tries = tries - 1, refused = refused + ? "
                "WHERE id = ? AND owner = ?",
                [(State.WAITING, until, refused, id, owner) for id in ids],
            )

    def end(self, owner: str, id: str, answer: Answer, now: float) -> bool:
        """The job's answer, if it is still this process's."""
        with self._write() as db:
            if db.execute("SELECT 1 FROM jobs WHERE id = ? AND owner = ?", (id, owner)).fetchone() is None:
                return False
            self._end(db, id, answer, now)
        return True

    def hooks(self, most: int, now: float, until: float) -> list[Hook]:
        """Who is to be told now; nobody else tells them before ``until``."""
        where = "SELECT id, url, tries FROM hooks WHERE due <= ? LIMIT ?"
        if not self._db.execute(where, (now, 1)).fetchall():
            return []
        with self._write() as db:
            rows = db.execute(where, (now, most)).fetchall()
            db.executemany(
                "UPDATE hooks SET due = ?, tries = tries + 1 WHERE id = ?", [(until, row[0]) for row in rows]
            )
            found = [(self._one("id = ?", id), url, tries + 1) for id, url, tries in rows]
        return [Hook(job, url, tries) for job, url, tries in found if job is not None]

    def told(self, id: str, due: float | None) -> None:
        """Who waits for this job knows; or is to be told again when it is ``due``."""
        with self._write() as db:
            if due is None:
                db.execute("DELETE FROM hooks WHERE id = ?", (id,))
            else:
                db.execute("UPDATE hooks SET due = ? WHERE id = ?", (due, id))

    def sweep(self, now: float) -> int:
        """Forget what is over and has been kept; give up what was not done in its time. How many."""
        with self._write() as db:
            late = db.execute("SELECT id FROM jobs WHERE expires <= ? AND state = ?", (now, State.WAITING)).fetchall()
            for (id,) in late:
                self._end(db, id, LATE, now)
            over = [
                row[0] for row in db.execute("SELECT id FROM jobs WHERE expires <= ? AND state >= ?", (now, State.DONE))
            ]
            self._drop(db, over)
            db.executemany("DELETE FROM jobs WHERE id = ?", [(id,) for id in over])
        if over:
            self._db.execute("PRAGMA incremental_vacuum")
        return len(over)

    def _end(self, db: sqlite3.Connection, id: str, answer: Answer, now: float) -> None:
        db.execute(
            "UPDATE jobs SET state = ?, ended = ?, expires = ?, owner = '' WHERE id = ?",
            (after(answer), now, now + self._kept_s, id),
        )
        db.execute("DELETE FROM asked WHERE id = ?", (id,))
        db.execute("UPDATE hooks SET due = ? WHERE id = ?", (now, id))
        db.execute("INSERT OR REPLACE INTO answered VALUES (?, ?)", (id, _pack(Kept.of(answer))))

    def _drop(self, db: sqlite3.Connection, ids: Sequence[str]) -> None:
        for table in ("asked", "answered", "hooks"):
            db.executemany(f"DELETE FROM {table} WHERE id = ?", [(id,) for id in ids])

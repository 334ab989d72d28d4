"""The brokers of all cells as one, to a frontend: a client for each, and a choice between them.

A request stays with the broker that it was given to, which is told of its cancellation, and to which it is submitted
again when that broker is started anew (:mod:`engine.core.link`); its number says which one that was. What a broker that
falls silent has not answered moves to another, with the time that is left to it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from engine.client import Client
from engine.clock import now
from engine.config import Deployment
from engine.core import cells
from engine.core.call import BrokerClient, Call
from engine.core.link import View
from engine.core.messages import StageState
from engine.errors import ProtocolError, Unavailable
from engine.joined import join
from engine.log import get_logger
from engine.metrics import Family

log: Final = get_logger("stageline.client")

LOOK_S: Final = 0.25  # between two looks for brokers that have fallen silent


def client_of(deployment: Deployment, name: str, families: Callable[[], list[Family]], url: str = "") -> BrokerClient:
    """The client of a deployment's broker, or brokers; not started."""
    count = deployment.brokers
    if count == 1:
        return Client(deployment, name=name, families=families, url=url)
    # One of them carries what this process counted: it is added up over all.
    return Cells(
        [
            Client(deployment, name=name, families=list if cell else families, cell=cell, url=url)
            for cell in range(count)
        ],
        deployment.keyed,
    )


class Cells:
    """See :class:`engine.client.Client`, whose methods these are."""

    def __init__(self, clients: list[Client], keyed: int) -> None:
        """``keyed``: so many cells, the first ones, know what was asked with an Idempotency-Key."""
        self._clients = clients
        self._count = len(clients)
        self._keyed = keyed
        self._turn = secrets.randbelow(self._count)  # every frontend process begins with another one
        for cell, client in enumerate(clients):
            client.link.peers = Others(self, cell)
        self._moved: dict[int, int] = {}  # numbers that whoever asked knows -> the present ones
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for client in self._clients:
            await client.start()
        self._looking = asyncio.get_running_loop().create_task(self._look_for_ever())

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await asyncio.gather(*(client.close() for client in self._clients))

    def call(self, call: Call, instant: float) -> int:
        clients = self._clients
        # Tries with one key meet in one place.
        asked = [cells.by_key(call.key, self._keyed)] if call.key else self._order(instant)
        refused: Unavailable | None = None
        for cell in asked:
            try:
                return clients[cell].call(call, instant) * self._count + cell
            except Unavailable as error:  # it is known to refuse: another may not
                refused = refused or error
        assert refused is not None
        raise refused

    def withdraw(self, seq: int) -> None:
        seq, cell = divmod(self._present(seq), self._count)
        self._clients[cell].withdraw(seq)

    def consumed(self, seq: int, nbytes: int) -> None:
        seq, cell = divmod(self._present(seq), self._count)
        self._clients[cell].consumed(seq, nbytes)

    def give_back(self) -> None:
        for client in self._clients:
            client.give_back()

    def view(self) -> View:
        return cells.view_of([client.view() for client in self._clients])

    def stage(self, name: str) -> StageState | None:
        instant = now()
        serving = [client for client in self._clients if client.link.ready(instant)] or self._clients
        known = [state for client in serving if (state := client.stage(name)) is not None]
        return next(iter(cells.together([known])), None)

    @property
    def is_joined(self) -> bool:
        return all(client.is_joined for client in self._clients)

    @property
    def pending(self) -> int:
        return sum(client.pending for client in self._clients)

    async def ask(self, what: str, *, timeout_s: float = 2.0) -> bytes:
        told = await asyncio.gather(
            *(client.ask(what, timeout_s=timeout_s) for client in self._clients), return_exceptions=True
        )
        answers = [answer if isinstance(answer, bytes) else None for answer in told]
        for error in told:
            if isinstance(error, BaseException) and not (any(answers) and isinstance(error, Unavailable)):
                raise error
        try:
            return join(what, answers)
        except (ProtocolError, ValueError) as error:
            raise Unavailable(503, "a broker's answer cannot be read") from error

    # --- inside ------------------------------------------------------------------------------------------------------

    def _order(self, instant: float) -> list[int]:
        self._turn += 1
        pending = [client.pending for client in self._clients]
        return cells.order(pending, [self._ready(client, instant) for client in self._clients], self._turn)

    @staticmethod
    def _ready(client: Client, instant: float) -> int:
        return 0 if client.is_stalled else client.link.ready(instant)

    def _present(self, seq: int) -> int:
        while seq in self._moved:
            seq = self._moved[seq]
        return seq

    def _is_waiting(self, seq: int) -> bool:
        seq, cell = divmod(seq, self._count)
        return seq in self._clients[cell].link.waiting

    async def _look_for_ever(self) -> None:
        looked = now()
        while True:
            await asyncio.sleep(LOOK_S)
            former, looked = looked, now()
            if looked - former > 4 * LOOK_S:
                continue  # this process was kept from running: what it has not heard says nothing of others
            try:
                self._look(looked)
            except Exception:
                log.exception("a look for silent brokers failed")

    def _look(self, instant: float) -> None:
        if self._moved:
            self._moved = {old: new for old, new in self._moved.items() if self._is_waiting(self._present(new))}
        for cell, client in enumerate(self._clients):
            link = client.link
            if not client.pending:
                continue
            if link.is_silent(instant):
                movable = [(seq, call) for seq, call in link.movable() if not link.is_patient(call, instant)]
                self._move(cell, movable, instant)
            elif client.is_stalled:
                self._move(cell, link.movable(unsent=True), instant)

    def _move(self, cell: int, movable: Sequence[tuple[int, Call]], instant: float) -> None:
        """Give what a silent broker has not answered to the others, as far as these take it."""
        gone: list[tuple[int, bool]] = []
        for seq, call in movable:
            was_sent = call.is_sent
            if not self._pass_on(cell, seq, call, instant):
                break
            call.moves += was_sent
            gone.append((seq, was_sent))
        if gone:
            self._clients[cell].link.moved(gone)
            told = {"cell": cell + 1, "requests": len(gone)}
            log.warning("requests of a silent broker were given to another", extra=told)

    def _pass_on(self, cell: int, seq: int, call: Call, instant: float) -> bool:
        """Give a cell's request to another one that can serve it. False where there is none, and nothing is changed."""
        other = next((one for one in self._order(instant) if one != cell), cell)
        if other == cell or not self._ready(self._clients[other], instant):
            return False
        was_sent, call.is_sent = call.is_sent, False
        try:
            found = self._clients[other].call(call, instant)
        except Unavailable:
            call.is_sent = was_sent
            return False
        self._moved[seq * self._count + cell] = found * self._count + other
        return True

    def refused(self, cell: int, seq: int, call: Call) -> bool:
        """Whether another cell has taken a request that the door of this one refuses: it may have room."""
        if call.passed_on >= self._count - 1 or not self._pass_on(cell, seq, call, now()):
            return False
        call.passed_on += 1
        return True

    def poisoned(self, cell: int, call: Call) -> None:
        """Every broker refuses what kills workers: it would do so in each cell."""
        for other, client in enumerate(self._clients):
            if other != cell:
                client.link.note_poison(call)
                client.flush()


class Others:
    """The other cells, as the link to one of them sees them."""

    def __init__(self, cells: Cells, cell: int) -> None:
        self._cells = cells
        self._cell = cell

    def takes(self, seq: int, call: Call) -> bool:
        return self._cells.refused(self._cell, seq, call)

    def poisoned(self, call: Call) -> None:
        self._cells.poisoned(self._cell, call)

"""The table: which fault, on which service, how often, and what it may cost. Data; `harm` and `hostile` do it.

The ids stay what they are once given: W workers, P requests that kill, B broker, F frontend and clients, D starting and
stopping, C peers inside, O overload, R resources, S hostile bytes, N network, L long runs, X everything together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from faults import harm, hostile, work
from faults.ledger import Allowed
from faults.place import PAGES, Service, Stage
from faults.scene import Scene

# One service for nearly all rows: two stages with workers to lose, one that computes once only, one that hangs soon,
# and two around those that parts pass.
MAIN: Final = Service(
    "chaos",
    (
        Stage("prep", num=1),
        Stage("model", num=3, fixed_s=0.01, item_s=0.001),
        Stage("once", num=2, more="idempotent = false\n"),
        Stage("brief", num=2, timeout_s=1.0, more="kill_after = 0.5\nmax_wait_time = 60_000\n"),
        Stage(work.TAKES_APART),
        Stage(work.PUTS_TOGETHER),
    ),
    (
        ("/work", ("prep", "model")),
        ("/once", ("once",)),
        ("/brief", ("brief",)),
        (PAGES, (work.TAKES_APART, ("model",), work.PUTS_TOGETHER)),
    ),
    frontends=2,
    more='compression = true\ncapacity_bytes = "8 MiB"\nmax_request_size = "2 MiB"\nmax_response_size = "4 MiB"\n',
)


NOTHING: Final = Allowed()


@dataclass(frozen=True)
class Row:
    """A fault, and what it may cost.

    ``times`` it is done in a test, while ordinary requests are asked at ``rate`` a second; ``before`` and ``after`` it
    so many have to be answered well. ``ends``: the place does not outlive it. ``beside``: it can be done to Mosec as
    well. ``instead``: which test does it in continuous integration, where it would take long here.
    """

    id: str
    about: str
    fault: Callable[[Scene], None]
    allowed: Allowed = NOTHING
    times: int = 1
    rate: float = 100.0
    before: int = 10
    after: int = 10
    once: tuple[str, ...] = ("once",)
    ends: bool = False
    beside: bool = False
    instead: str = ""


ROLLING: Final = "tests/e2e/test_rolling.py"
_FRONT: Final = Allowed(cut="its own connections end with it")
_FULL: Final = Allowed(cut="a connection without a descriptor is reset")

SOAKED: Final = frozenset(("W2", "W8b", "B1", "F1", "F5", "C3", "C7", "O2", "O7", "S9", "X1"))  # mild enough for hours

ROWS: Final[tuple[Row, ...]] = (
    Row("W1", "kill -9 of an idle worker", harm.kill_idle, beside=True),
    Row("W2", "kill -9 of a worker in the middle of a batch", harm.kill_one, times=2, beside=True),
    Row("W3", "kill -9 of all workers of a stage at once", harm.kill_all, beside=True),
    Row("W4", "kill -9 of a worker again and again", harm.kill_again_and_again, beside=True),
    Row("W5", "SIGSTOP of a worker in the middle of a batch", harm.stop_one, beside=True),
    Row("W5p", "SIGSTOP of idle workers, for good", harm.stop_idle_for_good),
    Row("W6", "a request hangs in forward", harm.hang),
    Row("W7", "a request hangs in C, with the interpreter's lock", harm.hang_in_c),
    Row("W8", "a worker exits, faults, aborts under a request, once", harm.die_once, beside=True),
    Row("W8b", "user code raises what is no Exception", harm.raise_anything),
    Row("W10", "a worker dies and cannot start for a while", harm.lose_the_weights),
    Row("W11", "forward returns a result too few", harm.return_too_few),
    Row("W12", "peers of other versions, deployments, tables", hostile.introduce_strangers),
    Row("W13", "kill -9 of a worker that computes once only", harm.kill_one_of_once),
    Row("P1", "a request that kills each worker it meets", harm.poison, beside=True),
    Row("P2", "several of them at once", harm.some_poison),
    Row(
        "P3",
        "the same one sent again and again",
        harm.the_same_poison,
    ),
    Row("P4", "requests that kill when they meet", harm.poison_together),
    Row("P5", "every request kills, for a while", harm.nothing_but_poison),
    Row("P6", "answers larger than may be", harm.answer_too_much),
    Row("B1", "kill -9 of the broker", harm.kill_broker, times=2),
    Row("B3", "SIGSTOP of the broker for a second", harm.stop_broker),
    Row("B3p", "SIGSTOP of the broker, for good", harm.stop_broker_for_good),
    Row("B5", "kill -9 of the broker and of workers with it", harm.kill_broker_and_workers),
    Row("B6", "kill -9 of the broker as soon as it serves", harm.kill_broker_as_soon_as_it_serves),
    Row("B7", "the broker is dead, and nobody starts another for a second", harm.keep_broker_dead),
    Row("F1", "kill -9 of a frontend process", harm.kill_frontend, _FRONT),
    Row("F1k", "kill -9 of all of them, and trying again with a key", harm.try_again_elsewhere, _FRONT),
    Row("F1m", "kill -9 of the one that started them", harm.kill_frontend_master, _FRONT),
    Row("F3", "reload: everything is replaced", harm.reload, instead=ROLLING),
    Row("F5", "clients leave", harm.leave, beside=True),
    Row("F6", "clients do not read large answers", hostile.read_slowly),
    Row("F7", "SIGSTOP of a frontend process, for good", harm.stop_frontend_for_good, _FRONT),
    Row("D2", "scale: a worker more, a worker less", harm.scale, instead=ROLLING),
    Row("D4", "kill -9 of the supervisor, and a start in the same place", harm.kill_supervisor),
    Row("C1", "tries with one Idempotency-Key at a time", harm.try_at_once),
    Row("C3", "deadlines as short as the work, results too late", harm.short_of_time),
    Row("C4", "results of what others hold, twice", hostile.forge_results),
    Row("C6", "metrics that cannot be read, of peers that end", hostile.forge_beats),
    Row("C7", "empty, cut and random parcels, and pickles", hostile.junk_inside),
    Row("C8", "goodbyes for others", hostile.forge_byes),
    Row("C9", "many requests on one connection at once", hostile.desynchronise),
    Row("O2", "a burst", harm.burst, beside=True),
    Row("O3", "a stage takes ten times as long", harm.slow_down),
    Row("O7", "more bytes than may be held", hostile.send_too_much),
    Row("R1", "nothing can be written to files", harm.fill_the_disk),
    Row("R2", "no descriptors left in a frontend process", harm.out_of_descriptors, _FULL),
    Row("R5", "a tenth of the CPU", harm.starve),
    Row("S6", "bytes that are no HTTP", hostile.junk_at_the_door),
    Row("S8", "requests that two parsers read differently", hostile.smuggle),
    Row("S9", "half heads and half bodies", hostile.dawdle),
    Row("S10", "odd request ids", hostile.odd_ids),
    Row("S12", "compressed bombs", hostile.bomb),
    Row("X1", "anything, by chance", harm.anything),
    Row("D1", "SIGTERM under load", harm.terminate, ends=True),
)

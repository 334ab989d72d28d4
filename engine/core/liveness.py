"""How long who waits for whom before it is taken for dead, slow or absent. All of it, for what counts is how these
times stand to each other: each side must have noticed a lost connection and mended it before the other gives it up.

Where the kernel tells of a death - a process on the same host, by its pidfd - nothing here is waited for. These times
are for other hosts, for connections that were cut without a word, and for processes that live and say nothing.
"""

from __future__ import annotations

from math import inf
from typing import Final

# --- beats -----------------------------------------------------------------------------------------------------------

# Between two beats of a worker or a frontend, each answered by the broker. Cheap (64 idle workers make 64 small
# messages a second) and, three missed, still quicker than anybody who watches a page.
BEAT_S: Final = 1.0

# Between two looks of the broker for who is silent: a beat is not worth a timer of its own.
CHECK_S: Final = 1.0

# --- a connection to another host ------------------------------------------------------------------------------------

# *The limit*: a host that does not answer for so long is given up. Kernels see to it at both ends of every connection
# over tcp - what was sent and not acknowledged for so long ends it, and an idle one is probed - so whoever computes
# with the interpreter in its hands is never mistaken for a host that has vanished. Long enough for three
# retransmissions, short enough that a request with the default time limit is computed elsewhere in its time.
LIMIT_S: Final = 2.0

# An idle connection is probed after so long, and again after as long.
PROBE_S: Final = 1.0
PROBES: Final = 2

# A connection that is not made in so long is tried again: a SYN that was lost is repeated after a second, by which time
# the network may have been back for most of it.
CONNECT_S: Final = 1.0

# The most that ZeroMQ waits between two tries to connect to another host: of a try there that fails at once nobody
# hears, and of one that does not the wait is CONNECT_S.
RECONNECT_FAR_S: Final = 0.25

# --- a worker and the broker -----------------------------------------------------------------------------------------

# The first introductions of a worker or a frontend, for all usually start together; then those to a broker that is not
# there, or that refused: it may be another one by then.
INTRODUCE_FAST_S: Final = 0.25
INTRODUCE_SLOW_S: Final = 1.0

# A message that could not be sent is tried again.
RESEND_S: Final = 0.1

# The most that ZeroMQ waits between two tries to connect on one host.
RECONNECT_MOST_S: Final = 1.0

# A worker that has asked and got no answer for a beat longer than a connection can be dead without anybody's notice:
# the broker may be slow, or what is between them may keep a connection open that leads nowhere. A new socket finds out.
BROKER_SILENCE_S: Final = LIMIT_S + BEAT_S

# The broker gives a worker up: ten beats missed are longer than any garbage collection or swap storm that a request
# with a deadline of seconds would survive anyway. A local one that computes may be silent as long as its time limit
# allows, for C code can hold the interpreter: its process is watched.
WORKER_SILENCE_S: Final = 10.0

# A process that exits right after sending leaves its results in the kernel for an instant. Where computing twice is
# harmless nothing is waited for; where it is forbidden, this long.
SETTLE_S: Final = 0.25

# How long a stage without any worker still takes requests: a killed worker is usually back before that.
ABSENT_S: Final = 10.0

# How long a broker that has just started waits for workers that may be there already: it may follow one that died.
REJOIN_S: Final = 3.0

# A lane that has no connection yet is tried again: its worker is connecting.
LANE_RETRY_S: Final = 0.001

# --- a frontend and the broker ---------------------------------------------------------------------------------------

# A frontend that cannot send tries again: clients wait.
CLIENT_RESEND_S: Final = 0.02

# A frontend without a word from the broker for so long refuses new requests instead of keeping them, but for those that
# can wait for longer than the silence has lasted.
LOST_S: Final = 5.0

# Where there are several brokers, requests of one that has not been heard for so long go to another: a beat and half of
# the next one, so that nobody waits for longer than LIMIT_S on a broker that has vanished. To be wrong costs what is
# computed twice.
MOVE_S: Final = 1.5

# The broker drops the requests of a frontend: nobody can be answered there any more.
FRONTEND_SILENCE_S: Final = 10.0

# What a frontend waits past a request's deadline: broker and workers watch the same one, and their answer may still be
# on its way.
ANSWER_GRACE_S: Final = 0.25

# --- a process and whoever started it ---------------------------------------------------------------------------------

# Between two looks from outside at each process (engine.core.vitality). A look costs some 20 us.
LOOK_S: Final = 0.5

# A process that the kernel does not let run for so long will not do so by itself. Shorter stops are somebody's who
# looks at it, and cost less than a start.
STOPPED_S: Final = 2.0

# The broker or a frontend process could have shown itself, and has not: three beats, as BROKER_SILENCE_S.
HANG_S: Final = 3.0

# The most that a frontend which is told to stop takes, behind its `drain_delay`, for those who stand in line.
ACCEPT_S: Final = 1.0


def frontend_stop_s(drain_delay_s: float, grace_s: float) -> float:
    """The most time in which a frontend stops: it turns requests away, takes those who stand in line, and answers what
    it has. Whoever stops it waits so long, and what a process takes to end."""
    return drain_delay_s + ACCEPT_S + grace_s


# --- questions -------------------------------------------------------------------------------------------------------

# How long the stages have to show themselves for a status or a scrape; a question that takes longer is forgotten.
REPORT_S: Final = 2.0

# How they must stand to each other, and why. Checked at import: a process with other times would do harm.
RULES: Final = {
    "an idle connection to a host that has vanished is noticed no later than one that is used":
        PROBES * PROBE_S <= LIMIT_S,
    "who was reached again has introduced itself within 1.5 s": CONNECT_S + RECONNECT_FAR_S + RESEND_S < 1.5,
    "what a vanished host held is computed elsewhere within a default request's deadline": LIMIT_S + BEAT_S <= 3.0,
    "a dead connection is replaced by its kernel before anybody's silence is noticed":
        LIMIT_S < BROKER_SILENCE_S,
    "a frontend has heard of a dead connection before it refuses": LIMIT_S + CONNECT_S < LOST_S,
    "one lost beat is half of what has requests moved, and all is moved within the limit":
        BEAT_S < MOVE_S < LIMIT_S,
    "one late beat is not silence": 2 * BEAT_S < BROKER_SILENCE_S,
    "a question that was asked again is answered before its host is given up": BEAT_S < LIMIT_S,
    "a worker has a new connection, and has introduced itself on it, before it is given up":
        BROKER_SILENCE_S + RECONNECT_MOST_S + BEAT_S + CHECK_S < WORKER_SILENCE_S,
    "workers find a new broker, and are asked who they are, before it calls its stages absent":
        RECONNECT_MOST_S + BEAT_S + RESEND_S < REJOIN_S,
    "a broker that follows another is there before its frontends refuse": REJOIN_S < LOST_S,
    "a frontend refuses before the broker drops what it has": LOST_S + CHECK_S < FRONTEND_SILENCE_S,
    "a stage is not called absent while one of its workers may only be silent":
        WORKER_SILENCE_S <= ABSENT_S,
    "the dead are not waited for longer than the living": SETTLE_S < BEAT_S,
    "an introduction that was lost is repeated before its silence is noticed": INTRODUCE_SLOW_S < BROKER_SILENCE_S,
    "who is stopped is replaced before it is missed: within a default request's deadline":
        STOPPED_S + 2 * LOOK_S <= BROKER_SILENCE_S,
    "one late beat is no hang, and a broker that hangs is replaced before its frontends refuse":
        2 * BEAT_S < HANG_S and HANG_S + 2 * LOOK_S < LOST_S,
    "what is retried is retried before it is waited for": CLIENT_RESEND_S < RESEND_S < BEAT_S,
    "an answer given at the deadline arrives": LANE_RETRY_S < CLIENT_RESEND_S < ANSWER_GRACE_S,
}  # fmt: skip

assert all(RULES.values()), [rule for rule, holds in RULES.items() if not holds]


class Looks:
    """Remembers when silence was looked for last, every CHECK_S: who was stopped itself could hear nobody."""

    def __init__(self) -> None:
        self._last = inf

    def is_late(self, now: float) -> bool:
        """To be asked with each look: whether it comes so late that nobody's silence counts."""
        late = now - self._last > 2 * CHECK_S
        self._last = now
        return late

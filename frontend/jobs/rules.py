"""What becomes of a job: after an answer, and where the process that had it has gone. Pure.

A job is asked for again where nothing was computed: where it was refused for want of room, or the deployment drains or
is being started. What a worker says is its answer, whatever it says. A process that dies with a job may have had it
computed, so what must not be computed twice is not taken over; and what ends process after process is given up.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from engine.core.call import Answer
from engine.core.messages import Speaker

LEASE_S: Final = 5.0  # so long after its last word a process is taken for gone
RENEW_S: Final = 1.0
TRIES_MOST: Final = 5  # processes that have gone with it
AGAIN_S: Final = 0.2  # after the first refusal, and twice that after each further one
AGAIN_MOST_S: Final = 5.0


class State(IntEnum):
    WAITING = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def word(self) -> str:
        return self.name.lower()

    @property
    def is_over(self) -> bool:
        return self >= State.DONE


GIVEN_UP: Final = Answer(500, b"the processes that had this job ended, again and again", speaker=int(Speaker.DOOR))
UNKNOWN: Final = Answer(
    500, b"the process that had this job ended: it may have been computed, and must not be twice",
    speaker=int(Speaker.DOOR),
)  # fmt: skip
LATE: Final = Answer(408, b"inference timeout: the job's time is over", speaker=int(Speaker.DOOR))
TOO_LARGE: Final = Answer(500, b"the answer is larger than max_response_size", speaker=int(Speaker.DOOR))


def asks_again(answer: Answer, refused: int) -> float | None:
    """In how many seconds to ask again, after so many refusals before this one; None: this is the answer."""
    if answer.status not in (429, 503) or answer.speaker == Speaker.WORKER:
        return None
    return max(answer.retry_ms / 1000, min(AGAIN_MOST_S, AGAIN_S * 2.0 ** min(refused, 10)))


def taken_over(tries: int, *, idempotent: bool) -> Answer | None:
    """What a job whose process has gone is answered, after so many tries; None: it is computed again."""
    if not idempotent:
        return UNKNOWN
    return GIVEN_UP if tries >= TRIES_MOST else None


def after(answer: Answer) -> State:
    return State.DONE if answer.status == 200 else State.FAILED

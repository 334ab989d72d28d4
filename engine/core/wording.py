"""What is said of requests that are refused or given up, and of workers for whom there is no room, in one place:
clients and operators read it, and what two sides say of the same thing must not differ. How peers are refused that do
not belong here is said in words that are frozen (:mod:`engine.core.introduction`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DO_NOT_RETRY: Final[Mapping[str, str]] = {"x-should-retry": "false"}  # a header that OpenAI's and other clients obey

ASTRAY: Final = "internal error: the service sent this request where its route does not lead"
TOO_MANY_PIECES: Final = "internal error: this request is in more pieces than can be sent to a worker"
TIMEOUT: Final = "inference timeout"
NO_ROUTE: Final = "internal error: no such route"
DRAINING: Final = "service unavailable: draining"
STOPPING: Final = "service unavailable: stopping"
UNREACHABLE: Final = "service unavailable: the broker cannot be reached"
AT_CAPACITY: Final = "too many requests: at capacity"
BODIES_FILL: Final = "too many requests: their bodies fill the memory for them"
PREDICTED: Final = "too many requests: this one would not be answered in its time"
HOPELESS: Final = "too many requests: this one can no longer be answered in its time"
SHARE: Final = "too many requests: this client has had more than its share of what can be served"
PRIORITY: Final = "too many requests: those of a higher class leave no time for this one"
QUARANTINED: Final = "a request like this one has killed workers; it is not tried again for a while"
TORN: Final = "internal error: a worker died while it streamed this request"
BROKER_LOST_STREAMING: Final = "internal error: the broker was lost while this request was streamed"
UNKNOWN_FATE: Final = (
    "internal error: the broker was lost while it had this request, which may have been computed and must not be twice"
)
KEY_REUSED: Final = "unprocessable: this idempotency-key has come with another request"
KEY_IN_USE: Final = "conflict: the request with this idempotency-key is being answered, as a stream"
OTHER_ROUTE: Final = "service unavailable: the broker does not serve this route as this frontend's file has it"


def died_streaming(stage: str) -> str:
    return f"internal error: a worker of stage {stage} died while it streamed this request"


def died_once_only(stage: str) -> str:
    return f"internal error: a worker of stage {stage} died, and the stage is not replayed"


def died_again(stage: str, times: int) -> str:
    return f"workers of stage {stage} died {times} times under this request; it is not tried again"


def broken(stage: str) -> str:
    return f"service unavailable: stage {stage} is not fed, because whatever it is given fails"


def absent(stage: str) -> str:
    return f"service unavailable: stage {stage} has no worker"


def being_served(count: int) -> str:
    return f"too many requests: {count} are being served"


def full(stage: str) -> str:
    return f"too many requests: stage {stage} is full"


def full_in_bytes(stage: str, nbytes: int) -> str:
    return f"too many requests: stage {stage} holds {nbytes} bytes"


def no_lane(reason: object) -> str:
    return f"the broker can make no lane for this worker: {reason}"

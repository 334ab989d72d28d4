"""What the broker says of requests that it gives up and of workers that cannot join, in one place: clients and
operators read it, and what two parts say of the same thing must not differ.
"""

from __future__ import annotations

from typing import Final

TIMEOUT: Final = "inference timeout"
TORN: Final = "internal error: a worker died while it streamed this request"


def died_streaming(stage: str) -> str:
    return f"internal error: a worker of stage {stage} died while it streamed this request"


def died_once_only(stage: str) -> str:
    return f"internal error: a worker of stage {stage} died, and the stage is not replayed"


def died_again(stage: str, times: int) -> str:
    return f"internal error: workers of stage {stage} died {times} times under this request"


def full_in_bytes(stage: str, nbytes: int) -> str:
    return f"too many requests: stage {stage} holds {nbytes} bytes"


def no_lane(reason: object) -> str:
    return f"the broker can make no lane for this worker: {reason}"

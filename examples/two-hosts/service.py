"""What a stage looks like that runs on two hosts: like any other. Each answer says where it was computed.

`Weigh` sleeps where a model would compute: 5 ms for a batch and 1 ms for each text in it.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from engine import ValidationError, Worker


class Clean(Worker):
    """``{"text": "..."}`` to the text without its spaces at the ends."""

    example = {"text": "some words"}

    def forward(self, data: Any) -> str:
        if not isinstance(data, dict) or not isinstance(data.get("text"), str):
            raise ValidationError('expected {"text": "..."}')
        return str(data["text"]).strip()


class Weigh(Worker):
    def __init__(self) -> None:
        self.host = os.environ.get("HOST_NAME") or socket.gethostname()

    def forward(self, data: list[str]) -> list[dict[str, Any]]:
        time.sleep(0.005 + 0.001 * len(data))
        return [{"words": len(text.split()), "host": self.host, "batch": len(data)} for text in data]

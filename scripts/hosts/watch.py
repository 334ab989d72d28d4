"""How many workers of each stage the broker holds ready, a line of JSON with each change: run on the broker's host.

python watch.py FILE RUN_DIR    prints [monotonic seconds, [ready of each stage]]; [] while it does not answer
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Final

from engine import admin
from engine.config import load
from engine.errors import Unavailable

EVERY_S: Final = 0.02


def main(file: str, folder: str) -> None:
    deployment = load(Path(file), flags={"run_dir": folder})
    told: list[int] | None = None
    while True:
        asked = time.monotonic()
        try:
            status = json.loads(admin.ask(deployment, "status", 1.0))
            ready = [stage["ready"] for stage in status["stages"]]
        except Unavailable:
            ready = []
        if ready != told:
            told = ready
            print(json.dumps([time.monotonic(), ready]), flush=True)
        time.sleep(max(0.0, asked + EVERY_S - time.monotonic()))


if __name__ == "__main__":
    main(*sys.argv[1:])

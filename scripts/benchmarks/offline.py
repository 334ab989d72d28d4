"""The model in a plain loop, batch after batch: the most that serving it can reach. Records like a worker does.

``python -m benchmarks.offline BATCH_SIZE TEXT``: each line on standard input, a number of seconds, runs that long.
"""

from __future__ import annotations

import sys
import time

from benchmarks import work


def main() -> None:
    """Say ``ready``, then run when told to, and say ``done``; ends with its standard input."""
    size, text = int(sys.argv[1]), sys.argv[2]
    embed = work.Embed()
    batch = [{"text": text}] * size
    print("ready", flush=True)
    for line in sys.stdin:
        until = time.monotonic() + float(line)
        while time.monotonic() < until:
            embed.forward(batch)
        print("done", flush=True)


if __name__ == "__main__":
    main()

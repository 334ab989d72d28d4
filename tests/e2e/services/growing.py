"""Runs a deployment as `engine up FILE` does, as on a machine with CPUs to spare, where brokers are full when a test
says so: while the file `full` lies beside the deployment's.

Arguments: the file, and flags as `engine up` has them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from engine import cli, log, supervisor
from engine.config import flags_of, load
from engine.core.growth import Growth
from engine.core.processes import Kind
from engine.supervisor import family


class Roomy(Growth):
    def look(self, cells, room, left_s, now):
        return super().look(cells, room, [100.0 * now], now)


if __name__ == "__main__":
    options = cli.parser().parse_args(["up", *sys.argv[1:]])
    log.setup("supervisor")
    run_dir = Path(load(options.file, flags=flags_of(options)).engine.run_dir)
    pipes: list[int] = []

    def reread():
        return load(options.file, flags=flags_of(options))

    def snapshot(child):
        """As the supervisor has it: what is to be, for those that are on trial."""
        new = run_dir / "next.json"
        return new if child.edition and new.exists() else run_dir / "deployment.json"

    def command(child, status_fd):
        if child.kind is Kind.BROKER:
            pipes.append(os.dup(status_fd))
        return family.command_line(snapshot)(child, status_fd)

    def speak():
        while True:
            if (Path(options.file).parent / "full").exists():
                for pipe in pipes:
                    os.write(pipe, b'{"event":"full"}\n')
            time.sleep(0.05)

    threading.Thread(target=speak, daemon=True).start()
    sys.exit(supervisor.run(reread(), commands=command, reread=reread, growth=Roomy(watch_s=0.2)))

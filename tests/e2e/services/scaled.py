"""Runs a deployment as `engine up FILE` does, but for the windows of its demand, which are seconds here.

Arguments: the file, and flags as `engine up` has them.
"""

from __future__ import annotations

import sys

from engine import cli, log, supervisor
from engine.config import flags_of, load
from engine.config.flags import overrides
from engine.core.demand import Windows

if __name__ == "__main__":
    options = cli.parser().parse_args(["up", *sys.argv[1:]])
    log.setup("supervisor")

    def reread():
        return load(options.file, flags=flags_of(options))

    windows = Windows(up_s=1.0, down_s=1.0)
    if options.on is not None:
        from engine.onray import cluster

        found, _ = overrides(flags_of(options), {})
        sys.exit(cluster.up(reread(), options.on, cluster.tell, found, windows))
    sys.exit(supervisor.run(reread(), reread=reread, windows=windows))

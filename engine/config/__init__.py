"""The configuration: one frozen :class:`Deployment`, made once and passed around.

    schema     every key, once: type, default, unit, range, documentation
    units      "10 MiB" and "250 ms" as numbers
    forms      one value of one key: is it right, and what does the program see
    flags      the command-line flags and environment variables of the keys that have them
    script     the command line of a script that describes its deployment by calls: Mosec's
    ways       the stages of a route, and how it branches
    build      data -> Deployment, with every problem in one ConfigError
    mistakes   where in a file a problem is, and the usual reason
    load       files: stages.toml, and the JSON snapshot that child processes read
    endpoints  where the broker listens, and how long the paths of its sockets can get
    reference  docs/reference.md (run as a program; not imported here)

Imports neither zmq, Falcon nor torch: the supervisor lives on this package alone.
"""

from engine.config.build import build, default_run_dir, name_from, read_key
from engine.config.flags import add_flags, choices, flags_of, in_file_only, strangers
from engine.config.load import FILE_NAME, NEXT, SNAPSHOT, dump, load, run_dir
from engine.config.schema import ClientSection, Deployment, EngineSection, FrontendSection, RouteSection, StageSection

__all__ = [
    "FILE_NAME",
    "NEXT",
    "SNAPSHOT",
    "ClientSection",
    "Deployment",
    "EngineSection",
    "FrontendSection",
    "RouteSection",
    "StageSection",
    "add_flags",
    "build",
    "choices",
    "default_run_dir",
    "dump",
    "flags_of",
    "in_file_only",
    "load",
    "name_from",
    "read_key",
    "run_dir",
    "strangers",
]

"""The commands of ``engine``, in the order in which ``engine --help`` lists them.

    command     what a command is, and what several share
    up          up, down                               check       check
    init        init
    status      status                                 why         why
    logs        logs
    top         top                                    watching    what of a terminal those need that look again
    orders      reload, scale, health: of a supervisor that runs
    processes   broker, frontend, worker: by hand, and how a supervisor starts its own
    ahead       plan, graph, ports, keys, render: before anything runs
    apikeys     api-keys
    bench       bench
    doctor      doctor                                 version     version
    completion  completion

Light: a module imports what its command needs when that runs.
"""

from __future__ import annotations

from typing import Final

from engine.commands.ahead import GRAPH, KEYS, PLAN, PORTS, RENDER
from engine.commands.apikeys import API_KEYS
from engine.commands.bench import BENCH
from engine.commands.check import CHECK
from engine.commands.command import Command, Plain
from engine.commands.completion import COMPLETION
from engine.commands.doctor import DOCTOR
from engine.commands.init import INIT
from engine.commands.logs import LOGS
from engine.commands.orders import HEALTH, RELOAD, SCALE
from engine.commands.processes import BROKER, FRONTEND, WORKER
from engine.commands.status import STATUS
from engine.commands.top import TOP
from engine.commands.up import DOWN, UP
from engine.commands.version import VERSION
from engine.commands.why import WHY

COMMANDS: Final[tuple[Command | Plain, ...]] = (
    INIT, UP, CHECK, DOCTOR, BROKER, FRONTEND, WORKER, STATUS, TOP, WHY, LOGS, RELOAD, SCALE, DOWN, PLAN, BENCH, GRAPH,
    PORTS, KEYS, API_KEYS, HEALTH, RENDER, COMPLETION, VERSION,
)  # fmt: skip

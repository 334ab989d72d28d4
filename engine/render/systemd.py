"""A unit that runs a deployment, or the parts of it that belong on a host."""

from __future__ import annotations

from typing import Final

from engine.config import Deployment
from engine.core.processes import Kind
from engine.render.about import About, label, stop_s
from engine.supervisor.parts import BROKER, FRONTEND

_TEXT: Final = """\
[Unit]
Description={name}: {what}
Wants=network-online.target
After=network-online.target

[Service]
# It counts as started once it serves; for how long a stage may load says the file.
Type=notify
TimeoutStartSec=infinity
WatchdogSec=30
ExecStart={command} up {file}{only}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={folder}
DynamicUser=yes
RuntimeDirectory={unit}
Environment=ENGINE_RUN_DIR=/run/{unit}/run
{key}Restart=on-failure
RestartSec=1
# The supervisor ends its processes in order, and takes at most this long.
KillMode=mixed
TimeoutStopSec={stop}
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def render(deployment: Deployment, about: About) -> str:
    """One unit, of the parts that ``about`` names."""
    parts = about.parts
    kinds = [Kind.BROKER] * parts.has(BROKER) + [Kind.FRONTEND] * parts.has(FRONTEND)
    if any(parts.has(stage.name) for stage in deployment.stages):
        kinds.append(Kind.WORKER)
    unit = "-".join(["stageline", label(deployment.engine.name), *map(label, parts.names)])
    key = ""
    if deployment.engine.key:  # root's file is handed to a user that exists while the unit runs
        key = f"LoadCredential=deployment.key:{deployment.engine.key}\nEnvironment=ENGINE_KEY=%d/deployment.key\n"
    return _TEXT.format(
        name=deployment.engine.name,
        what=str(parts) or "all of it",
        command=about.command,
        file=_quoted(str(deployment.file)),
        only=f" --only {_quoted(str(parts).replace(', ', ','))}" if parts.names else "",
        folder=str(deployment.file.parent).replace("%", "%%"),
        unit=unit,
        key=key,
        stop=stop_s(deployment, *kinds),
    )


def _quoted(word: str) -> str:
    """As systemd reads a word of a command line (systemd.service(5))."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") + '"'

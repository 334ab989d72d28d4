"""Where a deployment is to run: are its ports free, its files and folders as they must be, its brokers reached? And if
it runs: how does it do?"""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from engine.config import Deployment, run_dir
from engine.config.endpoints import is_wildcard
from engine.doctor.finding import Finding, bad, good, note
from engine.errors import StartError, Unavailable
from engine.status import is_missing, is_resting, size

CONNECT_S: Final = 2.0
ASK_S: Final = 3.0
ROOM: Final = 32 << 20  # bytes: the log, the snapshot, and a little; a container has 64 MiB in /dev/shm
SOON: Final = timedelta(days=14)  # that a certificate ends in


def look(deployment: Deployment) -> Iterator[Finding]:
    """All of it."""
    yield from _folder(run_dir(deployment))
    yield from _secrets(deployment)
    told = _status(deployment)
    if told is not None:
        yield from judge_status(told)
    else:
        yield good("running", f'"{deployment.engine.name}" does not run, or not within reach')
        yield from _port(deployment)
    yield from _brokers(deployment)


# --- files -----------------------------------------------------------------------------------------------------------


def _folder(path: Path) -> Iterator[Finding]:
    from engine.supervisor import rundir

    try:
        rundir.check(path)
    except StartError as error:
        yield bad("run_dir", str(error), "set run_dir to a folder that is yours alone")
        return
    above = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(above, os.W_OK):
        yield bad("run_dir", f"{path} cannot be made: {above} is not writable", "set another run_dir")
        return
    about = os.statvfs(above)
    free = about.f_bavail * about.f_frsize
    if free < ROOM or (not about.f_favail and about.f_files):
        yield bad("run_dir", f"{path}: {size(free)} are free there", "make room, or set another run_dir")
        return
    yield good("run_dir", f"{path} ({size(free)} free)")


def _secrets(deployment: Deployment) -> Iterator[Finding]:
    from engine.keyfile import keyring_of

    engine, frontend = deployment.engine, deployment.frontend
    try:
        if keyring_of(deployment) is not None:
            yield good("key", f"{engine.key} is a secret that only its owner may read")
        elif engine.is_open:
            yield note(
                "key",
                "insecure = true: whoever reaches the broker's ports can read and answer requests, and stop the "
                "service",
                "engine keys new, and key = in the file",
            )
    except StartError as error:
        yield bad("key", str(error), "engine keys new makes one; scp -p brings it to the other hosts")
    if frontend.certfile:
        yield _certificate(frontend.certfile, frontend.keyfile)


def _certificate(certfile: str, keyfile: str) -> Finding:
    from frontend import tls

    try:
        tls.context(certfile, keyfile, http2=False)
        until = _ends(certfile)
    except StartError as error:
        return bad("certificate", str(error), "name a certificate and its key, in PEM, that this user may read")
    return judge_certificate(certfile, until, datetime.fromtimestamp(time.time(), tz=timezone.utc))


def _ends(certfile: str) -> datetime:
    """When it does. The standard library reads certificates for nobody but itself, in its tests' helper."""
    decode: Any = ssl._ssl._test_decode_cert  # type: ignore[attr-defined]
    seconds = ssl.cert_time_to_seconds(decode(certfile)["notAfter"])
    return datetime.fromtimestamp(seconds, tz=timezone.utc)


def judge_certificate(name: str, until: datetime, now: datetime) -> Finding:
    day = f"{until:%Y-%m-%d}"
    if until <= now:
        return bad("certificate", f"{name} has ended on {day}", "renew it, and start the frontend again")
    if until - now < SOON:
        return note("certificate", f"{name} ends on {day}", "renew it, and start the frontend again")
    return good("certificate", f"{name}, until {day}")


# --- the network -----------------------------------------------------------------------------------------------------


def _port(deployment: Deployment) -> Iterator[Finding]:
    from engine.supervisor.address import check_port

    frontend = deployment.frontend
    try:
        check_port(frontend.address, frontend.port)
    except StartError as error:  # Busy too
        yield bad("port", str(error), f"`ss -ltnp | grep :{frontend.port}` says by whom; or another one: --port")
        return
    where = "all addresses" if is_wildcard(frontend.address) else frontend.address
    yield good("port", f"{frontend.port} is free, on {where}")


def _brokers(deployment: Deployment) -> Iterator[Finding]:
    """Those on other hosts, one by one."""
    for address in deployment.engine.broker:
        if address.startswith("@"):
            continue
        host, _, port = address.rpartition(":")
        began = time.monotonic()
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            yield bad(
                "broker",
                f"{address}: {error}",
                "is it up, does its name lead there, does the firewall let it through? engine ports says which ports",
            )
        else:
            yield good("broker", f"{address} takes connections ({1e3 * (time.monotonic() - began):.1f} ms)")


# --- what runs -------------------------------------------------------------------------------------------------------


def _status(deployment: Deployment) -> dict[str, Any] | None:
    from engine import admin

    try:
        if not deployment.engine.is_tcp and not run_dir(deployment).exists():
            return None
        told: dict[str, Any] = json.loads(admin.ask(deployment, "status", ASK_S))
    except (Unavailable, StartError, ValueError):
        return None
    return told


def judge_status(told: Mapping[str, Any]) -> Iterator[Finding]:
    """What a running deployment says of itself."""
    name = told.get("name", "?")
    yield good("running", f'"{name}" is up for {round(told.get("uptime_s", 0))} s')
    for stage in told.get("stages", ()):
        yield from _stage(stage)
    yield from _versions(told)
    if errors := told.get("errors"):
        last = errors[0] if isinstance(errors, list) else {}
        yield note(
            "failures",
            f"{len(errors)} of late; the last: {last.get('status', '?')} at {last.get('stage', '?')}: "
            f"{str(last.get('message', ''))[:100]}",
            "engine status shows more of them, engine logs --request ID what the log says of one",
        )


def _stage(stage: Mapping[str, Any]) -> Iterator[Finding]:
    name, ready, wanted = stage.get("name", "?"), stage.get("ready", 0), stage.get("wanted", 0)
    if error := stage.get("error"):
        yield bad("stage", f"{name}: {error}", "see the broker's log")
        return
    if is_resting(stage):
        pass
    elif not ready and is_missing(stage):
        yield bad("stage", f"{name} has no worker that is ready, of {wanted}: its requests get 503",
                  f"engine logs --stage {name} --level warning says why they do not start")  # fmt: skip
    elif ready < wanted:
        yield note("stage", f"{name} has {ready} of {wanted} workers ready", f"engine logs --stage {name} says why")
    deaths = stage.get("deaths", 0)
    if deaths:
        yield note(
            "deaths",
            f"workers of {name} have died {deaths} times ({stage.get('replayed', 0)} items were computed again)",
            f"engine logs --stage {name} --level warning says of what; recycle_after is for models that leak",
        )
    demand = stage.get("demand_workers", 0.0)
    asked = f"{name} is asked for as much as {demand:.1f} workers can do"
    if bounds := stage.get("bounds"):
        if demand > bounds[1]:
            yield note("demand", f"{asked}, and its max is {bounds[1]}", "a larger max, if there is the room")
    elif wanted and demand > wanted:
        yield note("demand", f"{asked}, and has {wanted}",
                   f"engine scale {name}={int(demand / 0.8) + 1}, if this machine has the room")  # fmt: skip


def _versions(told: Mapping[str, Any]) -> Iterator[Finding]:
    """Processes of one deployment may differ while a version is rolled out, and not for long."""
    found: dict[str, int] = {}
    for one in _processes(told):
        if version := one.get("version"):
            found[version] = found.get(version, 0) + 1
    if len(found) > 1:
        each = ", ".join(f"{count} of {version}" for version, count in sorted(found.items()))
        yield note("versions", f"its processes are of several versions of Stageline: {each}",
                   "install the same everywhere and start again what is older")  # fmt: skip


def _processes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Whatever in a status is about a process."""
    if isinstance(value, dict):
        if "pid" in value:
            yield value
        for one in value.values():
            yield from _processes(one)
    elif isinstance(value, list):
        for one in value:
            yield from _processes(one)

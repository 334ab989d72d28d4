"""From parsed data to a :class:`Deployment`: every key read, every rule between keys checked, every problem
in one error.

Data comes from a ``stages.toml``, from the JSON snapshot of one, or from the Python API; all go through
here, so the same rules hold whichever way a deployment was described. Reads no file and no environment of
its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from engine.config import endpoints
from engine.config.flags import Override, overrides
from engine.config.forms import BadValue, expectation, from_data, from_text, nearest, shown
from engine.config.schema import (
    DEFAULT_ROUTE,
    JOBS,
    OIP,
    PATHS,
    SECTIONS,
    ClientSection,
    Deployment,
    EndpointSection,
    EngineSection,
    FrontendSection,
    RouteSection,
    StageSection,
    default,
    key_of,
    keys,
    types,
)
from engine.config.units import warm_up_s
from engine.config.ways import splits
from engine.core import oip
from engine.errors import ConfigError

Values = dict[str, Any]  # keys of one table that could be read, with their values
# What other programs call a key, where no likeness of letters leads to ours.
_ELSEWHERE: Final = {
    "host": "address", "workers": "num", "replicas": "num", "min_replicas": "min", "max_replicas": "max",
    "class": "worker", "module": "worker", "gpu": "device",
}  # fmt: skip
_ARRAYS: Final = ("stage", "route", "client", "endpoint")  # the sections written [[...]]


def build(
    data: Mapping[str, Any],
    *,
    file: Path,
    label: str,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Deployment:
    """A deployment out of ``data``, in the structure of a ``stages.toml``. Raises ConfigError with every
    problem.

    ``file`` is absolute; its folder names the deployment by default and is where relative paths start.
    ``label`` names the source in messages. ``flags`` and ``environ`` override keys
    (:mod:`engine.config.flags`); the environment also says where the default run directory lies.
    """
    environ = environ or {}
    found, problems = overrides(flags or {}, environ)
    reader = _Reader(label, file, found, problems)
    return _resolve(reader.read(data), environ, label)


def rebuild(data: Mapping[str, Any], *, file: Path, label: str) -> Deployment:
    """A deployment out of a snapshot: checked like any other data, but overridden by nothing and left as it is."""
    return _Reader(label, file, {}, []).read(data)


def read_key(section: str, name: str, value: object) -> Any:
    """One value as :func:`build` would read it: for callers that check as they go. ``Any``: keys are of all types.

    Raises ValueError with what was expected; KeyError, with the nearest key, when the section has no such key.
    """
    kind = SECTIONS[section]
    if name not in keys(kind):
        raise KeyError(f"unknown key {name}{_meant_key(section, name)}")
    return from_data(keys(kind)[name], types(kind)[name], value)


class _Reader:
    """Walks the data once, gathering problems; what is broken is left out and the walk goes on."""

    def __init__(self, label: str, file: Path, found: Mapping[tuple[str, str], Override], problems: list[str]) -> None:
        self._label = label
        self._file = file
        self._overrides = found
        self._problems = problems

    def read(self, data: Mapping[str, Any]) -> Deployment:
        for name in data:
            if name not in SECTIONS:
                self._problem(name, _unknown(name, data[name]))
        engine = self._table("engine", self._mapping(data, "engine"), "engine")
        frontend = self._table("frontend", self._mapping(data, "frontend"), "frontend")
        stages = [
            (where, self._table("stage", _with_size(raw), where)) for where, raw in self._array(data, "stage", "name")
        ]
        routes = [(where, self._table("route", raw, where)) for where, raw in self._array(data, "route", "path")]
        own = [(where, self._table("endpoint", raw, where)) for where, raw in self._array(data, "endpoint", "path")]
        clients = [(where, self._table("client", raw, where)) for where, raw in self._array(data, "client", "name")]
        if not stages and not self._broken(data, "stage") and "stages" not in data:  # that was told already
            self._problem("stage", "expected at least one [[stage]] table")
        self._check_stages(stages)
        self._check_routes(routes, [values["name"] for _, values in stages if "name" in values])
        self._check_jobs(frontend, [*routes, *own])
        self._check_goals(frontend, routes)
        self._check_caches(stages, routes)
        self._check_clients(clients)
        self._check_endpoints(own, routes)
        self._check_ports(engine, len(stages))
        self._check_cells(engine, stages)
        self._check_access(engine)
        if self._problems:
            raise ConfigError(self._problems)
        if not routes:
            routes = [("", {"path": DEFAULT_ROUTE, "stages": tuple(values["name"] for _, values in stages)})]
        return Deployment(
            file=self._file,
            engine=EngineSection(**engine),
            frontend=FrontendSection(**frontend),
            stages=tuple(StageSection(**values) for _, values in stages),
            routes=tuple(RouteSection(**values) for _, values in routes),
            clients=tuple(ClientSection(**values) for _, values in clients),
            endpoints=tuple(EndpointSection(**values) for _, values in own),
        )

    # --- tables ---

    def _table(self, section: str, raw: Mapping[str, Any], where: str) -> Values:
        kind = SECTIONS[section]
        known = keys(kind)
        for name in raw:
            if name not in known:
                self._problem(f"{where}.{name}", f"unknown key{_meant_key(section, name)}")
        hints = types(kind)
        values: Values = {}
        for item in fields(kind):
            name, key = item.name, key_of(item)
            override = self._overrides.get((section, name))
            if name in raw:
                try:
                    values[name] = from_data(key, hints[name], raw[name])
                except BadValue as error:
                    self._problem(f"{where}.{name}", str(error))
                else:
                    if key.form in PATHS:
                        values[name] = _absolute(values[name], self._file.parent)
            elif default(item) is not MISSING:
                values[name] = default(item)
            else:
                self._problem(f"{where}.{name}", f"missing; expected {expectation(key, hints[name])}")
            if override is not None:
                try:
                    values[name] = from_text(key, hints[name], override.text)
                except BadValue as error:
                    self._problems.append(f"{override.source}: {error}")
                else:
                    if key.form in PATHS:
                        values[name] = _absolute(values[name], Path.cwd())
        return values

    def _mapping(self, data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        raw = data.get(name, {})
        if isinstance(raw, Mapping):
            return raw
        self._problem(name, f"expected a table, written [{name}], got {shown(raw)}")
        return {}

    def _array(self, data: Mapping[str, Any], name: str, title: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each table of an array, with what messages call it: ``stage[1] "encode"``."""
        if self._broken(data, name):
            self._problem(name, f"expected tables, each written [[{name}]], got {shown(data[name])}")
            return
        for index, raw in enumerate(data.get(name, [])):
            called = raw.get(title)
            yield f"{name}[{index}]" + (f" {shown(called)}" if isinstance(called, str) else ""), raw

    @staticmethod
    def _broken(data: Mapping[str, Any], name: str) -> bool:
        raw = data.get(name, [])
        return not isinstance(raw, (list, tuple)) or not all(isinstance(item, Mapping) for item in raw)

    def _problem(self, where: str, what: str) -> None:
        self._problems.append(f"{self._label}: {where}: {what}")

    # --- rules between keys ---

    def _check_stages(self, stages: Sequence[tuple[str, Values]]) -> None:
        seen: dict[str, int] = {}
        for index, (where, values) in enumerate(stages):
            name = values.get("name")
            if name is not None and seen.setdefault(name, index) != index:
                self._problem(f"{where}.name", f"stage[{seen[name]}] has this name already")
            self._check_batches(where, values)
            num = values.get("num")
            if num is None:
                continue
            self._check_range(where, num, values)
            env, cpus = values.get("env"), values.get("cpus")
            if isinstance(env, list) and len(env) != num:
                self._problem(
                    f"{where}.env", f"expected one table, or one for each of num = {num} workers, got {len(env)}"
                )
            if isinstance(cpus, list) and isinstance(cpus[0], list) and len(cpus) != num:
                self._problem(
                    f"{where}.cpus", f"expected one list, or one for each of num = {num} workers, got {len(cpus)}"
                )

    def _check_range(self, where: str, num: int, values: Values) -> None:
        least, most = values.get("min", 1), values.get("max", 0)
        if num < 1 and least:
            self._problem(f"{where}.num", f"expected 1 or more, or min = 0 beside it, got {num}")
        elif least > max(num, 1):
            self._problem(f"{where}.min", f"expected at most num = {num}, with which it begins, got {least}")
        if 0 < most < num:
            self._problem(f"{where}.max", f"expected at least num = {num}, with which it begins, got {most}")
        if not num and not least and not most:
            self._problem(f"{where}.max", "expected 1 or more where num = 0: else it would never have a worker")
        lists = [name for name in ("env", "cpus") if _is_per_worker(values.get(name))]
        if lists and (most or not least):
            self._problem(
                f"{where}.{lists[0]}", "expected no list with one for each worker where min and max scale the stage"
            )

    def _check_batches(self, where: str, values: Values) -> None:
        sizes, most = values.get("batch_sizes"), values.get("max_batch_size")
        if sizes and most is not None and sizes[-1] != most:
            why = f"a batch of {most} would have no size" if sizes[-1] < most else "no batch would be so large"
            self._problem(
                f"{where}.batch_sizes",
                f"expected max_batch_size = {most} to be the largest, got {shown(list(sizes))} ({why}); "
                "leave max_batch_size out, or make them agree",
            )
        if sizes and values.get("max_batch_cost"):
            self._problem(
                f"{where}.max_batch_cost",
                "expected no batch_sizes beside it: a batch is as large as its items are cheap, and would be padded to "
                "another size; leave one of the two out",
            )
        warm_up, start = values.get("warm_up"), values.get("start_timeout")
        if warm_up is not None and start is not None and (warm_up_s(warm_up) or 0.0) >= start:
            self._problem(
                f"{where}.warm_up",
                f"expected less than start_timeout = {start:g} s, in which the worker has to load too, "
                f"got {shown(warm_up)}",
            )

    def _check_routes(self, routes: Sequence[tuple[str, Values]], names: Sequence[str]) -> None:
        seen: dict[str, int] = {}
        used: set[str] = set()
        for index, (where, values) in enumerate(routes):
            path = values.get("path")
            if path is not None and seen.setdefault(path, index) != index:
                self._problem(f"{where}.path", f"route[{seen[path]}] has this path already")
            self._check_protocol(where, values, any(other.get("protocol") == OIP for _, other in routes))
            for name in values.get("stages", ()):
                used.add(name)
                if name not in names:
                    self._problem(f"{where}.stages", f"there is no stage {shown(name)}{nearest(name, names)}")
        if not routes or any("stages" not in values for _, values in routes) or not used.issubset(names):
            return  # one default route through all; or a list that is broken, and may mean any stage
        for name in dict.fromkeys(names):
            if name not in used:
                self._problem("route", f"no route passes through stage {shown(name)}; name it in one, or remove it")

    def _check_caches(self, stages: Sequence[tuple[str, Values]], routes: Sequence[tuple[str, Values]]) -> None:
        caches = {values["name"]: values["cache"] for _, values in stages if values.get("cache") and "name" in values}
        places = {values.get("name"): where for where, values in stages}
        for where, values in routes:
            line: Sequence[str] = values.get("stages", ())
            for number, split in splits(line, {name: place for place, name in enumerate(line)}).items():
                if (name := line[number]) in caches:
                    self._problem(
                        f"{places[name]}.cache",
                        f"what {name} returns goes on in parts on {where}, and cannot be kept: give the cache to a "
                        "stage that the parts pass",
                    )
                gather = line[split.gather]
                if gather not in caches or not (key := caches[gather]["key"]):
                    continue
                if not split.names and not split.field:
                    self._problem(
                        f"{places[gather]}.cache",
                        f"{gather} gets a list on {where}, which has no fields: leave out key",
                    )
                elif split.names and (others := [one for one in key if one not in split.names]):
                    self._problem(
                        f"{places[gather]}.cache",
                        f"expected key to be of {', '.join(split.names)}, which {gather} gets on {where}, got "
                        f"{shown(others[0])}{nearest(others[0], split.names)}",
                    )

    def _check_protocol(self, where: str, values: Values, speaks_oip: bool) -> None:
        path = values.get("path")
        if path is None:
            return
        is_oip = values.get("protocol") == OIP
        if is_oip and oip.model_of(path) is None:
            self._problem(
                f"{where}.path",
                f'expected /v2/models/NAME/infer, as protocol = "oip" has it (NAME: letters, digits, . _ and -, not '
                f'"stats"), got {shown(path)}',
            )
        elif is_oip and values.get("model"):
            self._problem(
                f"{where}.model",
                f'with protocol = "oip" the path names the model, got {", ".join(map(shown, values["model"]))}',
            )
        elif not is_oip and speaks_oip and oip.is_about(path):
            self._problem(f"{where}.path", f'{shown(path)} is a path of the routes with protocol = "oip"')

    def _check_jobs(self, frontend: Values, routes: Sequence[tuple[str, Values]]) -> None:
        if frontend.get("webhooks") and not frontend.get("jobs"):
            self._problem("frontend.webhooks", "they tell of jobs, and there are none without [frontend] jobs")
        for where, values in routes:
            if frontend.get("jobs") and f"{values.get('path', '')}/".startswith(f"{JOBS}/"):
                self._problem(
                    f"{where}.path", f"{JOBS} is where jobs are asked for; name another, or no [frontend] jobs"
                )

    def _check_goals(self, frontend: Values, routes: Sequence[tuple[str, Values]]) -> None:
        timeout = frontend.get("timeout")
        for where, values in [("frontend", frontend), *routes]:
            if timeout is not None and (slo := values.get("slo", 0.0)) > timeout:
                self._problem(
                    f"{where}.slo",
                    f"expected at most frontend.timeout = {timeout:g} s, got {slo:g} s: nobody waits longer",
                )

    def _check_clients(self, clients: Sequence[tuple[str, Values]]) -> None:
        for name in ("name", "token_sha256"):
            seen: dict[str, int] = {}
            for index, (where, values) in enumerate(clients):
                value = values.get(name)
                if value is not None and seen.setdefault(value, index) != index:
                    self._problem(f"{where}.{name}", f"client[{seen[value]}] has this one already")

    def _check_endpoints(self, own: Sequence[tuple[str, Values]], routes: Sequence[tuple[str, Values]]) -> None:
        paths = [values.get("path") for _, values in routes] or [DEFAULT_ROUTE]
        seen: dict[str, int] = {}
        for index, (where, values) in enumerate(own):
            path = values.get("path")
            if path is not None and seen.setdefault(path, index) != index:
                self._problem(f"{where}.path", f"endpoint[{seen[path]}] has this path already")
            if path in paths and "POST" in values.get("methods", ()):
                self._problem(f"{where}.methods", f"POST {path} is a route's: leave it out, or take another path")
            if not values.get("handler", "x"):
                self._problem(f"{where}.handler", 'expected "module:function"')

    def _check_cells(self, engine: Values, stages: Sequence[tuple[str, Values]]) -> None:
        cells = engine.get("cells", "auto")
        if cells == "auto":
            return
        for name in ("bind", "broker"):
            if cells > 1 and engine.get(name):
                self._problem(
                    "engine.cells",
                    f"expected 1 with engine.{name}, got {cells}: one broker listens on a host; engine.broker lists "
                    "those of all hosts",
                )
        for where, values in stages:
            num = values.get("num")
            if num and num < cells:
                self._problem(
                    f"{where}.num", f"expected at least engine.cells = {cells}, a worker for each of them, got {num}"
                )

    def _check_access(self, engine: Values) -> None:
        where = "bind" if engine.get("bind") else "broker"
        if engine.get(where) and not engine.get("key") and not engine.get("insecure"):
            self._problem(
                f"engine.{where}",
                "every user of this machine can reach a tcp port, and other hosts may: name a key below [engine], key "
                '= "deployment.key" (`engine keys new` makes it); or leave bind out, for private sockets; or write '
                "insecure = true below [engine], to let everybody in",
            )

    def _check_ports(self, engine: Values, stages: int) -> None:
        port = urlsplit(engine.get("bind", "")).port
        lanes: int = engine.get("lanes", EngineSection.lanes)
        last = (port or 0) + endpoints.Endpoints("", ("",) * stages).first_lane + lanes - 1
        if last > endpoints.PORT_MAX:
            what = f"{stages} stages and {lanes} lanes" if stages > 1 else f"one stage and {lanes} lanes"
            self._problem(
                "engine.bind", f"{what} need the ports up to {last}; expected a lower PORT, or fewer engine.lanes"
            )


def _resolve(deployment: Deployment, environ: Mapping[str, str], label: str) -> Deployment:
    """Fill in the defaults that depend on other keys, on the file's place, or on the environment."""
    engine, frontend = deployment.engine, deployment.frontend
    name = engine.name or name_from(deployment.file.parent.name)
    if not engine.is_tcp and (problem := _too_long(engine, name, environ, len(deployment.stages))):
        raise ConfigError([f"{label}: {problem}"])
    engine = replace(engine, name=name, run_dir=engine.run_dir or default_run_dir(name, environ))
    stages = []
    for stage in deployment.stages:
        timeout = stage.timeout or frontend.timeout
        stages.append(
            replace(
                stage,
                timeout=timeout,
                kill_after=stage.kill_after or timeout,
                isolate=stage.idempotent if stage.isolate is None else stage.isolate,
            )
        )
    return replace(deployment, engine=engine, stages=tuple(stages))


def _too_long(engine: EngineSection, name: str, environ: Mapping[str, str], stages: int) -> str:
    """What to shorten, if the paths of sockets would be longer than a system takes; else nothing."""
    path, room = engine.run_dir or default_run_dir(name, environ), endpoints.room(stages, engine.first_cells)
    over = endpoints.length(path) - room
    if over <= 0:
        return ""
    why = f"the paths of sockets in {path} would be too long for the system, by {over} bytes"
    if engine.run_dir:
        return f"engine.run_dir: expected a path of at most {room} bytes: {why}"
    whose = "" if engine.name else ", the name of the folder,"
    if over < len(name):
        return f"engine.name: {shown(name)}{whose} is too long: {why}; set a shorter name or engine.run_dir"
    return f"engine.run_dir: set a short one, of at most {room} bytes: {why}, because $XDG_RUNTIME_DIR is so long"


def _is_per_worker(value: object) -> bool:
    """Whether a key has something of its own for each worker."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], (dict, list))


def name_from(text: str) -> str:
    """A valid name of a deployment or stage, as near to ``text`` as can be."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:64] or "deployment"


def default_run_dir(name: str, environ: Mapping[str, str]) -> str:
    """``$XDG_RUNTIME_DIR/stageline/NAME``, else ``/tmp/stageline-UID/NAME``.

    ``/tmp`` by name and not ``$TMPDIR``: two shells with different ones must find the same deployment, and
    socket paths must stay short.
    """
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):  # the XDG base directory specification: relative paths are to be ignored
        return os.path.join(runtime, "stageline", name)
    return f"/tmp/stageline-{os.getuid()}/{name}"


def _absolute(path: str, base: Path) -> str:
    return os.path.abspath(base / os.path.expanduser(path)) if path else ""


def _with_size(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage that says which sizes there are has said which is the largest."""
    if "max_batch_size" in raw or "batch_sizes" not in raw:
        return raw
    try:
        sizes = read_key("stage", "batch_sizes", raw["batch_sizes"])
    except ValueError:  # it is told where it stands
        return raw
    return {**raw, "max_batch_size": sizes[-1]} if sizes else raw


def _section_titles() -> dict[str, str]:
    return {name: f"[[{name}]]" if name in _ARRAYS else f"[{name}]" for name in SECTIONS}


def _unknown(name: str, value: object) -> str:
    """A key before the first table stands in none."""
    owner = next((title for known, title in _section_titles().items() if name in keys(SECTIONS[known])), None)
    if owner is not None and not isinstance(value, Mapping | list | tuple):
        return f"unknown key; it belongs to {owner}: write it below that line"
    return f"unknown section{_meant(name, _section_titles())}"


def _meant(name: str, titles: Mapping[str, str]) -> str:
    near = nearest(name, list(titles))
    for known, title in titles.items():
        near = near.replace(f" {known}?", f" {title}?")
    return near or "; sections are " + ", ".join(titles.values())


def _meant_key(section: str, name: str) -> str:
    """The nearest key of this section, or the section where this very key would be right."""
    if (meant := _ELSEWHERE.get(name)) in keys(SECTIONS[section]):
        return f"; did you mean {meant}?"
    for other, kind in SECTIONS.items():
        if other != section and name in keys(kind):
            return f"; it belongs to {_section_titles()[other]}"
    return nearest(name, list(keys(SECTIONS[section])))

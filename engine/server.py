"""The Python API: a deployment described by calls in a script instead of a ``stages.toml``.

::

    from engine import Server, Worker

    class Double(Worker):
        def forward(self, data):
            return {"y": 2 * data["x"]}

    if __name__ == "__main__":
        server = Server()
        server.append_worker(Double, num=2)
        server.run()

The guard is needed: worker processes import the script to find the class, and must not start a deployment of their own
(:meth:`Server.run` refuses to, if they try). Everything else is as with a file: the same keys, checks and environment
variables, the same supervisor. The flags are those that Mosec's scripts have (:mod:`engine.config.script`). This module
only translates.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine import loader, log
from engine.config import Deployment, build, default_run_dir, name_from, read_key, script, strangers
from engine.config.schema import DEFAULT_ROUTE
from engine.config.script import arguments
from engine.errors import ConfigError, StartError
from engine.exitcodes import ExitCode

if TYPE_CHECKING:
    from stages.base import Worker

Env = Mapping[str, str] | Sequence[Mapping[str, str]]

START_METHODS: Final = ("spawn", "fork")  # both words are accepted; see Runtime

__all__ = ["Runtime", "Server", "arguments"]


class Runtime:
    """One pool of worker processes: a class, and how it runs. One Runtime on several routes is one shared pool.

    ``num`` processes; ``max_batch_size`` 1 passes single values to ``forward``; ``max_wait_time`` in milliseconds and
    ``timeout`` in seconds, for both of which 0 means the default (``--wait`` or 10 ms; the timeout of the deployment);
    ``env`` a mapping for all workers or a list with one for each. ``start_method`` is accepted for scripts that give
    it: each worker is a fresh interpreter, as with "spawn", and "fork" is warned about, because what the script has in
    memory is not there. Other keyword arguments are the further keys of a ``[[stage]]``: ``name``, ``device``,
    ``cpus``, ``args``, ``eager``, ``idempotent`` ... (docs/reference.md).

    Raises TypeError when ``worker`` is no Worker class or an argument is unknown, ValueError when a value is not what
    its key takes or the class cannot be found by another process.
    """

    def __init__(
        self,
        worker: type[Worker],
        num: int = 1,
        max_batch_size: int = 1,
        max_wait_time: float = 0,
        timeout: float = 0,
        start_method: str = "spawn",
        env: Env | None = None,
        **keys: Any,  # checked below against the schema, which knows their types
    ) -> None:
        self.worker = worker
        self.spec = _spec(worker)
        if start_method not in START_METHODS:
            raise ValueError(f"start_method: expected one of {', '.join(START_METHODS)}, got {start_method!r}")
        if start_method == "fork":
            log.get_logger().warning(
                'start_method "fork" of %s: its workers are interpreters of their own all the same, '
                "and share nothing that this script has in memory",
                worker.__name__,
            )
        table = {"num": num, "max_batch_size": max_batch_size, "timeout": timeout, **keys}
        if max_batch_size == 1 and keys.get("batch_sizes"):  # not given: the largest of these
            del table["max_batch_size"]
        if max_wait_time:
            table["max_wait_time"] = max_wait_time
        if env is not None:
            table["env"] = env
        self.table = {name: self._read(name, value) for name, value in table.items()}
        per_worker = self.table.get("env")
        if isinstance(per_worker, list) and len(per_worker) != self.table["num"]:
            raise ValueError(f"{worker.__name__}: env: expected {self.table['num']} mappings, got {len(per_worker)}")
        if not self.table["num"] and self.table.get("min", 1):
            raise ValueError(f"{worker.__name__}: num: expected 1 or more, or min = 0 beside it, got 0")

    def _read(self, name: str, value: object) -> Any:  # keys are of all types
        if name == "worker":
            raise TypeError(f"{self.worker.__name__}: worker was given twice")
        return _key("stage", name, value, self.worker.__name__)

    def __repr__(self) -> str:
        return f"Runtime({self.spec}, num={self.table['num']})"


class Server:
    """A deployment in the making. :meth:`append_worker` or :meth:`register_runtime`, then :meth:`run`.

    Nothing happens before :meth:`run`: no process is started, no flag or environment variable read.
    """

    def __init__(self) -> None:
        self._routes: dict[str, list[Runtime | Mapping[str, Any]]] = {}
        self._route_keys: dict[str, dict[str, Any]] = {}  # Any: keys are of all types
        self._endpoints: list[dict[str, Any]] = []
        self._errors = ""
        self._daemons: dict[str, Any] = {}  # subprocess.Popen, multiprocessing.Process, or alike

    def append_worker(
        self,
        worker: type[Worker],
        num: int = 1,
        max_batch_size: int = 1,
        max_wait_time: float = 0,
        start_method: str = "spawn",
        env: Env | None = None,
        timeout: float = 0,
        route: str | Sequence[str] = DEFAULT_ROUTE,
        **keys: Any,  # as Runtime's
    ) -> None:
        """Add a stage at the end of ``route``, or of each of several routes, which then share it.

        The other arguments are those of :class:`Runtime`, and so are the errors; ValueError also for a route that is
        no path or is reserved.
        """
        runtime = Runtime(worker, num, max_batch_size, max_wait_time, timeout, start_method, env, **keys)
        self.register_runtime({path: [runtime] for path in ([route] if isinstance(route, str) else route)})

    def register_runtime(self, routes: Mapping[str, Sequence[Runtime | Mapping[str, Any]]], **keys: Any) -> None:
        """Add stages at the end of each route: HTTP path -> its Runtimes in order.

        A table in their place chooses one of several by a field of the result before it, as in a file and with
        Runtimes for names: ``{"by": "lang", "of": {"en": english, "de": german}, "default": english}``. So do those by
        which a request goes on in parts: ``{"each": "crops", "through": [classify]}``, ``{"all": {"boxes": detect,
        "text": [ocr, spell]}}``.

        Keyword arguments are the further keys of these ``[[route]]``s: ``protocol``, ``slo``, ``priority`` ...
        (docs/reference.md). A route that has its stages already may be named with none, ``[]``.

        Raises TypeError for what is no Runtime or an argument that is unknown, ValueError for a path that is reserved,
        a value that is not what its key takes, or a Runtime that would be on a route twice. Nothing is added then.
        """
        table = {name: _route_key(name, value) for name, value in keys.items()}
        if not routes:
            raise ValueError("route: expected at least one path")
        merged = {}
        for path, runtimes in routes.items():
            try:
                read_key("route", "path", path)
            except ValueError as error:
                raise ValueError(f"route: {error}") from None
            if strangers := [one for item in runtimes for one in _held(item) if not isinstance(one, Runtime)]:
                raise TypeError(f"{path}: expected Runtime objects, got {strangers[0]!r}")
            chain = [*self._routes.get(path, []), *runtimes]
            each = [id(one) for one in _held(chain)]
            if len(set(each)) != len(each):
                raise ValueError(f"{path}: the same Runtime twice on one route; make a second Runtime of the class")
            merged[path] = chain
        self._routes.update(merged)
        for path in merged:
            self._route_keys.setdefault(path, {}).update(table)

    def register_endpoint(
        self, path: str, handler: Callable[..., Any], methods: str | Sequence[str] = ("GET",)
    ) -> None:
        """Answer a path beside the stages by a function, which gets the request and gives the answer, as an
        ``[[endpoint]]`` of a file does (docs/endpoints.md). The frontend imports its module: the script, where it
        stands there.

        Raises TypeError for what is no function, ValueError for a path or method that cannot be, a path that has one
        already, or a function that the frontend could not find.
        """
        spec = _place(handler, "endpoint", "the frontend")
        table = {
            "path": _key("endpoint", "path", path, "register_endpoint"),
            "methods": _key("endpoint", "methods", methods, "register_endpoint"),
            "handler": spec,
        }
        for other in self._endpoints:
            if other["path"] == path:
                raise ValueError(f"register_endpoint: {path} is answered by {other['handler']} already")
        self._endpoints.append(table)

    def register_errors(self, function: Callable[..., Any]) -> None:
        """Have a function make the bodies of errors, as ``[frontend] errors`` of a file does (docs/errors.md). Raises
        as :meth:`register_endpoint`."""
        self._errors = _place(function, "errors", "the frontend")

    def register_daemon(self, name: str, process: Any) -> None:
        """Let a process live and die with the deployment: started with it if need be, ended with it.

        ``process`` is a ``subprocess.Popen`` or a ``multiprocessing.Process`` or has its methods (hence the ``Any``).
        When it ends before the deployment does, the deployment stops with exit code FAILED. Raises TypeError and
        ValueError for a process or name that cannot be used.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"register_daemon: expected a name, got {name!r}")
        if name in self._daemons:
            raise ValueError(f'register_daemon: "{name}" is registered already')
        if not hasattr(process, "pid") or not (hasattr(process, "poll") or hasattr(process, "exitcode")):
            raise TypeError(f"register_daemon: expected a Popen or a multiprocessing.Process, got {process!r}")
        self._daemons[name] = process

    def deployment(
        self, *, flags: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
    ) -> Deployment:
        """What has been described so far, as the object that a ``stages.toml`` would give. Raises ConfigError.

        ``flags`` (name -> text, as on the command line) override ``environ`` (``ENGINE_...``). In both a bare number
        given as ``timeout`` is milliseconds.
        """
        return self._deployment(script.settings(flags or {}, environ or {}))

    def _deployment(self, settings: script.Settings) -> Deployment:
        file = _script()
        if not self._routes:
            raise ConfigError(
                [f"{file.name}: expected at least one stage: call append_worker or register_runtime before run"]
            )
        names = self._names()
        wait = {} if settings.wait_ms is None else {"max_wait_time": settings.wait_ms}
        data: dict[str, Any] = {
            "engine": {"name": name_from(f"{file.parent.name}-{file.stem}")},
            "stage": [
                {**wait, **runtime.table, "name": name, "worker": runtime.spec} for runtime, name in names.items()
            ],
            "route": [
                {**self._route_keys[path], "path": path, "stages": [_named(step, names) for step in chain]}
                for path, chain in self._routes.items()
            ],
            "endpoint": self._endpoints,
        }
        if self._errors:
            data["frontend"] = {"errors": self._errors}

        def described() -> Deployment:
            return build(data, file=file, label=file.name, flags=settings.flags, environ=settings.environ)

        try:
            made = described()
            if not (settings.flags.get("run_dir") or settings.environ.get("ENGINE_RUN_DIR")):
                # Two runs of one script on different ports are two deployments. A free port has no number yet.
                port = made.frontend.port or f"p{os.getpid()}"
                data["engine"]["run_dir"] = default_run_dir(f"{made.engine.name}-{port}", settings.environ)
                made = described()
        except ConfigError as error:
            raise ConfigError([*settings.problems, *error.problems]) from None
        if settings.problems:
            raise ConfigError(settings.problems)
        return made

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; with ``--dry-run``, run the warm-up examples through every stage instead.

        Reads ``sys.argv`` for the flags of :func:`arguments` (exact names only; anything else is left to the script)
        and the environment; the workers find both as they are now. Meant as the last line of a script: returns when
        all went well, else raises SystemExit with one of the named exit codes, after saying why on stderr. Raises
        StartError inside a worker process that imports a script without the ``__main__`` guard.
        """
        if (spec := loader.importing()) is not None:
            raise StartError(
                f'Server.run() was reached while a worker process imports "{spec}": '
                'put it under  if __name__ == "__main__":'
            )
        settings = script.settings(script.parse(sys.argv), os.environ)
        try:
            deployment = self._deployment(settings)
        except ConfigError as error:
            print(error, file=sys.stderr)
            raise SystemExit(ExitCode.CONFIG) from None
        log.setup("supervisor", level=deployment.engine.log_level, form=deployment.engine.log_format)
        for theirs, ours in script.foreign(os.environ).items():
            log.get_logger().warning("%s is set and not read; the variable is %s", theirs, ours)
        for flag, near in script.misspelt(sys.argv).items():
            log.get_logger().warning("%s is no flag of the server; did you mean %s?", flag, near)
        for line in strangers(os.environ, also=script.variables()):
            log.get_logger().warning("%s", line)
        if settings.dry_run:
            from stages.local import check  # here, because it loads user code and what that needs

            code = check(deployment, as_json=False)
        else:
            from engine.supervisor import run

            places = tuple(os.path.abspath(place) for place in sys.path)  # "" is the current folder
            code = run(replace(deployment, argv=tuple(sys.argv), path=places), daemons=self._daemons)
        if code:
            raise SystemExit(code)

    def _names(self) -> dict[Runtime, str]:
        """Each Runtime once, in the order it came, with its stage's name: its own, or its class's in lower case."""
        runtimes = dict.fromkeys(runtime for chain in self._routes.values() for runtime in _held(chain))
        taken = {runtime.table["name"] for runtime in runtimes if "name" in runtime.table}
        names = {}
        for runtime in runtimes:
            name = base = runtime.table.get("name") or name_from(runtime.worker.__name__.lower())
            count = 1
            while "name" not in runtime.table and name in taken:
                count += 1
                name = f"{base}-{count}"
            taken.add(name)
            names[runtime] = name
        return names


def _held(step: object) -> list[Any]:
    """The Runtimes of one step of a route, or what stands in their places: itself, or those of its branches. Those of a
    choice each once, for its branches may share theirs."""
    if isinstance(step, (list, tuple)):
        return [held for one in step for held in _held(one)]
    if not isinstance(step, Mapping):
        return [step]
    parts = [step[key] for key in ("through", "default") if key in step]
    parts += [one for key in ("of", "all") if isinstance(of := step.get(key), Mapping) for one in of.values()]
    found = _held(parts)
    return [*{id(one): one for one in found}.values()] if "of" in step else found


def _named(step: Any, names: Mapping[Runtime, str]) -> Any:
    """A step as a file has it. What is wrong with it is told as of a file."""
    if isinstance(step, (list, tuple)):
        return [_named(one, names) for one in step]
    if not isinstance(step, Mapping):
        return names[step]
    named = dict(step)
    for key in ("through", "default"):
        if key in named:
            named[key] = _named(named[key], names)
    for key in ("of", "all"):
        if isinstance(of := named.get(key), Mapping):
            named[key] = {text: _named(one, names) for text, one in of.items()}
    return named


def _script() -> Path:
    """The script that describes the deployment: what it lies beside is what its workers can import."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None:  # a notebook or an interactive session
        return Path.cwd() / "session"
    path = Path(os.path.abspath(file))
    if main.__spec__ is not None:  # python -m pkg.mod: imports start where the outermost package lies
        return path.parents[main.__spec__.name.count(".")] / path.name
    return path


def _route_key(name: str, value: object) -> Any:  # keys are of all types
    if name in ("path", "stages"):
        raise TypeError(f"register_runtime: {name} is what `routes` says")
    return _key("route", name, value, "register_runtime")


def _key(section: str, name: str, value: object, where: str) -> Any:
    """A key as the file would have it. Raises TypeError for one that there is not, ValueError for a wrong value."""
    try:
        return read_key(section, name, value)
    except KeyError as error:
        raise TypeError(f"{where}: {error.args[0]}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {name}: {error}") from None


def _spec(worker: type[Worker]) -> str:
    """How another process finds the class: ``module:Class``, or ``/abs/script.py:Class`` for a script's own."""
    from stages.base import Worker as Base  # here, so that ``engine`` can be imported without ``stages``

    if not isinstance(worker, type) or not issubclass(worker, Base):
        raise TypeError(f"worker: expected a subclass of engine.Worker, got {worker!r}")
    return _place(worker, "worker", "a worker process")


def _place(thing: Any, what: str, who: str) -> str:
    """The same of whatever has a name of its own at the top of a module. ``who`` has to find it."""
    name, where = getattr(thing, "__qualname__", None), getattr(thing, "__module__", None)
    if not callable(thing) or not isinstance(name, str) or not isinstance(where, str):
        raise TypeError(f"{what}: expected a function, got {thing!r}")
    if "<locals>" in name or "<lambda>" in name:
        raise ValueError(f"{name}: defined inside a function, where {who} cannot find it; move it out")
    found: object = sys.modules.get(where)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found != thing:
        raise ValueError(f"{name}: module {where} has another object, or none, of this name")
    if where != "__main__":
        return f"{where}:{name}"
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return f"{main.__spec__.name}:{name}"
    file = getattr(main, "__file__", None)
    if file is None or not file.endswith(".py"):
        raise ValueError(f"{name}: defined in no file that {who} could import; write it into a .py file")
    return f"{os.path.abspath(file)}:{name}"

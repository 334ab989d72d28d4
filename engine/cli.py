"""The command ``engine``. The only module that ends a process; everything below returns exit codes.

At import time only the standard library, errors and exit codes are touched: ``engine --help`` is instant, and the
supervisor's process never loads what its children need. Each command imports its part when it runs.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import metadata
from typing import TYPE_CHECKING, Final, TypeAlias

from engine import log, names
from engine.config import FILE_NAME, add_flags, flags_of, in_file_only, load, run_dir, strangers
from engine.config.endpoints import cell_dir
from engine.config.flags import overrides
from engine.errors import ConfigError, StartError, Unavailable
from engine.exitcodes import ExitCode
from engine.planning import flags as plan_flags

if TYPE_CHECKING:
    from engine.config import Deployment
    from engine.supervisor.parts import Parts

KEY_FILE: Final = "deployment.key"
STATUS_TIMEOUT_S: Final = 3.0
DOWN_S: Final = 30.0  # beyond what a deployment has to finish in
LAST_MOST: Final = 65_535  # decisions that can be asked for: more than are kept

COMMANDS: Final = (
    "up", "check", "broker", "frontend", "worker", "status", "why", "reload", "scale", "down", "plan", "ports", "keys",
    "health", "render",
)  # fmt: skip

TARGETS: Final = ("kubernetes", "compose", "systemd", "dockerfile")  # of engine.render

_UP_ELSEWHERE: Final = ("run", "serve", "start")  # what other programs call it

Command: TypeAlias = Callable[[argparse.Namespace, "Deployment"], int]

_EXIT_CODES: Final = "exit codes:\n" + "\n".join(f"  {code:d}  {code.name:<12} {code.meaning}" for code in ExitCode)
_FILE: Final = "a stages.toml, or the folder it is in; default: the stages.toml here"

# Which keys a command has flags for: those it looks at. ``up`` has all.
_EVERYWHERE: Final = ("log_level",)
_HERE: Final = (*_EVERYWHERE, "run_dir", "broker", "key")
_FLAGS: Final = {
    "check": (*_EVERYWHERE, "timeout"),
    "broker": (*_HERE, "bind", "grace", "namespace", "capacity", "timeout"),
    "frontend": (
        *_HERE, "grace", "namespace", "capacity", "timeout", "address", "port", "max_request_size", "compression",
        "certfile", "keyfile",
    ),
    "worker": (*_HERE, "grace", "timeout"),
    "status": _HERE,
    "why": _HERE,
    "reload": _HERE,
    "scale": _HERE,
    "down": (*_HERE, "grace"),
    "plan": _HERE,
    "health": (*_EVERYWHERE, "run_dir"),
    "render": (*_EVERYWHERE, "key"),
    "ports": (*_EVERYWHERE, "address", "port"),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        code = run(arguments)
    except KeyboardInterrupt:  # in user code, where a command runs it
        code = ExitCode.FAILED
    except BrokenPipeError:  # the reader of our output has gone (``engine status F | head``)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the final flush complains
        code = ExitCode.OK
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. SystemExit only out of argparse (``--help``, bad flags)."""
    options = _parsed(sys.argv[1:] if arguments is None else list(arguments))
    if options is None:
        return ExitCode.USAGE
    command: Command = options.command
    try:
        if command is _keys:
            return _new_keys(options.file)
        deployment = load(options.file, flags=flags_of(options))
        if deployment.engine.key and command in _LINKED:
            from engine.keyfile import keyring_of

            keyring_of(deployment)  # what is wrong with it is said once, before processes are started
        return command(options, deployment)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return ExitCode.CONFIG
    except StartError as error:
        print(f"engine: {error}", file=sys.stderr)
        return ExitCode.START


def _parsed(arguments: list[str]) -> argparse.Namespace | None:
    """The command line as options; None when it asked for nothing and was told what there is."""
    top = parser()
    if not arguments:
        top.print_help()
        return None
    name = arguments[0]
    if not name.startswith("-") and name not in COMMANDS:
        deployment = name.endswith((".toml", os.sep)) or os.path.exists(name)
        top.error(f'unknown command "{name}"' + (f"; did you mean: engine up {name}" if deployment else _near(name)))
    options, unknown = top.parse_known_args(arguments)
    if options.command is _scale:  # a flag between FILE and STAGE=N parts what argparse takes for one list
        options.nums += [text for text in unknown if not text.startswith("-")]
        unknown = [text for text in unknown if text.startswith("-")]
    if unknown:
        sub: argparse.ArgumentParser = options.parser
        sub.error(f"unrecognized arguments: {' '.join(unknown)}{_near_flag(unknown[0], name, sub)}")
    return options


def _near(name: str) -> str:
    found = ["up"] if name in _UP_ELSEWHERE else get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; commands are {', '.join(COMMANDS)}"


def _near_flag(flag: str, name: str, sub: argparse.ArgumentParser) -> str:
    flag = flag.partition("=")[0]
    key = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    users = [command for command, keys in _FLAGS.items() if key in keys]
    if users:
        return f"; {flag} is a flag of up, {', '.join(users)}: engine {name} does not look at it"
    near = get_close_matches(flag, re.findall(r"--[a-z-]+", sub.format_help()), n=1)
    return in_file_only(key) or (f"; did you mean {near[0]}?" if near else "")


def parser() -> argparse.ArgumentParser:
    """The command line, whole."""
    top = argparse.ArgumentParser(
        prog="engine",
        description="Serve machine-learning models as pipelines of batched stages.",
        epilog=f"example:\n  engine up examples/echo/stages.toml --port 9000\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"engine {_version()}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add_only(sub: argparse.ArgumentParser) -> None:
        what = "the parts that run here: broker, frontend, names of stages (NAME=N: so many workers); default: all"
        sub.add_argument("--only", metavar="PARTS", default="", help=what)

    def add_on(sub: argparse.ArgumentParser) -> None:
        what = "the cluster that runs it: ray, the one of this machine, or ray=HOST:PORT; default: this machine"
        sub.add_argument("--on", metavar="CLUSTER", type=_cluster, help=what)

    def add(
        name: str, command: Command, what: str, example: str, choices: Sequence[str] = ()
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if choices:
            sub.add_argument("target", metavar="SYSTEM", choices=choices, help=f"one of {', '.join(choices)}")
        sub.add_argument("file", metavar="FILE", nargs="?", default=FILE_NAME, help=_FILE)
        sub.set_defaults(command=command, parser=sub)
        add_flags(sub, _FLAGS.get(name))
        return sub

    up = add("up", _up, "run a deployment, or parts of one, on this machine", "engine up stages.toml --port 9000")
    add_only(up)
    add_on(up)
    up.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # for whoever holds a part of a deployment
    up.epilog = (
        "example:\n"
        "  engine up stages.toml --port 9000\n"
        "  engine up stages.toml --only broker,frontend   on one host, and\n"
        "  engine up stages.toml --only encode=4          on others\n"
        "  engine up stages.toml --on ray                 wherever the Ray cluster has room"
    )
    check = add(
        "check",
        _check,
        "validate a file, then run its warm-up examples through every stage in this process",
        "engine check stages.toml --json",
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.add_argument("--strict", action="store_true", help="fail also when a stage could not be tried")

    broker = add("broker", _broker, "run the broker of a deployment alone", "engine broker stages.toml")
    broker.add_argument("--cell", type=_count, default=1, metavar="K", help="the broker of cell K (from 1)")
    frontend = add("frontend", _frontend, "run the HTTP side of a deployment alone", "engine frontend stages.toml")
    worker = add("worker", _worker, "run workers of one stage", "engine worker stages.toml --stage encode --num 2")
    worker.add_argument("--stage", required=True, metavar="NAME", help="the stage")
    which = worker.add_mutually_exclusive_group()
    which.add_argument("--num", type=_count, metavar="N", help="how many; default: the stage's num")
    which.add_argument("--slot", type=_count, metavar="K", help="run worker K (from 1), in this very process")
    for child in (broker, frontend, worker):  # how a supervisor starts its children; nobody else needs these
        child.add_argument("--status-fd", type=int, help=argparse.SUPPRESS)
        child.add_argument("--parent", type=int, help=argparse.SUPPRESS)

    status = add("status", _status, "show a running deployment", "engine status stages.toml --json")
    status.add_argument("--json", action="store_true", help="print what the broker says, as JSON")
    add_on(status)

    why = add("why", _why, "say why batches left and requests were refused, lately", "")
    why.add_argument("--stage", metavar="NAME", default="", help="of this stage alone")
    why.add_argument(
        "--last", type=_count, default=20, metavar="N", help="so many decisions (default: 20; 1000 are kept)"
    )
    why.add_argument("--request", metavar="ID", default="", help="those about the request with this x-request-id")
    why.add_argument("--json", action="store_true", help="print what the broker says, as JSON")
    why.epilog = (
        "examples:\n"
        "  engine why stages.toml                             what the last thousand decisions amount to\n"
        "  engine why stages.toml --stage encode --last 100   of one stage\n"
        "  engine why stages.toml --request 6f1c0e            what became of one request, if it is among them"
    )

    add_only(
        add("reload", _reload, "replace the workers of a running deployment by what its file says now", "engine reload")
    )
    health = add(
        "health",
        _health,
        "say whether what a supervisor runs on this machine is ready, without any network: for probes",
        "engine health stages.toml --only encode",
    )
    add_only(health)
    health.add_argument("--live", action="store_true", help="whether the supervisor itself lives, whatever it says")
    render = add(
        "render",
        _render,
        "write how a deployment is run by another system: manifests for Kubernetes, units for systemd, and the like",
        "engine render kubernetes stages.toml --cells 2",
        TARGETS,
    )
    render.add_argument("--cells", type=_count, default=1, metavar="N", help="kubernetes: brokers with workers each")
    render.add_argument("--image", default="", metavar="IMAGE", help="kubernetes, compose: what the containers run")
    render.add_argument("--kube-namespace", default="default", metavar="NAME", help="kubernetes: where it lies")
    add_only(render)
    scale = add("scale", _scale, "change how many workers stages have", "engine scale stages.toml encode=4")
    add_only(scale)
    down = add("down", _down, "end a running deployment, in order", "engine down stages.toml")
    add_only(down)
    add_on(down)
    scale.add_argument("nums", metavar="STAGE=N", nargs="*", help="how many workers a stage shall have")
    plan = add(
        "plan",
        _plan,
        "say how many workers a goal takes, or what rate so many carry, by simulation",
        "engine plan stages.toml --rate 400 --slo 200ms",
    )
    plan_flags.add_arguments(plan)
    told = add("ports", _ports, "say which ports a firewall must open", "engine ports stages.toml")
    told.add_argument("--json", action="store_true", help="print them as JSON")
    _add_keys(commands)
    plan.epilog = plan_flags.EXAMPLES
    return top


def _add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """A command about no deployment: it has no flags of one."""
    what = "make the secret by which processes on several hosts know each other"
    sub = commands.add_parser(
        "keys",
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog="example:\n  engine keys new deployment.key",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sub.add_argument("action", choices=["new"], help="new: make a key file, which nobody else may read")
    sub.add_argument("file", metavar="FILE", nargs="?", default=KEY_FILE, help=f"where; default: {KEY_FILE}")
    sub.set_defaults(command=_keys, parser=sub)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _cluster(text: str) -> str:
    """The address of a Ray cluster, "" for that of this machine."""
    kind, _, address = text.partition("=")
    if kind != "ray" or (not address and "=" in text):
        raise argparse.ArgumentTypeError(f"expected ray or ray=HOST:PORT, got {text}")
    return address


def _version() -> str:
    return _installed() or "(not installed)"


def _installed() -> str | None:
    try:
        return metadata.version("stageline")
    except metadata.PackageNotFoundError:  # run from a source tree
        return None


# --- commands --------------------------------------------------------------------------------------------------------


def _warn_of_strangers() -> None:
    """Once for a whole deployment: not in the processes that a supervisor starts."""
    for line in strangers(os.environ):
        log.get_logger().warning("%s", line)


def _up(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import supervisor

    log.setup("supervisor", level=deployment.engine.log_level)
    if options.on is not None:
        from engine.onray import cluster

        _refuse_only(options)
        found, _ = overrides(flags_of(options), os.environ)
        return cluster.up(deployment, options.on, cluster.tell, found)
    if options.parent is not None:
        from engine.process import die_with_parent

        die_with_parent(options.parent)
    _warn_of_strangers()
    return supervisor.run(deployment, reread=_reread(options), parts=_parts(options, deployment))


def _down(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.clock import Deadline
    from engine.supervisor import rundir

    log.setup("down", level=deployment.engine.log_level)
    if options.on is not None:
        from engine.onray import cluster

        _refuse_only(options)
        return cluster.down(deployment, options.on, cluster.tell)
    deployment = _parts(options, deployment).of(deployment)
    path = run_dir(deployment)
    pid = rundir.holder(path)
    if pid is None:
        print(f'engine: "{deployment.engine.name}" does not run here ({path})', file=sys.stderr)
        return ExitCode.UNREACHABLE
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        print(f"engine: process {pid} is another user's, and is not ended", file=sys.stderr)
        return ExitCode.FAILED
    except ProcessLookupError:  # it ended just now, or cannot be seen from here
        if rundir.holder(path) == pid:
            print(f"engine: process {pid} does not run here: end it in its own container", file=sys.stderr)
            return ExitCode.FAILED
    patience = Deadline(deployment.engine.grace + deployment.frontend.drain_delay + DOWN_S)
    while rundir.holder(path) == pid:
        if patience.passed:
            print(f"engine: process {pid} is still stopping", file=sys.stderr)
            return ExitCode.FAILED
        rundir.sleep(rundir.LOOK_S)
    return ExitCode.OK


def _refuse_only(options: argparse.Namespace) -> None:
    """A cluster has all parts, wherever it has room for them."""
    if options.only:
        options.parser.error(
            "--only is of this machine, and --on of a cluster, which runs all parts: expected one of them"
        )


def _parts(options: argparse.Namespace, deployment: Deployment) -> Parts:
    from engine.supervisor import parts

    return parts.parse(options.only, deployment)


def _check(options: argparse.Namespace, deployment: Deployment) -> int:
    from stages import local

    log.setup("check", level=deployment.engine.log_level)
    _warn_of_strangers()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # user code runs here, and may have to put things away
    return local.check(deployment, as_json=options.json, strict=options.strict)


def _broker(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.process import Notifier, die_with_parent

    die_with_parent(options.parent)
    cell = options.cell - 1
    log.setup(f"broker {cell + 1}" if cell else "broker", level=deployment.engine.log_level)
    notify = Notifier(options.status_fd)
    from engine.broker import serve

    if cell >= deployment.engine.brokers:
        raise ConfigError([f"--cell: expected one of {deployment.engine.brokers} cells, got {options.cell}"])
    if deployment.engine.broker and not deployment.engine.bind:
        raise ConfigError(
            [
                'engine.bind: expected where the broker listens, as others reach it by engine.broker: "tcp://0.0.0.0:7000"'
            ]
        )
    if options.parent is not None and not cell:
        return serve.serve(deployment, notify, reread=_reread(options))
    if deployment.engine.bind:
        return serve.serve(deployment, notify)
    # By hand, on ipc sockets: nobody has made the directory they live in, or seen to it that there is one broker; and
    # of the folder of another cell a supervisor has not seen to that either.
    from engine.supervisor.rundir import Busy, claim, make_private, mark_stopping

    reread = None if options.parent is None else _reread(options)
    try:
        make_private(run_dir(deployment))
        with claim(cell_dir(run_dir(deployment), cell), deployment.engine.name) as folder:
            return serve.serve(
                deployment, notify, cell, stopping=lambda within_s: mark_stopping(folder, within_s), reread=reread
            )
    except Busy as error:
        log.get_logger().error("%s", error)
        return ExitCode.BUSY


def _frontend(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.process import Notifier, die_with_parent

    die_with_parent(options.parent)
    log.setup("frontend", level=deployment.engine.log_level)
    _see_to_run_dir(options, deployment)
    names.hold("frontend")  # the user's own may stand before it on PYTHONPATH
    from frontend import serve

    return serve.serve(deployment, Notifier(options.status_fd), reread=_reread(options))


def _worker(options: argparse.Namespace, deployment: Deployment) -> int:
    stage: str = options.stage
    names = [spec.name for spec in deployment.stages]
    if stage not in names:
        raise ConfigError([f"--stage: expected one of {', '.join(names)}; got {stage}"])
    if options.slot is None:
        from engine import supervisor

        log.setup("supervisor", level=deployment.engine.log_level)
        _warn_of_strangers()
        return supervisor.run_workers(deployment, stage, options.num, reread=_reread(options))
    from engine.process import Notifier, die_with_parent

    die_with_parent(options.parent)
    log.setup("worker", level=deployment.engine.log_level, stage=stage, worker=options.slot)
    _see_to_run_dir(options, deployment)
    from stages.runtime import serve

    return serve.serve(deployment, stage, options.slot, Notifier(options.status_fd))


def _see_to_run_dir(options: argparse.Namespace, deployment: Deployment) -> None:
    """By hand, on ipc sockets: nobody has seen to it that the directory, and so a broker in it, is this user's. Made
    before there is a broker, so that no stranger can make it first."""
    if options.parent is None and not deployment.engine.is_tcp:
        from engine.supervisor.rundir import make_private

        make_private(run_dir(deployment))


def _status(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import admin, status
    from engine.supervisor.rundir import check

    log.setup("status", level=deployment.engine.log_level)
    if options.on is not None:
        return _status_on(options, deployment)
    if not deployment.engine.is_tcp:
        check(run_dir(deployment))
    try:
        answer = admin.ask(deployment, "status", STATUS_TIMEOUT_S)
    except Unavailable as error:
        return _unreachable(options, deployment, error)
    print(answer.decode() if options.json else status.table(answer))
    return ExitCode.OK


def _status_on(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import status
    from engine.onray import cluster

    try:
        answer = cluster.status(deployment, options.on)
    except Unavailable as error:
        print(f'engine: "{deployment.engine.name}" does not answer: {error}', file=sys.stderr)
        return ExitCode.UNREACHABLE
    print(answer.decode() if options.json else status.table(answer))
    return ExitCode.OK


def _unreachable(options: argparse.Namespace, deployment: Deployment, error: Unavailable) -> int:
    engine = deployment.engine
    where = ", ".join(engine.broker) or engine.bind or run_dir(deployment)
    print(
        f'engine: no running deployment "{engine.name}" answers at {where}: {error}; '
        f"start it with: engine up {options.file}",
        file=sys.stderr,
    )
    return ExitCode.UNREACHABLE


def _ports(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import ports

    told = ports.ports(deployment)
    print(ports.as_json(told) if options.json else ports.table(told))
    return ExitCode.OK


def _why(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import admin, why
    from engine.core.messages import Ask
    from engine.core.meta import ID_MAX
    from engine.supervisor.rundir import check

    log.setup("why", level=deployment.engine.log_level)
    stage, request_id = options.stage, options.request
    stages = [spec.name for spec in deployment.stages]
    if stage and stage not in stages:
        raise ConfigError([f"--stage: expected one of {', '.join(stages)}; got {stage}"])
    if len(request_id) > ID_MAX or not (request_id.isascii() and request_id.isprintable()):
        raise ConfigError([f"--request: expected an x-request-id, up to {ID_MAX} characters; got {request_id!r}"])
    if not deployment.engine.is_tcp:
        check(run_dir(deployment))
    try:
        answer = admin.ask(deployment, Ask("why", min(options.last, LAST_MOST), stage, request_id), STATUS_TIMEOUT_S)
    except Unavailable as error:
        try:
            admin.ask(deployment, "status", STATUS_TIMEOUT_S)
        except Unavailable:
            return _unreachable(options, deployment, error)
        name = deployment.engine.name
        print(
            f'engine: the broker of "{name}" tells its status, but not why: it is of an older version', file=sys.stderr
        )
        return ExitCode.UNREACHABLE
    if options.json:
        print(why.latest(answer, options.last))
    else:
        print(why.text(answer, why.now(), last=options.last, stage=stage, request=request_id))
    return ExitCode.OK


def _reload(options: argparse.Namespace, deployment: Deployment) -> int:
    return _order(options, deployment, {"do": "reload"})


def _scale(options: argparse.Namespace, deployment: Deployment) -> int:
    nums = {}
    for text in options.nums:
        stage, found, num = text.partition("=")
        if not found or not num.isdecimal():
            raise ConfigError([f"expected STAGE=N, such as {deployment.stages[0].name}=2; got {text}"])
        nums[stage] = int(num)
    if not nums:
        raise ConfigError([f"which stage? expected STAGE=N, such as {deployment.stages[0].name}=2"])
    return _order(options, deployment, {"do": "scale", "nums": nums})


def _order(options: argparse.Namespace, deployment: Deployment, order: dict[str, object]) -> int:
    from engine.supervisor import orders

    log.setup("engine", level=deployment.engine.log_level)
    own = _parts(options, deployment).of(deployment)
    try:
        reached = orders.give(run_dir(own), order, lambda line: print(line, flush=True))
    except Unavailable as error:
        print(
            f'engine: no running deployment "{deployment.engine.name}": {error}; start it with: '
            f"engine up {options.file}{f' --only {options.only}' * bool(options.only)}",
            file=sys.stderr,
        )
        return ExitCode.UNREACHABLE
    except RuntimeError as error:
        print(f"engine: not changed: {error}", file=sys.stderr)
        return ExitCode.START
    print("changed")
    if order["do"] == "reload":
        _tell_of_others(deployment, reached)
    return ExitCode.OK


def _keys(options: argparse.Namespace, deployment: Deployment) -> int:
    raise AssertionError("made without a deployment")


def _new_keys(path: str) -> int:
    from engine.keyfile import make, told_next

    make(path)
    print(told_next(path))
    return ExitCode.OK


def _health(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.supervisor import orders

    own = _parts(options, deployment).of(deployment)
    try:
        orders.give(run_dir(own), orders.HEALTH, lambda line: None, within_s=STATUS_TIMEOUT_S)
    except Unavailable as error:
        print(f"engine: {error}", file=sys.stderr)
        return ExitCode.UNREACHABLE
    except RuntimeError as error:
        print(error)
        return ExitCode.OK if options.live else ExitCode.FAILED
    print("ready")
    return ExitCode.OK


def _render(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine import render
    from engine.supervisor.address import own_command

    about = render.About(
        text=deployment.file.read_text(encoding="utf-8"),
        cells=options.cells,
        image=options.image,
        namespace=options.kube_namespace,
        parts=_parts(options, deployment),
        command=own_command(),
        version=_installed() or "",
    )
    print(render.TARGETS[options.target](deployment, about), end="")
    return ExitCode.OK


def _plan(options: argparse.Namespace, deployment: Deployment) -> int:
    from engine.planning import command

    log.setup("plan", level=deployment.engine.log_level)
    return command.run(options, deployment)


def _tell_of_others(deployment: Deployment, reached: set[int]) -> None:
    """Workers of the deployment that are another supervisor's, here or elsewhere, go on as they are."""
    from engine import admin, status

    try:
        answer = admin.ask(deployment, "status", STATUS_TIMEOUT_S)
    except Unavailable:
        return  # it was told what was done; nothing more is known
    if others := status.strangers(answer, reached):
        print(
            f"not reached: {others}, which other commands run: `engine reload` with the --only of theirs, or a SIGHUP "
            "to the command, has them replaced likewise"
        )


def _reread(options: argparse.Namespace) -> Callable[[], Deployment]:
    """Reads the file once more, with the flags and the environment of this process."""
    return lambda: load(options.file, flags=flags_of(options))


_LINKED: Final = (_up, _broker, _frontend, _worker, _status, _why)  # what needs the key of a deployment to begin with


if __name__ == "__main__":
    main()

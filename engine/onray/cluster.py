"""``engine up F --on ray``, and what else is said to a deployment there."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine import transport
from engine.config import Deployment
from engine.config.endpoints import bracket, is_wildcard
from engine.config.flags import Override
from engine.core.demand import USUAL, Windows
from engine.errors import StartError, Unavailable
from engine.exitcodes import ExitCode
from engine.onray.actors import ANSWER_S, Actors, Told
from engine.onray.parts import NAMESPACE, Part, crews, given, parts, scaler_of
from engine.supervisor.parts import BROKER, FRONTEND

START_S: Final = 600.0  # models load, and a cluster may have to grow
LOOK_S: Final = 0.5
TELL_S: Final = 2.0  # between two words about what is waited for
KEY_FILE: Final = "deployment.key"  # as they are called, of which one may lie there though another is named
MISSING: Final = "a deployment on Ray needs the package ray: pip install 'stageline[ray]'"


class Cluster(Actors):
    """A connection to one. Raises StartError where there is none to be had."""

    def __init__(self, address: str, folder: Path | None = None) -> None:
        """``folder``: what the parts need beside them, which Ray brings to every host. None: nothing is started."""
        try:
            import ray
        except ImportError as error:
            raise StartError(MISSING) from error
        super().__init__(ray)
        environment = {"working_dir": str(folder), "excludes": [KEY_FILE]} if folder is not None else {}
        try:
            _greet(address)
            ray.init(
                address=address or "auto",
                namespace=NAMESPACE,
                runtime_env=environment,
                logging_level="warning",
                log_to_driver=False,
            )
        except (OSError, RuntimeError, ValueError) as error:
            where = address or "here"
            hint = "start one with: ray start --head, or name one: --on ray=HOST:6379"
            raise StartError(f"no Ray cluster answers ({where}): {error}; {hint}") from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    @property
    def has_gpus(self) -> bool:
        return float(self.ray.cluster_resources().get("GPU", 0.0)) > 0

    def found(self, part: Part) -> Any:
        """Its actor, or None."""
        return self.named(part.name)

    def scale(self, deployment: Deployment, told: Told, windows: Windows) -> None:
        """Have its workers follow their demand."""
        from engine.onray.scaler import Scaler

        scaled = [crew for crew in crews(deployment, has_gpus=self.has_gpus) if crew.is_scaled]
        if not scaled:
            return
        options = self.ray.remote(Scaler).options(
            name=scaler_of(deployment), lifetime="detached", num_cpus=0, max_restarts=-1, max_concurrency=2
        )
        routes = [list(route.stages) for route in deployment.routes]
        options.remote(deployment.engine.name, scaled, routes, told, deployment.engine.grace, windows)

    def there(self, deployment: Deployment) -> list[Part]:
        """The parts of which there are actors, or shall be in any case: the broker, the frontend and the workers."""
        names = self.names(deployment.engine.name)
        first, second, *_ = parts(deployment, has_gpus=self.has_gpus)
        workers = [crew.part(slot) for crew in crews(deployment, has_gpus=self.has_gpus) for slot in crew.slots]
        return [first, second, *[part for part in workers if part.name in names]]


def _greet(address: str) -> None:
    """Raises OSError where nobody listens: Ray would try for minutes. ValueError for what is no address."""
    if address:
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()


def up(
    deployment: Deployment,
    address: str,
    say: Callable[[str], object],
    overrides: Mapping[tuple[str, str], Override],
    windows: Windows = USUAL,
) -> int:
    """Start all parts, and wait until the deployment is ready. The exit code. ``overrides``: what ``deployment`` has
    from flags and variables, and not from its file."""
    _check(deployment)
    file = deployment.file
    with Cluster(address, file.parent) as cluster:
        planned = parts(deployment, has_gpus=cluster.has_gpus)
        if cluster.names(deployment.engine.name):
            raise StartError(
                f'"{deployment.engine.name}" is on this cluster already; end it with: engine down {file} --on ray'
            )
        lanes = sum(max(stage.num, stage.most) for stage in deployment.stages)
        fixed = transport.listening(deployment).first_lane + lanes
        told = Told(file.name, planned[0].name, fixed, given(deployment, overrides))
        actors = [cluster.start(part, told) for part in planned]
        cluster.scale(deployment, told, windows)
        return _wait(cluster, deployment, planned, actors, say)


def _wait(
    cluster: Cluster,
    deployment: Deployment,
    planned: Sequence[Part],
    actors: Sequence[Any],
    say: Callable[[str], object],
) -> int:
    until, tell_at, said = time.monotonic() + START_S, 0.0, ""
    while time.monotonic() < until:
        states = cluster.asked([actor.state.remote() for actor in actors])
        told = _status(cluster, deployment, actors[0])
        placed = dict(zip([part.only for part in planned], states, strict=True))[FRONTEND]
        if told is not None and placed is not None and _is_whole(told):
            host, port = deployment.frontend.address, deployment.frontend.port
            host = placed["host"] if is_wildcard(host) else host
            say(f"{deployment.engine.name} is ready: http://{bracket(host)}:{port}")
            return ExitCode.OK
        waits = _waits(planned, states)
        if time.monotonic() >= tell_at and waits != said:
            tell_at, said = time.monotonic() + TELL_S, waits
            say(waits)
        time.sleep(LOOK_S)
    say(f"not ready after {START_S:g} s, it goes on there; end it with: engine down {deployment.file} --on ray")
    return ExitCode.START


def _is_whole(told: Mapping[str, Any]) -> bool:
    """A stage that could not say how it stands has no numbers."""
    return all(one.get("ready", -1) >= one.get("wanted", 0) for one in told["stages"])


def _waits(planned: Sequence[Part], states: Sequence[Mapping[str, Any] | None]) -> str:
    """What is not there yet, in a line."""
    unplaced = [f"{part.only} ({part.needs})" for part, state in zip(planned, states, strict=True) if state is None]
    ended = [
        f"{part.only} cannot be started: {state['failed']}"
        if state["failed"]
        else f"{part.only} has ended with exit code {state['ended']}"
        for part, state in zip(planned, states, strict=True)
        if state is not None and not state["runs"] and (state["starts"] or state["failed"])
    ]
    if unplaced:
        ended.insert(0, f"waits for a place: {', '.join(unplaced)}")
    return "; ".join(ended) or "all parts are placed and start"


def status(deployment: Deployment, address: str) -> bytes:
    """As the broker says it, JSON, with ``parts``: where each is placed; those that wait for CPUs and GPUs have no
    host. Raises Unavailable."""
    with Cluster(address) as cluster:
        planned = cluster.there(deployment)
        actors = [cluster.found(part) for part in planned]
        if actors[0] is None:
            raise Unavailable(503, "it has no broker on this cluster")
        told = _status(cluster, deployment, actors[0])
        if told is None:
            raise Unavailable(503, "its broker does not answer")
        there = [(part, actor) for part, actor in zip(planned, actors, strict=True) if actor is not None]
        states = cluster.asked([actor.state.remote() for _, actor in there])
        told["parts"] = [
            {"part": part.only, "needs": part.needs, **(state or {"host": "", "node": ""})}
            for (part, _), state in zip(there, states, strict=True)
        ]
        return json.dumps(told).encode()


def down(deployment: Deployment, address: str, say: Callable[[str], object]) -> int:
    """End all parts in order: the frontends, which finish what they have, then the broker, then the workers. The exit
    code."""
    with Cluster(address) as cluster:
        scaler = cluster.named(scaler_of(deployment))
        if scaler is not None:
            cluster.kill(scaler)
        while cluster.named(scaler_of(deployment)) is not None:  # else it might start one more
            time.sleep(LOOK_S / 5)
        planned = cluster.there(deployment)
        found = [(part, actor) for part in planned if (actor := cluster.found(part)) is not None]
        if not found:
            say(f"{deployment.engine.name} is not on this cluster")
            return ExitCode.UNREACHABLE
        within_s = deployment.engine.grace + deployment.frontend.drain_delay + 10.0
        for turn in (FRONTEND, BROKER, ""):
            ends = [actor for part, actor in found if (part.only if part.only in (FRONTEND, BROKER) else "") == turn]
            stopped = cluster.asked([actor.stop.remote(within_s) for actor in ends], within_s + ANSWER_S)
            for actor in ends:
                cluster.ray.kill(actor)
            if turn == FRONTEND and not all(stopped):
                say("the frontend did not finish in time, and was killed")
        for part, _ in found:
            while cluster.found(part) is not None:
                time.sleep(LOOK_S / 5)
    say(f"{deployment.engine.name} has left the cluster")
    return ExitCode.OK


def _status(cluster: Cluster, deployment: Deployment, broker: Any) -> dict[str, Any] | None:
    """What the broker says; how many workers of a stage there are to be is said by how many actors they have, for it
    knows the file alone."""
    (answer,) = cluster.asked([broker.ask.remote("status")])
    if not answer:
        return None
    told: dict[str, Any] = json.loads(answer)
    there = Counter(part.only for part in cluster.there(deployment))
    for stage in told["stages"]:
        if stage.get("bounds"):
            stage["wanted"] = there[f"{stage['name']}=1"]
    return told


def _check(deployment: Deployment) -> None:
    engine = deployment.engine
    if deployment.cells > 1 or len(engine.broker) > 1:
        raise StartError("on a Ray cluster a deployment has one broker; start one deployment for each")
    if not engine.insecure and not engine.key:
        raise StartError(
            "on a Ray cluster the broker listens to other hosts: name a key file below [engine], which has to be on "
            "each of them, or write insecure = true there"
        )
    folder = deployment.file.parent
    secrets = (engine.key, deployment.frontend.keyfile or deployment.frontend.certfile)
    if shared := [path for path in secrets if path and _is_in(Path(path), folder)]:
        raise StartError(
            f"{shared[0]} is secret, and lies in the folder that Ray would bring to every node, and keep; put it "
            "elsewhere, at the same path on each of them, and name that path"
        )


def _is_in(path: Path, folder: Path) -> bool:
    """As it is written, or where links lead."""
    return path.is_relative_to(folder) or path.resolve().is_relative_to(folder.resolve())


def tell(text: str) -> None:
    """A line about how it goes."""
    print(text, file=sys.stderr, flush=True)

"""The faults that are bytes: from clients at the door, and from peers on the sockets inside.

None may cost a good request anything, nor a process its life; the row watches the pids. Inside, what is said counts as
injected only when the broker has counted it as refused; what has to come past that look, so as to reach what lies
behind it, is said by peers that have introduced themselves and were taken.
"""

from __future__ import annotations

import gzip
import pickle
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from engine import config, transport
from engine.core import introduction, messages, wire
from faults import work
from faults.scene import Scene

SLOW: Final = {"model": {"do": "sleep", "s": 0.05}}
_REQUEST: Final = b"POST /work HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


# --- at the door ------------------------------------------------------------------------------------------------------

# What a parser may take for two different things; each has to be refused, with the connection's end.
SMUGGLING: Final[Sequence[bytes]] = (
    b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
    b"content-length: +2\r\n\r\n{}",
    b"content-length : 2\r\n\r\n{}",
    b"content-length: 2\r\n x: y\r\n\r\n{}",
    b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"transfer-encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    b"transfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
)


def smuggle(scene: Scene) -> None:
    """Heads and chunks that two parsers read differently: refused, and the connection is closed."""
    behind = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with scene.nobody_dies():
        for bytes_ in SMUGGLING:
            told = _said(scene, _REQUEST + bytes_ + behind)
            scene.injected += 1
            if not told.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")) or told.count(b"HTTP/1.1 ") != 1:
                scene.problem(f"smuggled: {bytes_!r} was answered {told[:60]!r}, {told.count(b'HTTP/1.1 ')} times")


def desynchronise(scene: Scene) -> None:
    """Many requests on one connection, sent before any answer: answered in order, each its own."""
    stages, numbers = scene.place.service.through("/work"), [next(scene.client.numbers) for _ in range(20)]
    with scene.connected() as sock:
        sock.sendall(b"".join(_post(b'{"number": %d}' % number) for number in numbers))
        scene.injected += 1
        told = _read(sock, lambda told: told.count(b'"proof"') == len(numbers))
    at = 0
    for number in numbers:
        at = told.find(b'"proof":%d' % work.proof(number, stages), at)
        if at < 0:
            scene.problem(f"wrong: the answer to {number} is not in its place on a connection of many requests")
            return


def dawdle(scene: Scene) -> None:
    """Connections that send half a head, or half a body, and then nothing."""
    with scene.nobody_dies(), ExitStack() as held:
        for number in range(100):
            sock = held.enter_context(scene.connected())
            sock.sendall(_REQUEST[: 20 + number % 40] if number % 2 else _REQUEST + b'content-length: 999\r\n\r\n{"x')
            scene.injected += 1
        scene.good(40)


def read_slowly(scene: Scene) -> None:
    """Clients that ask for large answers and do not read them."""
    with scene.nobody_dies(), ExitStack() as held:
        for _ in range(8):
            sock = held.enter_context(scene.connected())
            body = b'{"number": %d, "acts": {"model": {"do": "large", "bytes": 2000000}}}' % next(scene.client.numbers)
            sock.sendall(_post(body))
            assert sock.recv(1), "no answer began"
            scene.injected += 1
        scene.good(40)


def send_too_much(scene: Scene) -> None:
    """More bytes at once than the deployment may hold: some are refused, at once, and nothing else suffers."""
    with scene.nobody_dies():
        asked = [scene.ask(SLOW, expects=frozenset((200, 429)), more={"pad": "x" * (1 << 20)}) for _ in range(24)]
        scene.injected += len(asked)
        if not any(one.answer().status == 429 for one in asked):
            scene.problem("empty: nothing was refused")


def bomb(scene: Scene) -> None:
    """Compressed bodies that are a thousand times as large as they look: refused, and soon."""
    packed = gzip.compress(bytes(64 << 20), 9)
    with scene.nobody_dies():
        for _ in range(3):
            told = _answered(scene, _post(packed, b"content-encoding: gzip\r\n"))
            scene.injected += 1
            if not told.startswith(b"HTTP/1.1 413"):
                scene.problem(f"taken: a bomb was answered {told[:60]!r}")


def odd_ids(scene: Scene) -> None:
    """Request ids with what must not stand in a header or a log, and the same id twice: each answer is its own."""
    with scene.nobody_dies():
        for name in (b"a" * 5000, b"x\ty", b"\xff\xfe", b"same", b"same", b"%0d%0aset-cookie: x"):
            body = b'{"number": %d}' % next(scene.client.numbers)
            told = _answered(scene, _post(body, b"x-request-id: %s\r\n" % name))
            scene.injected += 1
            if b"\r\nset-cookie" in told.lower() or not told.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4")):
                scene.problem(f"taken: the id {name[:20]!r} was answered {told[:80]!r}")


def junk_at_the_door(scene: Scene) -> None:
    """Bytes that are no HTTP: the connection ends."""
    with scene.nobody_dies():
        for data in (b"\x16\x03\x01\x02\x00", b"\x00" * 1000, bytes(range(256)) * 8):
            _said(scene, data + b"\r\n\r\n")
            scene.injected += 1


# --- inside -----------------------------------------------------------------------------------------------------------


def junk_inside(scene: Scene) -> None:
    """Parcels that are empty, cut short, or noise, pickles and bombs among them, to every socket of the broker."""
    executed = scene.place.notes / "executed"
    whole = bytes(wire.encode(messages.Results(0, 1, 1, [1], [200], [b""]))[0])
    parcels = [b"", pickle.dumps(_Opens(executed)), b"\xdd\xff\xff\xff\xff", b"\xc1" * 100]
    parcels += [whole[:cut] for cut in range(1, len(whole), 5)]
    parcels += [scene.rng.randbytes(scene.rng.randrange(1, 200)) for _ in range(20)]
    with scene.nobody_dies(), _refused(scene, at_least=len(parcels)):
        for name, kind in _sockets(scene):
            with _socket(scene, name, kind) as say:
                for parcel in parcels:
                    say([parcel])
    if executed.exists():
        scene.problem("executed: a pickle that a stranger sent")


def forge_results(scene: Scene) -> None:
    """A worker that was taken tells results of requests that others hold, twice: they answer nobody."""
    asked, _ = scene.busy(s=0.5)
    before = scene.deployment.counted("duplicates")
    forged = 0
    with _joined(scene, introduction.WORKER) as (key, _), _socket(scene, "egress-u", "push") as say:
        for worker in (key, *_keys(scene)):
            for uid in (1, asked.number, 1 << 40):
                results = messages.Results(1, worker, 1, [uid], [200], [b""], "application/json")
                for _ in range(2):
                    say(wire.encode(results, [b'{"number": 0, "proof": 0}']))
                    forged += 1
        scene.wait("them to be counted", lambda: scene.deployment.counted("duplicates") - before >= forged)
    scene.injected += forged
    asked.answer()


def forge_beats(scene: Scene) -> None:
    """Metrics that cannot be read, of a frontend and of a worker that were taken, and then the end of these: that is
    when they are looked at."""
    lost = "metrics of a process that has gone are lost"
    before = scene.deployment.running.log.count(lost)
    with _joined(scene, introduction.FRONTEND) as (_, tell):
        tell(messages.FrontendBeat(b"\xc1junk"))
        scene.deployment.told()  # a way there and back: the broker has read the beat before it hears of the end
    with _joined(scene, introduction.WORKER) as (key, tell):
        tell(messages.WorkerBeat(key, b"\xc1junk"))
        scene.deployment.told()
    scene.wait("their being looked at", lambda: scene.deployment.running.log.count(lost) == before + 2)


def forge_byes(scene: Scene) -> None:
    """A worker that was taken says goodbye for all others, whose keys it reads off the run directory: refused, for the
    kernel tells who speaks."""
    with _joined(scene, introduction.WORKER) as (key, tell):
        others = [other for other in _keys(scene) if other != key]
        with _refused(scene, at_least=2 * len(scene.workers())):
            for other in others:
                tell(messages.WorkerBeat(other, b"\xc1junk"))
                tell(messages.Bye(other))


def introduce_strangers(scene: Scene) -> None:
    """Frontends and workers of another deployment, another version, another table: refused in words."""
    for name, kind in (("front", introduction.FRONTEND), ("control-1", introduction.WORKER)):
        changes: list[dict[str, Any]] = [{"protocols": (900, 901)}, {"deployment": "another"}, {"kind": "neither"}]
        if kind == introduction.WORKER:
            changes += [{"stage": "nowhere"}, {"routes": {"/work": ["model"]}}]
        for change in changes:
            with _socket(scene, name, "dealer") as say:
                heard = say(introduction.encode(msgspec.structs.replace(_who(scene, kind), **change)), hear=True)
            scene.injected += 1
            if not isinstance(heard, introduction.Refusal):
                scene.problem(f"taken: {change} was answered {heard}")


class _Opens:
    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self._path, "w")


# --- helpers ----------------------------------------------------------------------------------------------------------


def _post(body: bytes, headers: bytes = b"") -> bytes:
    return _REQUEST + headers + b"content-length: %d\r\n\r\n%s" % (len(body), body)


def _read(sock: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    """What is said until that is enough, or the other side closes. Raises TimeoutError."""
    told = b""
    while not enough(told):
        try:
            received = sock.recv(65536)
        except ConnectionError:
            break  # reset: what it said before counts
        if not received:
            break
        told += received
    return told


def _said(scene: Scene, data: bytes) -> bytes:
    """Everything that is answered until the other side closes, which it has to."""
    with scene.connected() as sock:
        with _closed_early():
            sock.sendall(data)
        return _read(sock, lambda _: False)


def _answered(scene: Scene, data: bytes) -> bytes:
    """The head of the answer, and whatever came with it."""
    with scene.connected() as sock:
        with _closed_early():
            sock.sendall(data)
        return _read(sock, lambda told: b"\r\n\r\n" in told)


@contextmanager
def _closed_early() -> Iterator[None]:
    try:
        yield
    except ConnectionError:
        pass  # before all was sent; what was said stands in the buffer


def _who(scene: Scene, kind: str, **about: Any) -> introduction.Introduction:
    """The words in which a process of this very deployment introduces itself."""
    deployment = config.load(scene.deployment.file)
    return introduction.introduce(
        kind,
        deployment.topology,
        deployment=deployment.engine.name,
        instance=secrets.token_hex(8),
        **{"host": "elsewhere", "pid": 1, "name": "hostile", "stage": "model", "slot": 4096, **about},
    )


@contextmanager
def _socket(scene: Scene, name: str, kind: str) -> Iterator[Callable[..., Any]]:
    """A connection to one of the broker's sockets, as a function that says a parcel and, if asked, hears an answer."""
    context = transport.context()
    # Of unix sockets both ends are alike.
    make = transport.dealer if kind == "dealer" and not name.endswith("-u") else transport.push
    sock = make(context, scene.deployment.socket(name))

    def say(frames: Sequence[Any], *, hear: bool = False) -> Any:
        scene.wait(f"{name} to take it", lambda: transport.send(sock, frames))
        if not hear:
            return None
        assert transport.poller(sock).poll(30_000), f"{name} said nothing"
        return wire.decode(transport.recv(sock) or ())[0]

    try:
        yield say
    finally:
        sock.close(linger=5000)  # what was said is read before it ends
        context.term()


@contextmanager
def _joined(scene: Scene, kind: str) -> Iterator[tuple[int, Callable[[messages.Message], None]]]:
    """A peer that has introduced itself and was taken: its key (of a worker), and how it says something. Never ready,
    so that no work waits for it. At the end its process dies, for the broker watches one that is its own."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stands_for_it:
        who = _who(scene, kind, host=transport.host_token(), pid=stands_for_it.pid)
        name = "front-u" if kind == introduction.FRONTEND else "control-1"
        with _socket(scene, name, "dealer") as say:
            heard = say(introduction.encode(who), hear=True)
            assert isinstance(heard, messages.Welcome | messages.FrontendWelcome), heard
            scene.injected += 1
            yield getattr(heard, "worker", 0), lambda message: say(wire.encode(message))
            stands_for_it.kill()
            scene.wait("its end to be noticed", lambda: stands_for_it.pid not in _pids(scene))


def _pids(scene: Scene) -> set[int]:
    """Of everybody that the broker knows."""
    told = scene.deployment.told()
    return {one["pid"] for group in (*told["stages"], {"workers": told["frontends"]}) for one in group["workers"]}


@contextmanager
def _refused(scene: Scene, *, at_least: int) -> Iterator[None]:
    """The broker counts so many messages as not taken."""
    before = scene.deployment.counted("messages_dropped")
    yield
    scene.wait(
        f"{at_least} refusals to be counted", lambda: scene.deployment.counted("messages_dropped") - before >= at_least
    )
    scene.injected += at_least


def _keys(scene: Scene) -> list[int]:
    """Of all workers of all stages: every process can read them off the names of their lanes, which the kernel tells
    as long as these are open."""
    return [int(lane.rpartition("-")[2], 16) for lane in scene.deployment.lanes()]


def _sockets(scene: Scene) -> Iterator[tuple[str, str]]:
    yield from (
        ("front", "dealer"),
        ("admin", "dealer"),
        ("egress", "push"),
        ("front-u", "dealer"),
        ("egress-u", "push"),
    )
    for number in range(len(scene.place.service.stages)):
        yield f"control-{number}", "dealer"
        yield f"intake-{number}", "push"
        yield f"intake-{number}-u", "push"

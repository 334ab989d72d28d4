"""What every test is held to: it leaves no thread, child process, socket, pipe or shared memory behind.

A snapshot before a module and before each test is compared with one after; what ends by itself within a few seconds (a
thread being joined, a child being reaped) is waited for. Tests that start a deployment find their tools in tests/e2e.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
from hypothesis import settings

faulthandler.enable()
# Under nohup, and behind a shell's `&`, these are ignored, by everything that tests start as well.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("project", deadline=None)  # a busy machine is no failure
settings.load_profile("project")


def _start_helpers() -> None:
    """One zero-copy send: pyzmq's thread and sockets behind it live as long as the process, so before any snapshot."""
    context = zmq.Context()
    with context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.bind("inproc://helpers")
        pull.connect("inproc://helpers")
        push.send(bytes(1 << 20), copy=False)
        pull.recv()
    context.term()


_start_helpers()

SETTLE_S = 5.0  # a thread that was told to stop, a child that was killed: gone well before this
# Helpers of the standard library that live as long as the process and belong to no test.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@dataclass(frozen=True)
class Holdings:
    """What this process holds that a test could leave behind."""

    threads: frozenset[str]
    children: frozenset[str]
    descriptors: Counter[str]
    shared_memory: frozenset[str]

    @classmethod
    def now(cls) -> Holdings:
        return cls(_threads(), _children(), _descriptors(), _shared_memory())

    def beyond(self, before: Holdings) -> dict[str, object]:
        """What is held now and was not held before, by kind; empty when nothing was left."""
        kinds = {
            "threads": self.threads - before.threads,
            "child processes": self.children - before.children,
            "descriptors": dict(self.descriptors - before.descriptors),
            "shared memory": {name for name in self.shared_memory - before.shared_memory if not _held_by_others(name)},
        }
        return {kind: left for kind, left in kinds.items() if left}


def _threads() -> frozenset[str]:
    return frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate())


def _children() -> frozenset[str]:
    """Those of this process alone: a deployment that a module shares starts and ends workers when it has to."""
    return frozenset(f"{pid}: {command[:200]}" for pid, command in _below(os.getpid(), deep=False))


def _below(pid: int, *, deep: bool = True) -> Iterator[tuple[int, str]]:
    """A process' children and, if ``deep``, theirs, by what the kernel lists of each thread: all of /proc takes 100
    times as long."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return  # it has just gone
    for thread in threads:
        try:
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue
            if not any(helper in command for helper in HELPERS):
                yield child, command
            if deep:
                yield from _below(child)


def _descriptors() -> Counter[str]:
    """Open sockets, pipes and event descriptors by kind. Files are left out: imports and caches keep some open."""
    kinds: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the descriptor of the listing itself
        kind = target.partition("[")[0].rstrip(":") if not target.startswith("/") else ""
        if kind in ("socket", "pipe") or target.startswith("anon_inode:"):
            kinds[kind or target] += 1
    return kinds


def _shared_memory() -> frozenset[str]:
    """Entries of /dev/shm, but for named semaphores: they are of some `multiprocessing`, which nothing of ours uses."""
    return frozenset(name for name in os.listdir("/dev/shm") if not name.startswith("sem."))


def _held_by_others(name: str) -> bool:
    """Whether a process that is not of this test has that entry open or mapped: then it is of another program."""
    ours = {os.getpid(), *(pid for pid, _ in _below(os.getpid()))}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            held = Path(f"/proc/{pid}/maps").read_text()
            held += "".join(f"{os.readlink(entry)}\n" for entry in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue  # it has ended, or a descriptor was closed
        if f"/dev/shm/{name}\n" in held and int(pid) not in ours:
            return True
    return False


def _left_behind(before: Holdings) -> dict[str, object]:
    end = time.monotonic() + SETTLE_S
    while left := Holdings.now().beyond(before):
        gc.collect()  # an unreachable socket is a leak of the test, not of what it tests: close it and say nothing
        if time.monotonic() > end:
            return left
        time.sleep(0.02)
    return {}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole deployments first, else in the order given: several processes share the modules, and what takes minutes and
    began last would be waited for by all others."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(scope="module", autouse=True)
def measured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Counting lines makes a simulation three times as slow, and the start of a deployment twice: not in modules and
    tests that say that this would tell nothing new."""
    with _uncounted(request.node.get_closest_marker("unmeasured") is not None):
        yield


@pytest.fixture(autouse=True)
def measured_here(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same of one test."""
    with _uncounted(request.node.get_closest_marker("unmeasured") is not None):
        yield


@contextmanager
def _uncounted(wanted: bool) -> Iterator[None]:
    coverage = sys.modules.get("coverage")
    counting = coverage and coverage.Coverage.current()
    if not counting or not wanted:
        yield
        return
    counting.stop()
    config = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # by which processes that are started know of it
    yield
    if config is not None:
        os.environ["COVERAGE_PROCESS_CONFIG"] = config
    counting.start()


@pytest.fixture
def imports_are_undone() -> Iterator[None]:
    """For tests that load user code into this process: another's module of the same name is not found here, be it of
    one that has left it behind."""
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{tempfile.gettempdir()}/"):
            del sys.modules[name]
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing(measured: None) -> Iterator[None]:
    before = Holdings.now()
    yield
    left = _left_behind(before)
    assert not left, f"this module left behind {left}"


@pytest.fixture(autouse=True)
def test_leaves_nothing(module_leaves_nothing: None) -> Iterator[None]:
    before = Holdings.now()
    yield
    left = _left_behind(before)
    assert not left, f"this test left behind {left}"

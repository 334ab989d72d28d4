"""The actor: holds one part of a deployment, wherever Ray has placed it.

It runs ``engine up --only PART`` and starts it again when that ends by itself. The part ends with it, whatever ends it:
the supervisor's parent-death signal is that of the one thread here that forks. The broker's address lies in a file,
which is written anew when the broker's actor was placed on another host: processes that lose their connection look
there, and go on with all they have.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engine import bootstrap
from engine.addresses import free_ports
from engine.errors import Unavailable
from engine.exitcodes import ExitCode
from engine.onray.parts import NAMESPACE, Part, words
from engine.supervisor.parts import BROKER

BOOTSTRAP: Final = str(Path(bootstrap.__file__))
LOOK_S: Final = 0.5  # between two looks at the part and at the broker's address
AGAIN_S: Final = 2.0  # from an end of the part that nobody asked for to the next start
NEVER: Final = "not started yet"


class Holder:
    """See the module. Its methods are called by Ray, in threads of their own."""

    def __init__(self, part: Part, file: str, broker: str, fixed_ports: int, given: Mapping[str, str]) -> None:
        """``file``: the name of the deployment's, in the folder that Ray has brought here. ``broker``: the name of the
        actor that has it. ``fixed_ports``: how many ports of the broker's have a fixed place behind its first one.
        ``given``: flags, as :func:`engine.onray.parts.given` makes them."""
        self._part = part
        self._broker = broker
        self._fixed_ports = fixed_ports
        self._given = given
        self._folder = Path(tempfile.mkdtemp(prefix="sl-"))
        self._file = str(Path.cwd() / file)
        self._port = 0
        self._place = self._folder / "broker"  # the file with its address
        self._address = ""  # what stands there
        self._process: subprocess.Popen[bytes] | None = None
        self._end = NEVER  # how the part ended last, while it does not run
        self._failure = ""  # why it could not be started, while it could not
        self._starts = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="holder", daemon=True)
        self._thread.start()

    # --- asked from outside ------------------------------------------------------------------------------------------

    def state(self) -> Mapping[str, Any]:
        """How the part stands: where, whether it runs, and if not, how it ended and why it cannot be started."""
        import ray

        runs = self._process is not None and self._process.poll() is None
        node = ray.get_runtime_context().get_node_id()
        where = {
            "host": _own_address(),
            "node": node,
            "gpus": len(ray.get_gpu_ids()),
            "stopping": self._stopping.is_set(),
        }
        ended, failed = ("", "") if runs else (self._end, self._failure)
        return {**where, "runs": runs, "starts": self._starts, "ended": ended, "failed": failed}

    def address(self) -> str:
        """By which the broker is reached that is held here."""
        return f"{_own_address()}:{self._port}" if self._port else ""

    def ask(self, what: str) -> bytes:
        """A question to the broker that is held here; empty while it does not answer."""
        from engine import admin
        from engine.config import load

        try:
            return admin.ask(load(self._file, flags={**self._given, "broker": f"127.0.0.1:{self._port}"}), what)
        except Unavailable:
            return b""

    def stop(self, within_s: float) -> bool:
        """End the part, as a signal would. False when it had to be killed."""
        self._stopping.set()
        self._thread.join(within_s)
        process = self._process
        if process is None or process.poll() is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            return True
        process.kill()
        process.wait()
        return False

    # --- the thread that forks ---------------------------------------------------------------------------------------

    def _hold(self) -> None:
        while not self._stopping.is_set():
            if self._part.only != BROKER:
                self._find_broker()
                if not self._address:
                    self._stopping.wait(LOOK_S)
                    continue
            try:
                self._start()
            except (OSError, RuntimeError) as error:  # memory, ports, a full disk: it may pass
                self._failure = str(error)
                self._stopping.wait(AGAIN_S)
                continue
            self._failure = ""
            self._watch()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _start(self) -> None:
        bind, broker = "", f"@{self._place}"
        if self._part.only == BROKER:
            if not self._port or self._end == str(int(ExitCode.BUSY)):
                self._port = free_ports(self._fixed_ports)
            bind, broker = f"tcp://0.0.0.0:{self._port}", ""
        told = words(self._part, self._file, str(self._folder / "run"), bind=bind, broker=broker, given=self._given)
        self._process = subprocess.Popen(
            [sys.executable, BOOTSTRAP, *told, "--parent", str(os.getpid())], env=environment(os.environ)
        )
        self._starts += 1

    def _watch(self) -> None:
        """Until the part has ended."""
        process = self._process
        assert process is not None
        while not self._stopping.wait(LOOK_S):
            code = process.poll()
            if code is not None:
                self._end = str(code)
                self._stopping.wait(AGAIN_S)
                return
            if self._part.only != BROKER:
                self._find_broker()

    def _find_broker(self) -> None:
        """Write down where the broker is, if that is news."""
        import ray

        try:
            told: str = ray.get(ray.get_actor(self._broker, namespace=NAMESPACE).address.remote(), timeout=LOOK_S * 4)
        except Exception:  # it is being placed, perhaps again
            return
        if told and told != self._address:
            scratch = self._place.with_suffix(".new")
            try:
                scratch.write_text(told)
                scratch.replace(self._place)
            except OSError as error:
                self._failure = str(error)
                return
            self._address = told


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Of a part: without what Ray has told this process of itself, for user code may have business of its own with
    it."""
    return {name: value for name, value in environ.items() if not name.startswith("RAY_")}


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())

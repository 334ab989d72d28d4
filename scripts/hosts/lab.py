"""Hosts as namespaces at a switch of our own, with all that is started in them.

A host has a network, a process, a mount and a UTS namespace: with a process namespace that is shared, the broker takes
a worker for a process of its own host, watches it by its pid and shares memory with it. Nothing is left when it ends: a
namespace ends with its first process, all others in it are killed then, and its device goes with the switch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

SWITCH: Final = Path(__file__).with_name("switch.py")
NET: Final = "10.99.0."
MTU: Final = 9000  # fewer frames through the switch

# The first process of a host: it reaps what others leave, and ends with whoever made it, however that ends.
_INIT: Final = 'hostname "$1"; ip link set lo up; echo up; cat'


def impossible() -> str:
    """Why there can be no lab on this machine; empty: there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "namespaces need root on Linux"
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"there is no {tool} (util-linux, iproute2)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "ip", "link", "set", "lo", "up"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"this system makes no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """One of a lab's. ``port``: its number at the switch."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.address = f"{NET}{port}"
        made = [
            "unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL",
            "sh", "-c", _INIT, "sh", name,
        ]  # fmt: skip
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL  # its words are of its own end, when its child is killed
        self._made = subprocess.Popen(made, stdin=pipe, stdout=pipe, stderr=quiet, start_new_session=True)
        assert self._made.stdout is not None
        assert self._made.stdout.readline() == b"up\n", "a host did not come up"
        self._init = int(Path(f"/proc/{self._made.pid}/task/{self._made.pid}/children").read_text().split()[0])

    def command(self, *arguments: str) -> list[str]:
        """What runs this there."""
        return ["nsenter", "-t", str(self._init), "-n", "-u", "-p", "-m", "--", *arguments]

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None, log: IO[bytes] | int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """In a session of its own; its pid is that of who entered, not that of the process (:meth:`pids`)."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )

    def pids(self, *words: str) -> list[int]:
        """Of its processes whose command lines have all these words, as they are known here."""
        space = os.readlink(f"/proc/{self._init}/ns/pid")
        found = []
        for number in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path(f"/proc/{number}/cmdline").read_bytes().decode().split("\0")
                if os.readlink(f"/proc/{number}/ns/pid") == space and all(word in line for word in words):
                    found.append(int(number))
            except OSError:
                continue  # gone since the listing
        return sorted(found)

    def plug(self, device: str) -> None:
        """Into the switch, by this device of it."""
        subprocess.run(["ip", "link", "set", device, "netns", str(self._init)], check=True)
        mac = f"02:00:00:00:00:{self.port:02x}"
        lines = (
            f"ip link set {device} name eth0 address {mac} mtu {MTU} up",
            f"ip addr add {self.address}/24 dev eth0",
        )
        subprocess.run(self.command("sh", "-ec", "; ".join(lines)), check=True)

    def close(self) -> None:
        """Its power goes. Once more does nothing."""
        if self._made.returncode is None:
            os.kill(self._init, signal.SIGKILL)
            self._made.communicate()


class Lab:
    """A context: hosts by name, and what happens between them. Faults add up until :meth:`heal`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._stack = ExitStack()
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Lab:
        with ExitStack() as stack:
            switch = subprocess.Popen(
                [sys.executable, str(SWITCH), str(len(self._names))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._switch = stack.enter_context(switch)
            stack.callback(switch.kill)
            assert switch.stdout is not None
            devices = switch.stdout.readline().split()
            for port, name in enumerate(self._names, 1):
                self.hosts[name] = host = Host(name, port)
                stack.callback(host.close)
                host.plug(devices[port - 1])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def cut(self, name: str, *, to: bool = True, of: bool = True) -> None:
        """Nothing comes to this host any more, nothing of it gets anywhere, or only one of both."""
        self._tell(port=self[name].port, cut_to=to, cut_from=of)

    def delay(self, name: str, seconds: float, jitter_s: float = 0.0) -> None:
        """Of each frame, each way."""
        self._tell(port=self[name].port, delay_s=seconds, jitter_s=jitter_s)

    def lose(self, name: str, share: float) -> None:
        """So many frames, each way."""
        self._tell(port=self[name].port, loss=share)

    def reset(self) -> None:
        """Every TCP connection."""
        self._tell(reset=True)

    def heal(self) -> None:
        self._tell(cut_to=False, cut_from=False, delay_s=0.0, jitter_s=0.0, loss=0.0)

    def _tell(self, **command: object) -> None:
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        print(json.dumps(command), file=self._switch.stdin, flush=True)
        assert self._switch.stdout.readline() == "done\n", "the switch has ended"

"""The way of a newcomer through docs/many-hosts.md: its commands, as they stand there, on three hosts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import wait_for

from hosts import lab
from hosts.lab import Lab
from hosts.scene import ENGINE

pytestmark = pytest.mark.unmeasured

PAGE = Path(__file__).parents[2] / "docs" / "many-hosts.md"
HOSTS = ("gpu-1", "gpu-2", "web-1")
CODE = """
from engine import Worker

class Encode(Worker):
    def forward(self, values):
        return [{"length": len(value["text"])} for value in values]
"""


def blocks() -> tuple[str, list[list[str]]]:
    """The file, and each host's commands."""
    text = re.search(r"## Three machines\n(.*?)\n## ", PAGE.read_text(), re.DOTALL)
    assert text is not None
    found = re.findall(r"```(toml|sh)\n(.*?)```", text[1], re.DOTALL)
    return next(body for kind, body in found if kind == "toml"), [
        body.splitlines() for kind, body in found if kind == "sh"
    ]


class Machine:
    """A folder of its own on a host, and commands in it."""

    def __init__(self, made: Lab, name: str, home: Path, stack: ExitStack) -> None:
        self._host = made[name]
        self._home = home
        self._stack = stack
        self._log = home / "log"
        self.folder = home

    def run(self, line: str, others: Callable[[str], Path]) -> None:
        """A line of a shell; what goes on is left to itself."""
        if line.startswith("scp -rp "):
            host, _, path = line.split()[2].partition(":")
            shutil.copytree(others(host) / path, self.folder / path)  # with its modes, as scp -p
        elif line.startswith("cd "):
            self.folder /= line.removeprefix("cd ")
        else:
            command = line.replace("engine", ENGINE, 1).split()
            log = self._stack.enter_context(self._log.open("ab"))
            env = {"TMPDIR": str(self._home), "XDG_RUNTIME_DIR": str(self._home)}
            there = ["env", "-C", str(self.folder), *command]
            started = self._host.start(*there, env=env, log=log)
            self._stack.callback(started.wait)
            if " up " not in line:
                assert started.wait(60) == 0, self.log()

    def ask(self, url: str, body: str = "") -> str:
        told = ["curl", "-s", "--max-time", "5", *(["-d", body] if body else []), url]
        return subprocess.run(self._host.command(*told), capture_output=True, text=True, check=False).stdout

    def log(self) -> str:
        return self._log.read_text(errors="replace")


@pytest.fixture
def machines() -> Iterator[dict[str, Machine]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp")))
        ended = stack.enter_context(ExitStack())  # waits for what was started, once its hosts are gone
        made = stack.enter_context(Lab(HOSTS))
        names = folder / "hosts"
        names.write_text(
            "127.0.0.1 localhost\n" + "".join(f"{host.address} {name}\n" for name, host in made.hosts.items())
        )
        found = {}
        for name in HOSTS:
            (folder / name).mkdir()
            subprocess.run(made[name].command("mount", "--bind", str(names), "/etc/hosts"), check=True)
            found[name] = Machine(made, name, folder / name, ended)
        yield found


@pytest.mark.skipif(bool(lab.impossible()), reason=f"no hosts: {lab.impossible()}")
def test_three_machines_serve_by_the_commands_of_the_page(machines: dict[str, Machine]) -> None:
    file, commands = blocks()
    assert [len(lines) for lines in commands] == [3, 3, 3]
    first = machines["gpu-1"]
    home = first.folder
    service = first.folder / "service"
    service.mkdir()
    (service / "stages.toml").write_text(file)
    (service / "service.py").write_text(CODE)
    first.folder = service
    for name, lines in zip(HOSTS, commands, strict=True):
        for line in lines:
            machines[name].run(line, lambda host: home if host == "gpu-1" else machines[host].folder)
    web = machines["web-1"]

    def ready() -> bool:
        told = web.ask("http://web-1:8000/readyz")
        return bool(told) and [stage["ready"] for stage in json.loads(told)["stages"]] == [4]

    try:
        wait_for("the workers of both hosts", ready, within_s=60)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *(machine.log() for machine in machines.values())])) from None
    assert json.loads(web.ask("http://web-1:8000/inference", '{"text": "four"}')) == {"length": 4}
    for machine in machines.values():
        machine.run("engine status stages.toml", lambda host: home)
        assert "encode  4/2" in machine.log()

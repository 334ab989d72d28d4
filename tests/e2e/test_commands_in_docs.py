"""Every command that README, docs and examples show is right: what it names is there, and it runs as written.

Commands stand in fenced blocks marked `sh`, a page's in the order in which a reader types them. Each page is run once
in shells that have nothing but the system on their path, from a folder that looks like the top of the repository. Three
things differ from what the reader does, all of them about the machine: the port is a free one, `scripts/up FILE` is the
`engine up FILE` that it ends in (what it installs is there), and what takes minutes, downloads gigabytes or belongs to
somebody else is only read. Why a page or a command is only read stands beside it, below.
"""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from harness import MARK, Deployed, short_folder, write_service

from engine import cli
from engine.config import load, script
from engine.config.schema import OIP
from engine.errors import ConfigError

pytestmark = pytest.mark.unmeasured

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
URL: Final = "http://127.0.0.1:8000"

# Pages whose deployments are not started here, with the reason. Their commands are read all the same.
ONLY_READ: Final = {
    "embedding": "a model of 90 MB; test_examples runs it and its client",
    "rerank": "the same model; test_more_examples runs it and its client",
    "cross-encoder": "torch and transformers take long to load; test_more_examples runs it and its client",
    "text-classification": "the same model; test_more_examples runs it and its client",
    "image-classification": "torch fits a network first; test_more_examples runs it and its client",
    "ocr": "networks of 31 MB; test_more_examples runs it and its client",
    "gpu-assignment": "torch in seven processes; test_more_examples runs it and its client",
    "chat": "torch trains a model first; test_more_examples runs it and its client",
    "segmentation": "torch trains a network first; test_more_examples runs it and its client",
    "voice-activity": "torch and a model; test_more_examples runs it and its client",
    "redis-numbin": "a server of Redis; test_more_examples runs it and its client",
    "jax-jit": "jax compiles six shapes; test_more_examples runs it and its client",
    "shared-memory": "gigabytes through eight senders; test_more_examples runs it and its client",
    "stable-diffusion": "a download of 5 GB; test_more_examples runs it with a tiny model",
    "many-hosts": "commands of several hosts; tests/hosts runs its first ones on three, e2e the others",
}

# Commands that are not run on any page, by how they begin, with the reason.
NOT_RUN: Final = {
    "scripts/test": "this is it",
    "scripts/check": "what continuous integration runs beside it",
    "scripts/smoke": "minutes, and other Pythons; continuous integration runs it",
    "python3 -m venv": "making an environment, and",
    "~/serving/bin/pip install": "installing into it, is what the test of the wheel does",
    "prometheus ": "a program of its own; test_monitor checks its configuration",
    "docker compose": "fetches images; test_monitor reads what it mounts",
    "scripts/chaos": "minutes, and tests/chaos does the same for seconds",
    "scripts/soak": "hours, likewise",
    "scripts/network": "minutes, and tests/hosts does the same for seconds",
    "engine plan": "measures a model and simulates, for a minute; tests/engine/test_planning.py does both for a second",
    "engine bench": "minutes, of which tests/e2e/test_benching.py does some seconds",
    "scripts/docs": "a server that stays; tests/test_site.py builds the same",
    "scripts/bench": "minutes on a machine of its own; its words are read below",
}

MOVES: Final = ("source ", "cd ", "mkdir ")  # they change the shell for the commands after them
STARTS: Final = ("scripts/up", "engine up", "/server.py ")


@dataclass(frozen=True)
class Command:
    page: Path
    text: str

    @property
    def example(self) -> str:
        return self.page.parent.name if self.page.name == "README.md" and self.page.parent != ROOT else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def commands(page: Path) -> list[Command]:
    """One for each line of its `sh` blocks; lines that end in a backslash, a pipe or inside quotes go on."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        text = ""
        for line in block.splitlines():
            text += ("\n" if text else "") + line
            if line.rstrip().endswith(("\\", "|")) or _without_comment(text).count("'") % 2:
                continue
            found.append(Command(page, _without_comment(text)))
            text = ""
        assert not text, f"{page}: a block ends in the middle of a command"
    return found


def _without_comment(text: str) -> str:
    for mark in re.finditer(r"\s# ", text):
        before = text[: mark.start()]
        if before.count("'") % 2 == before.count('"') % 2 == 0:
            return before.strip()
    return text.strip()


ALL: Final = [command for page in PAGES for command in commands(page)]


def starts(command: Command) -> bool:
    return any(start in command.text for start in STARTS)


# --- read ------------------------------------------------------------------------------------------------------------


def test_there_are_commands_to_read() -> None:
    assert len(ALL) > 60
    assert any(starts(command) for command in ALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_hides_outside_of_a_marked_block(page: Path) -> None:
    outside = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    hidden = re.findall(
        r"^ {4}(?:scripts/|engine |curl |\.venv/|python3? |pip |source |sed )\S*", outside, re.MULTILINE
    )
    assert hidden == []


@pytest.mark.parametrize("command", ALL, ids=str)
def test_what_a_command_names_is_there(command: Command) -> None:
    for path in re.findall(r"(?<![\w/.~-])(?:scripts|examples|docs|tests)/[\w./-]*\w", command.text):
        assert (ROOT / path).exists() or path.startswith("docs/benchmarks/"), path
    words = shlex.split(command.text, comments=True)
    if "scripts/up" in words:
        parse_engine(["up", *words[words.index("scripts/up") + 1 :]])
    if "engine" in (Path(words[0]).name, words[0]):
        parse_engine(words[1:])
    if words[0].endswith("python") and words[1].endswith("server.py"):
        _, unknown = script.arguments().parse_known_args(words[2:])
        assert unknown == []
    if "pip" in Path(words[0]).name:
        check_extras(command.text)
    if command.text.startswith("scripts/bench"):
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--list"],
            env={"PYTHONPATH": str(ROOT / "scripts")},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for word in re.findall(r"(?<= )[a-z][a-z0-9-]*(?= |$)", command.text):
            assert word in ("all", "report") or re.search(rf"\b{word}\b", told), word


@pytest.mark.parametrize("command", [one for one in ALL if f"{URL}/" in one.text and one.example], ids=str)
def test_a_url_is_a_route_of_the_example(command: Command) -> None:
    deployment = load(command.page.with_name("stages.toml"), environ={})
    models = [route.path.removesuffix("/infer") for route in deployment.routes if route.protocol == OIP]
    for path in re.findall(rf"{re.escape(URL)}(/[\w./-]*)", command.text):
        assert path in {*(route.path for route in deployment.routes), *models, "/metrics"}


INLINE: Final = [
    (str(page.relative_to(ROOT)), text)
    for page in PAGES
    for text in re.findall(r"`((?:engine|pip install) [^`\n]+)`", page.read_text())
]


@pytest.mark.parametrize(("page", "text"), INLINE)
def test_what_stands_in_a_sentence_is_understood(page: str, text: str) -> None:
    words = shlex.split(text)
    if words[0] == "engine":
        parse_engine(words[1:])
    else:
        check_extras(text)


def parse_engine(words: list[str]) -> None:
    if words == ["--version"]:
        return
    _, unknown = cli.parser().parse_known_args(words)  # an unknown command or a missing flag raises SystemExit
    assert unknown == []


def check_extras(text: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for name in re.findall(r"(?:'\.|stageline)\[([\w,]+)\]", text):
        assert set(name.split(",")) <= set(setup["options.extras_require"])


# --- run -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder that looks like the top of the repository, and can be written into."""
    with short_folder() as folder:
        for name in ("examples", "scripts", "docs"):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "serving").symlink_to(sys.prefix)
        page = (ROOT / "README.md").read_text()
        toml, code = (
            next(iter(re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)))
            for language in ("toml", "python")
        )
        write_service(folder / "square", toml, code)
        (folder / "moved.py").write_text("from mosec import Server, Worker\nimport mosec.mixin\n")
        yield folder


class Shell:
    """What the reader has open: a place, an environment, and perhaps a deployment in another terminal."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(top),
            "ENGINE_PORT": "0",
            "ENGINE_ADDRESS": "127.0.0.1",
            "ENGINE_RUN_DIR": str(top / "run"),
            "LC_ALL": "C.UTF-8",
        }
        self.moves: list[str] = []
        self.deployed: Deployed | None = None

    def type(self, command: Command) -> None:
        text = command.text.replace("scripts/up", ".venv/bin/engine up", 1)
        text = re.sub(r" --port 8000\b", " --port 0", text)
        if starts(command):
            self.stop()
            typed = "\n".join([f"cd {shlex.quote(str(self.top))}", *self.moves, f"exec env {text}"])
            # What is already in Python's environment stays out: `env -i`, as a login shell begins.
            mark = uuid.uuid4().hex
            setting = [f"{name}={value}" for name, value in {**self.env, MARK: mark}.items()]
            shell = ("/usr/bin/env", "-i", *setting, "/bin/bash", "-c", typed)
            self.deployed = Deployed(["reader"], folder=self.top, command=shell, mark=mark)
            self.deployed.wait_ready()
            self.moves = []  # the next command is typed in another terminal
        elif text.startswith(MOVES):
            self.moves.append(text)
        else:
            print(self.run(text))

    def run(self, text: str) -> str:
        if self.deployed is not None:
            if re.search(r"client\.py$", text):
                text += f" {self.deployed.url}"
            text = text.replace(URL, self.deployed.url)
        if text.startswith("curl ") or "| curl" in text.replace("\n", " "):
            text = f"{text} --fail-with-body --silent --show-error"
        done = subprocess.run(
            ["/bin/bash", "-c", "\n".join(["set -euo pipefail", *self.moves, text])],
            cwd=self.top,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def stop(self) -> None:
        if self.deployed is not None:
            running, self.deployed = self.deployed, None
            try:
                assert running.terminate() == 0, running.tail()
            finally:
                running.kill()


RUN: Final = [
    page
    for page in PAGES
    if commands(page) and not {page.parent.name, page.stem} & {*ONLY_READ} and page.name != "benchmarks.md"
]


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run_as_written(page: Path, top: Path) -> None:
    shell = Shell(top)
    try:
        for command in commands(page):
            if command.text == "scripts/up":  # the embedding example, which is only read
                continue
            if not command.text.startswith(tuple(NOT_RUN)):
                shell.type(command)
        if page.name == "moving-from-mosec.md":
            assert (top / "moved.py").read_text() == "from engine import Server, Worker\nimport engine.mixin\n"
    finally:
        shell.stop()


def test_every_reason_is_of_use() -> None:
    assert set(ONLY_READ) <= {name for page in PAGES for name in (page.parent.name, page.stem)}
    for start in NOT_RUN:
        assert any(command.text.startswith(start) for command in ALL), start
    with pytest.raises(ConfigError):  # a command that names a file which is not there would be noticed
        load(ROOT / "examples" / "nothing" / "stages.toml", environ={})

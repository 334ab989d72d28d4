"""The command line of a script: Mosec's flags and variables, and what they mean for the deployment."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from engine import EngineError, EngineTimeoutError, Runtime, Server, ValidationError, Worker
from engine.config import script
from engine.config.schema import Deployment
from engine.errors import ConfigError, MosecError, MosecTimeoutError

MOSEC = (
    *("path", "capacity", "timeout", "wait", "address", "port", "namespace", "debug", "log_level", "dry_run"),
    *("compression", "max_request_size"),
)


class Encode(Worker):
    def forward(self, data):
        return data


def made(*argv: str, **environ: str) -> Deployment:
    server = Server()
    server.append_worker(Encode, max_wait_time=0)
    server.append_worker(Encode, max_wait_time=7)
    return server.deployment(flags=script.parse(["server.py", *argv]), environ=environ)


def test_the_flags_are_mosecs_and_no_others():
    assert tuple(vars(script.arguments().parse_args([]))) == MOSEC


def test_the_page_for_those_who_move_has_a_row_for_every_flag():
    page = (Path(__file__).parents[2] / "docs" / "moving-from-mosec.md").read_text()
    rows = re.findall(r"^\| `--([a-z-]+)` \| `ENGINE_([A-Z_]+)` \|", page, re.MULTILINE)
    assert [flag.replace("-", "_") for flag, _ in rows] == list(MOSEC)
    assert [variable.lower() for _, variable in rows] == list(MOSEC)


def test_every_flag_reaches_its_key():
    deployment = made(
        *("--path", "/tmp/sl-x", "--capacity", "5", "--timeout", "250", "--address", "::1", "--port", "81"),
        *("--namespace", "mosec_service", "--log-level", "error", "--compression", "--max-request-size", "1024"),
    )
    engine, frontend = deployment.engine, deployment.frontend
    assert (engine.run_dir, engine.namespace, engine.log_level) == ("/tmp/sl-x", "mosec_service", "error")
    assert (frontend.capacity, frontend.timeout, frontend.address, frontend.port) == (5, 0.25, "::1", 81)
    assert (frontend.compression, frontend.max_request_size) == (True, 1024)
    assert [stage.timeout for stage in deployment.stages] == [0.25, 0.25]


def test_every_variable_reaches_its_key():
    deployment = made(
        ENGINE_PATH="/tmp/sl-y", ENGINE_CAPACITY="6", ENGINE_TIMEOUT="1500", ENGINE_ADDRESS="localhost",
        ENGINE_PORT="82", ENGINE_NAMESPACE="n", ENGINE_LOG_LEVEL="warning", ENGINE_COMPRESSION="yes",
        ENGINE_MAX_REQUEST_SIZE="2 KiB", ENGINE_WAIT="3", ENGINE_GRACE="1",
    )  # fmt: skip
    engine, frontend = deployment.engine, deployment.frontend
    assert (engine.run_dir, engine.namespace, engine.log_level, engine.grace) == ("/tmp/sl-y", "n", "warning", 1.0)
    assert (frontend.capacity, frontend.timeout, frontend.address, frontend.port) == (6, 1.5, "localhost", 82)
    assert (frontend.compression, frontend.max_request_size) == (True, 2048)
    assert [stage.max_wait_time for stage in deployment.stages] == [3.0, 7.0]


@pytest.mark.parametrize(
    ("text", "seconds"), [("5000", 5.0), ("1500.5", 1.5005), (" 20 ", 0.02), ("2 s", 2.0), ("250ms", 0.25)]
)
def test_a_bare_timeout_is_milliseconds_and_a_unit_is_believed(text, seconds):
    assert made("--timeout", text).frontend.timeout == pytest.approx(seconds)
    assert made(ENGINE_TIMEOUT=text).frontend.timeout == pytest.approx(seconds)


def test_a_flag_wins_over_its_variable():
    deployment = made("--timeout", "100", "--wait", "0", "--path", "/tmp/sl-f", ENGINE_TIMEOUT="200", ENGINE_WAIT="5",
                      ENGINE_PATH="/tmp/sl-v")  # fmt: skip
    assert (deployment.frontend.timeout, deployment.engine.run_dir) == (0.1, "/tmp/sl-f")
    assert [stage.max_wait_time for stage in deployment.stages] == [0.0, 7.0]


@pytest.mark.parametrize(
    ("argv", "variable", "level"),
    [
        ((), "", "info"),
        ((), "false", "info"),
        ((), "0", "info"),
        ((), "true", "debug"),
        (("--debug",), "false", "debug"),
        (("--debug", "--log-level", "error"), "", "debug"),
        (("--log-level", "error"), "true", "error"),
    ],
)
def test_debug_is_on_when_it_says_so(argv, variable, level):
    assert made(*argv, ENGINE_DEBUG=variable).engine.log_level == level


def test_a_dry_run_is_asked_for_by_flag_or_variable():
    for given, environ in (({"dry_run": "true"}, {}), ({}, {"ENGINE_DRY_RUN": "on"})):
        assert script.settings(given, environ).dry_run
    assert not script.settings({}, {"ENGINE_DRY_RUN": "false"}).dry_run


def test_problems_of_flags_and_keys_come_together():
    with pytest.raises(ConfigError) as caught:
        made("--wait", "-1", "--port", "x", ENGINE_DEBUG="perhaps", ENGINE_TIMEOUT="soon")
    assert [problem.partition(": expected")[0] for problem in caught.value.problems] == [
        "--wait",
        "ENGINE_DEBUG",
        "--port",
        "ENGINE_TIMEOUT",
    ]


def test_what_is_not_ours_is_left_alone_and_nothing_is_abbreviated():
    argv = ["--model", "m", "--capa", "3", "-h", "host", "--workers", "4", "positional", "--port=83", "--grace", "1"]
    assert script.parse(["server.py", *argv]) == {"port": "83"}


def test_a_flag_that_is_nearly_ours_is_told_with_ours():
    argv = [
        "server.py",
        "--prot",
        "1",
        "--adress=::",
        "--model",
        "--port",
        "--capacity",
        "3",
        "prot",
        "--",
        "--tineout",
    ]
    assert script.misspelt(argv) == {"--prot": "--port", "--adress": "--address"}


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--port", "1", "--help"]])
def test_help_shows_the_flags(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        script.parse(["server.py", *argv])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: server.py" in shown
    for name in MOSEC:
        assert f"--{name.replace('_', '-')}" in shown


def test_variables_of_mosec_are_noticed():
    environ = {"MOSEC_PORT": "1", "MOSEC_MAX_REQUEST_SIZE": "2", "MOSEC_HOME": "x", "PORT": "3"}
    assert script.foreign(environ) == {
        "MOSEC_PORT": "ENGINE_PORT",
        "MOSEC_MAX_REQUEST_SIZE": "ENGINE_MAX_REQUEST_SIZE",
    }


def test_fork_is_accepted_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert Runtime(Encode, start_method="spawn").worker is Encode
        assert not caplog.records
        Runtime(Encode, start_method="fork")
    assert "interpreters of their own all the same" in caplog.text


# --- errors ----------------------------------------------------------------------------------------------------------


def test_the_names_of_mosec_are_the_same_classes():
    assert (MosecError, MosecTimeoutError) == (EngineError, EngineTimeoutError)


class Renamed(ValidationError):
    msg = "quota"


class KeepsItsMessage(ValidationError):
    def __init__(self, msg):
        super().__init__(msg)
        self.msg = msg


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValidationError("'x'"), "request validation error: 'x'"),
        (ValidationError(), "request validation error: request validation error"),
        (ValidationError("a\r\nb\rc\nd  e"), "request validation error: a - b - c - d  e"),
        (ValidationError("a", 1), "request validation error: ('a', 1)"),
        (Renamed("of today"), "quota: of today"),
        (KeepsItsMessage("x"), "request validation error: x"),
    ],
)
def test_the_line_a_client_sees(error, text):
    assert error.text == text


# --- mixins ----------------------------------------------------------------------------------------------------------


def test_mixins_are_where_mosec_has_them():
    import engine.mixin
    import stages.mixin

    for name in ("MsgpackMixin", "TypedMsgPackMixin", "NumBinIPCMixin", "RedisShmIPCMixin"):
        assert getattr(engine.mixin, name) is getattr(stages.mixin, name)
        assert name in dir(engine.mixin)
    with pytest.raises(AttributeError, match=r"module 'engine\.mixin' has no attribute 'Nothing'"):
        engine.mixin.Nothing  # noqa: B018  # the access is the test
    with pytest.raises(ImportError, match="shared memory"):
        engine.mixin.PlasmaShmIPCMixin  # noqa: B018

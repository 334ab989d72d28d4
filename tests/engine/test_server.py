"""The Python API describes the same deployment as a file would; a script that uses it behaves as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from engine import Runtime, Server, Worker
from engine.config.schema import FrontendSection
from engine.errors import ConfigError, StartError
from engine.exitcodes import ExitCode
from engine.loader import load_class

HERE = __name__


class Encode(Worker):
    def forward(self, data):
        return data


class Decode(Worker):
    class Inner(Worker):
        pass


# --- describing ------------------------------------------------------------------------------------------------------


def test_workers_in_order_make_one_route():
    server = Server()
    server.append_worker(Encode, num=2, max_batch_size=8, max_wait_time=5, timeout=4, env=[{"A": "1"}, {"A": "2"}])
    server.append_worker(Decode.Inner)
    made = server.deployment()
    first, second = made.stages
    assert (first.name, first.worker, first.num) == ("encode", f"{HERE}:Encode", 2)
    assert (first.max_batch_size, first.max_wait_time, first.timeout) == (8, 5.0, 4.0)
    assert first.env == [{"A": "1"}, {"A": "2"}]
    assert (second.name, second.worker) == ("inner", f"{HERE}:Decode.Inner")
    assert [(route.path, route.stages) for route in made.routes] == [("/inference", ("encode", "inner"))]


def test_zero_means_the_default_for_wait_and_timeout():
    server = Server()
    server.append_worker(Encode, 1, 1, 0, "spawn", None, 0, "/inference")
    (stage,) = server.deployment().stages
    assert (stage.max_wait_time, stage.timeout) == (10.0, FrontendSection().timeout)


def test_keys_that_have_no_parameter_of_their_own_are_keywords():
    server = Server()
    server.append_worker(
        Encode, name="first", device="cpu", cpus=[0], args={"depth": (1, 2)}, eager=False, idempotent=False
    )
    (stage,) = server.deployment().stages
    assert (stage.name, stage.device, stage.cpus, stage.args) == ("first", "cpu", [0], {"depth": [1, 2]})
    assert (stage.eager, stage.idempotent, stage.isolate) == (False, False, False)


def test_several_routes_in_one_call_share_the_stage():
    server = Server()
    server.append_worker(Encode, route=["/a", "/b"])
    server.append_worker(Decode, route="/b")
    made = server.deployment()
    assert [(route.path, route.stages) for route in made.routes] == [("/a", ("encode",)), ("/b", ("encode", "decode"))]


def test_one_runtime_on_two_routes_is_one_pool_and_two_of_a_class_are_two():
    shared, other = Runtime(Encode, num=3), Runtime(Encode)
    server = Server()
    server.register_runtime({"/a": [shared], "/b": [shared, other]})
    made = server.deployment()
    assert [(stage.name, stage.num) for stage in made.stages] == [("encode", 3), ("encode-2", 1)]
    assert made.routes[1].stages == ("encode", "encode-2")


def test_names_made_from_classes_avoid_names_that_were_given():
    server = Server()
    server.register_runtime({"/a": [Runtime(Encode), Runtime(Decode, name="encode"), Runtime(Decode, name="encode-2")]})
    assert [stage.name for stage in server.deployment().stages] == ["encode-3", "encode", "encode-2"]


def test_flags_and_environment_override_as_with_a_file():
    server = Server()
    server.append_worker(Encode)
    made = server.deployment(flags={"port": "1"}, environ={"ENGINE_PORT": "2", "ENGINE_TIMEOUT": "250 ms"})
    assert (made.frontend.port, made.frontend.timeout, made.stages[0].timeout) == (1, 0.25, 0.25)
    with pytest.raises(ConfigError, match="--port: expected an integer from 0 to 65535"):
        server.deployment(flags={"port": "abc"})


def test_two_runs_on_different_ports_are_two_deployments():
    server = Server()
    server.append_worker(Encode)
    made = {port: server.deployment(flags={"port": port}) for port in ("8001", "8002", "0")}
    assert len({deployment.engine.run_dir for deployment in made.values()}) == 3
    assert len({deployment.engine.name for deployment in made.values()}) == 1
    assert made["8001"] == server.deployment(environ={"ENGINE_PORT": "8001"})  # and one of a port is one


def test_a_run_dir_that_was_given_stays():
    server = Server()
    server.append_worker(Encode)
    for given in ({"flags": {"run_dir": "/srv/run"}}, {"environ": {"ENGINE_RUN_DIR": "/srv/run"}}):
        assert server.deployment(**given).engine.run_dir == "/srv/run"


def test_nothing_registered_is_a_config_error():
    with pytest.raises(ConfigError, match="expected at least one stage: call append_worker"):
        Server().deployment()


# --- mistakes are told at the call that makes them -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"num": "two"}, 'Encode: num: expected an integer from 0 to 4096, got "two"'),
        ({"num": 0}, "Encode: num: expected 1 or more, or min = 0 beside it, got 0"),
        ({"num": True}, "Encode: num: expected an integer"),
        ({"max_batch_size": 1.5}, "Encode: max_batch_size: expected an integer"),
        ({"max_wait_time": -1}, "Encode: max_wait_time: expected a time"),
        ({"timeout": "soon"}, "Encode: timeout: expected a time"),
        ({"env": "A=1"}, "Encode: env: expected a table"),
        ({"num": 2, "env": [{}]}, "Encode: env: expected 2 mappings, got 1"),
        ({"start_method": "magic"}, "start_method: expected one of spawn, fork, got 'magic'"),
        ({"device": "gpu"}, 'Encode: device: expected "auto"'),
        ({"args": {"x": object()}}, "Encode: args: expected a table of strings"),
        ({"route": "inference"}, "route: expected a path"),
        ({"route": "/metrics"}, r"route: expected .* \(reserved: "),
        ({"route": []}, "route: expected at least one path"),
        ({"route": ["/a", "/openapi/x"]}, r"route: expected .* \(reserved: "),
    ],
)
def test_wrong_values(about, message):
    server = Server()
    with pytest.raises(ValueError, match=message):
        server.append_worker(Encode, **about)
    with pytest.raises(ConfigError, match="at least one"):
        server.deployment()  # nothing was added


@pytest.mark.parametrize("worker", [None, "service:Encode", dict, Encode()])
def test_a_worker_is_a_worker_class(worker):
    with pytest.raises(TypeError, match=r"worker: expected a subclass of engine\.Worker, got"):
        Server().append_worker(worker)


def test_an_unknown_argument_is_told_with_the_nearest():
    with pytest.raises(TypeError, match="Encode: unknown key max_batch_sise; did you mean max_batch_size"):
        Server().append_worker(Encode, max_batch_sise=3)


@pytest.mark.parametrize(("given", "most"), [({}, 32), ({"max_batch_size": 32}, 32)])
def test_the_largest_of_the_batch_sizes_is_the_largest_batch(given, most):
    server = Server()
    server.append_worker(Encode, batch_sizes=[1, 32, 8], warm_up="examples", **given)
    (stage,) = server.deployment().stages
    assert (stage.batch_sizes, stage.max_batch_size, stage.warm_up) == ((1, 8, 32), most, "examples")


def test_a_class_that_no_other_process_can_find_is_refused():
    class Local(Worker):
        pass

    with pytest.raises(ValueError, match="Local: defined inside a function, where a worker process cannot find it"):
        Runtime(Local)
    hidden = type("Hidden", (Worker,), {"__module__": HERE, "__qualname__": "Hidden"})
    with pytest.raises(ValueError, match=r"Hidden: module .* has another object, or none, of this name"):
        Runtime(hidden)


def test_a_route_holds_a_runtime_once():
    runtime = Runtime(Encode)
    server = Server()
    with pytest.raises(ValueError, match="/a: the same Runtime twice on one route"):
        server.register_runtime({"/a": [runtime, runtime]})
    with pytest.raises(TypeError, match="/a: expected Runtime objects"):
        server.register_runtime({"/a": [Encode]})


def test_a_route_may_branch():
    pre, english, german, post = Runtime(Encode), Runtime(Decode), Runtime(Encode, name="german"), Runtime(Decode)
    server = Server()
    choice = {"by": "lang", "of": {"en": english, "de": [german]}, "default": english}
    server.register_runtime({"/say": [pre, choice, post]})
    deployment = server.deployment()
    assert tuple(deployment.routes[0].stages) == ("encode", "decode", "german", "decode-2")
    assert "encode -> lang? en decode, de german, else decode" in deployment.topology.way(0)
    with pytest.raises(ValueError, match="the same Runtime twice on one route"):
        server.register_runtime({"/say": [english]})
    with pytest.raises(TypeError, match="/a: expected Runtime objects, got 'english'"):
        server.register_runtime({"/a": [pre, {"by": "lang", "of": {"en": "english"}}]})
    server.register_runtime({"/a": [pre, {"by": "lang", "off": {"en": english}}]})
    with pytest.raises(ConfigError, match="not 'off'"):
        server.deployment()


def test_a_request_may_go_on_in_parts():
    detect, crop, side, words, spell, merge = (Runtime(Encode, name=name) for name in "abcdef")
    server = Server()
    parts = {"each": "crops", "through": [crop, {"by": "lang", "of": {"en": side}, "default": []}], "failed": "hole"}
    server.register_runtime({"/page": [detect, parts, merge]})
    server.register_runtime({"/both": [detect, {"all": {"boxes": crop, "text": [words, spell]}}, merge]})
    deployment = server.deployment()
    assert tuple(deployment.routes[0].stages) == ("a", "b", "c", "f")
    assert deployment.topology.way(0).startswith("a -> each of crops, at most 4096: b, holes, then f; b -> lang? en c")
    assert tuple(deployment.routes[1].stages) == ("a", "b", "d", "e", "f")
    assert deployment.topology.way(1).startswith("a -> all of boxes b, text d, then f; b -> together; d -> e")
    for twice in ({"all": {"x": crop, "y": [words, crop]}}, {"each": "", "through": [crop, detect]}):
        with pytest.raises(ValueError, match="/a: the same Runtime twice on one route"):
            server.register_runtime({"/a": [detect, twice, merge]})
    with pytest.raises(TypeError, match="/a: expected Runtime objects, got 'crop'"):
        server.register_runtime({"/a": [detect, {"each": "crops", "through": ["crop"]}, merge]})
    server.register_runtime({"/a": [detect, {"each": "crops", "trough": [crop]}, merge]})
    with pytest.raises(ConfigError, match="did you mean through"):
        server.deployment()


def test_a_route_may_have_keys_of_its_own():
    server = Server()
    server.append_worker(Encode, route="/v1/embeddings")
    server.register_runtime({"/v1/embeddings": []}, protocol="openai", model="mini")
    with pytest.raises(TypeError, match="register_runtime: unknown key protocl; did you mean protocol"):
        server.register_runtime({"/v1/embeddings": []}, protocl="openai")
    with pytest.raises(ValueError, match="register_runtime: protocol: expected"):
        server.register_runtime({"/v1/embeddings": []}, protocol="open-ai")
    with pytest.raises(TypeError, match="path is what `routes` says"):
        server.register_runtime({"/v1/embeddings": []}, path="/x")
    (route,) = server.deployment().routes
    assert (route.protocol, route.model, route.stages) == ("openai", ("mini",), ("encode",))


def test_daemons_are_processes_with_names_of_their_own():
    server = Server()
    with pytest.raises(TypeError, match=r"expected a Popen or a multiprocessing\.Process"):
        server.register_daemon("x", object())
    with pytest.raises(ValueError, match="expected a name"):
        server.register_daemon("", object())


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """What the supervisor was asked to run; it ends at once with the exit code in ``started.code``."""

    class Started:
        deployment, daemons, code = None, None, ExitCode.OK

        def run(self, deployment, *, daemons):
            self.deployment, self.daemons = deployment, daemons
            return self.code

    started = Started()
    monkeypatch.setattr("engine.supervisor.run", started.run)
    monkeypatch.setattr("engine.log.setup", lambda *about, **more: None)
    for name in list(os.environ):
        if name.startswith("ENGINE_"):
            monkeypatch.delenv(name)
    return started


class FakeProcess:
    pid = None
    exitcode = None


def test_run_reads_its_flags_and_leaves_the_others_to_the_script(started, monkeypatch):
    monkeypatch.setattr("sys.argv", ["server.py", "--port", "1234", "--mine", "x", "--capa", "3", "--no-compression"])
    monkeypatch.setenv("ENGINE_CAPACITY", "77")
    server = Server()
    server.append_worker(Encode)
    daemon = FakeProcess()
    server.register_daemon("helper", daemon)
    server.run()
    assert started.deployment.frontend.port == 1234
    assert started.deployment.frontend.capacity == 77  # --capa is no abbreviation of --capacity
    assert started.daemons == {"helper": daemon}


def test_run_returns_when_all_is_well_and_exits_with_the_code_otherwise(started, monkeypatch):
    monkeypatch.setattr("sys.argv", ["server.py"])
    server = Server()
    server.append_worker(Encode)
    assert server.run() is None
    started.code = ExitCode.START
    with pytest.raises(SystemExit) as caught:
        server.run()
    assert caught.value.code == ExitCode.START


def test_run_prints_every_problem_and_exits_with_config(started, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["server.py", "--port", "abc", "--log-level", "loud"])
    server = Server()
    server.append_worker(Encode)
    with pytest.raises(SystemExit) as caught:
        server.run()
    assert caught.value.code == ExitCode.CONFIG
    assert started.deployment is None
    printed = capsys.readouterr().err
    assert "--port: expected" in printed
    assert "--log-level: expected" in printed


# --- as a script -----------------------------------------------------------------------------------------------------

SCRIPT = """
from engine import Server, Worker

class Double(Worker):
    example = {"x": 1}

    def forward(self, data):
        return {"y": 2 * data["x"]}

GUARD
    import sys
    server = Server()
    server.append_worker(Double)
    if "--show" in sys.argv:
        from engine.config import dump
        print(dump(server.deployment()).decode())
    else:
        server.run()
"""


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    path = folder / "sl_server.py"
    path.write_text(SCRIPT.replace("GUARD", 'if __name__ == "__main__":'))
    return path


def execute(*command, cwd):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ENGINE_")}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.usefixtures("imports_are_undone")
def test_a_class_of_the_script_itself_is_found_by_another_process(script):
    done = execute("demo/sl_server.py", "--show", cwd=script.parent.parent)
    data = json.loads(done.stdout)
    assert data["file"] == str(script)
    assert data["engine"]["name"] == "demo-sl_server"
    (stage,) = data["stage"]
    assert (stage["name"], stage["worker"]) == ("double", f"{script}:Double")
    assert load_class(stage["worker"], script.parent)().forward({"x": 2}) == {"y": 4}


@pytest.mark.usefixtures("imports_are_undone")
def test_a_script_run_as_a_module_is_found_as_that_module(script):
    done = execute("-m", "demo.sl_server", "--show", cwd=script.parent.parent)
    data = json.loads(done.stdout)
    (stage,) = data["stage"]
    assert stage["worker"] == "demo.sl_server:Double"
    assert load_class(stage["worker"], Path(data["file"]).parent)().forward({"x": 2}) == {"y": 4}


@pytest.mark.usefixtures("imports_are_undone")
def test_a_script_without_the_guard_is_refused_in_a_worker(script):
    script.write_text(SCRIPT.replace("GUARD", "if True:"))
    with pytest.raises(StartError, match=r'reached while a worker process imports ".*": put it under'):
        load_class(f"{script}:Double", script.parent)


def test_dry_run_runs_the_examples_and_says_how_it_went(script):
    done = execute(str(script), "--dry-run", cwd=script.parent)
    assert (done.returncode, "double" in done.stdout) == (ExitCode.OK, True), done.stderr
    # Of another size: Python knows its compiled file by that and by the second in which the source was written.
    script.write_text(script.read_text().replace('{"x": 1}', '{"other": 1}'))
    done = execute(str(script), "--dry-run", cwd=script.parent)
    assert done.returncode != ExitCode.OK
    assert "KeyError" in done.stdout + done.stderr


def test_help_is_there_and_a_class_from_nowhere_is_refused(script):
    done = execute(str(script), "--help", cwd=script.parent)
    assert done.returncode == ExitCode.OK
    assert "--max-request-size" in done.stdout
    assert "--dry-run" in done.stdout
    code = "from engine import *\nclass A(Worker): pass\nRuntime(A)"
    done = execute("-c", code, cwd=script.parent)
    assert "ValueError: A: defined in no file that a worker process could import" in done.stderr


# --- the package -----------------------------------------------------------------------------------------------------


def test_every_public_name_of_the_package_is_there():
    for name in engine.__all__:
        assert getattr(engine, name) is not None
    assert set(engine.__all__) <= set(dir(engine))
    assert engine.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="module 'engine' has no attribute 'nothing'"):
        engine.nothing  # noqa: B018  # the access is the test


def test_importing_the_package_imports_nothing_of_it():
    code = "import sys, engine; print(*sys.modules)"
    done = execute("-c", code, cwd=".")
    ours = {name for name in done.stdout.split() if name.partition(".")[0] in ("engine", "stages", "frontend")}
    assert ours == {"engine", "engine.names"}


# --- beside the stages ---------------------------------------------------------------------------------------------


def labels(request):
    return ["cat", request]


def test_endpoints_and_the_bodies_of_errors_are_functions_that_the_frontend_finds():
    server = Server()
    server.append_worker(Encode)
    server.register_endpoint("/v1/labels", labels)
    server.register_endpoint("/v1/names", labels, methods=["POST", "PUT"])
    server.register_errors(labels)
    made = server.deployment()
    told = [(own.path, own.handler, own.methods) for own in made.endpoints]
    assert told == [
        ("/v1/labels", f"{HERE}:labels", ("GET",)),
        ("/v1/names", f"{HERE}:labels", ("POST", "PUT")),
    ]
    assert made.frontend.errors == f"{HERE}:labels"


@pytest.mark.parametrize(
    ("path", "handler", "methods", "error", "words"),
    [
        ("v1", labels, "GET", ValueError, "register_endpoint: path: "),
        ("/v1", labels, "LOOK", ValueError, "register_endpoint: methods: "),
        ("/v1", "labels", "GET", TypeError, "endpoint: expected a function, got 'labels'"),
        ("/v1", lambda request: request, "GET", ValueError, "the frontend cannot find it"),
        ("/twice", labels, "GET", ValueError, "/twice is answered by"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused_at_once(path, handler, methods, error, words):
    server = Server()
    server.register_endpoint("/twice", labels)
    with pytest.raises(error, match=words):
        server.register_endpoint(path, handler, methods)

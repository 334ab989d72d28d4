"""stages.toml -> Deployment: values, defaults, precedence, and every problem in one error."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import add_flags, build, dump, flags_of, load, name_from, read_key, run_dir
from engine.config.flags import flags
from engine.config.forms import BadValue
from engine.config.schema import SECTIONS, key_of, keys
from engine.config.units import warm_up_s
from engine.core.fairness import Client, Priority
from engine.core.front import FrontSpec
from engine.errors import ConfigError
from engine.specs import front_spec
from engine.supervisor.changes import _fixed

MINIMAL = '[[stage]]\nname = "encode"\nworker = "service:Encode"\n'


@pytest.fixture
def read(tmp_path):
    """Load a text as stages.toml, with an empty environment unless told otherwise."""

    def read(text, *, flags=None, environ=None):
        path = tmp_path / "stages.toml"
        path.write_text(text, encoding="utf-8")
        return load(path, flags=flags or {}, environ=environ or {})

    return read


@pytest.fixture
def problems(read, tmp_path):
    """The lines of the ConfigError that a text leads to, with the folder cut off."""

    def problems(text, **about):
        with pytest.raises(ConfigError) as caught:
            read(text, **about)
        lines = [line.removeprefix(f"{tmp_path}{os.sep}") for line in caught.value.problems]
        return [re.sub(r"^stages\.toml:\d+:", "stages.toml:", line) for line in lines]  # numbers: test_mistakes

    return problems


# --- what a right file becomes ---------------------------------------------------------------------------------------


def test_one_stage_is_a_whole_deployment(read, tmp_path):
    deployment = read(MINIMAL)
    (stage,) = deployment.stages
    (route,) = deployment.routes
    assert deployment.file == tmp_path / "stages.toml"
    assert (stage.name, stage.worker, stage.num) == ("encode", "service:Encode", 1)
    assert (route.path, route.stages) == ("/inference", ("encode",))
    assert deployment.topology.stages == ("encode",)


def test_the_file_of_the_design_is_read_as_meant(read):
    deployment = read("""
        [engine]
        name = "embedding"
        grace = 10.0
        [frontend]
        address = "0.0.0.0"
        port = 8000
        workers = 1
        timeout = 3.0
        capacity = 1024
        max_request_size = "10 MiB"
        compression = false
        [[stage]]
        name = "tokenize"
        worker = "service:Tokenize"
        [[stage]]
        name = "encode"
        worker = "service:Encode"
        num = 2
        max_batch_size = 32
        max_wait_time = 10           # ms
        timeout = 3.0
        device = ["cuda:0", "cuda:1"]
        cpus = [0, 1]
        env = { TOKENIZERS_PARALLELISM = "false" }
        args = { model = "all-MiniLM-L6-v2", depth = [1, { x = 2.5 }] }
        [[route]]
        path = "/v1/embeddings"
        stages = ["tokenize", "encode"]
    """)
    stage = deployment.stage("encode")
    assert deployment.engine.name == "embedding"
    assert deployment.frontend.max_request_size == 10 << 20
    assert (stage.max_wait_time, stage.timeout) == (10.0, 3.0)
    assert (stage.device, stage.cpus) == (["cuda:0", "cuda:1"], [0, 1])
    assert stage.env == {"TOKENIZERS_PARALLELISM": "false"}
    assert stage.args == {"model": "all-MiniLM-L6-v2", "depth": [1, {"x": 2.5}]}
    assert deployment.routes[0].stages == ("tokenize", "encode")


def test_units_are_resolved_times_to_seconds_waits_to_ms_sizes_to_bytes(read):
    deployment = read(
        '[engine]\ngrace = "1 min"\n[frontend]\nmax_request_size = "64KiB"\ntimeout = "250ms"\n'
        + MINIMAL
        + 'max_wait_time = "0.5 s"\nmax_batch_bytes = 1000\n'
    )
    assert deployment.engine.grace == 60.0
    assert deployment.frontend.max_request_size == 65536
    assert deployment.frontend.timeout == 0.25
    assert deployment.stages[0].max_wait_time == 500.0
    assert deployment.stages[0].max_batch_bytes == 1000


def test_an_integer_is_accepted_for_a_float_and_becomes_one(read):
    grace = read("[engine]\ngrace = 5\n" + MINIMAL).engine.grace
    assert grace == 5.0
    assert type(grace) is float


def test_defaults_that_depend_on_other_keys_are_filled_in(read, tmp_path):
    deployment = read("[frontend]\ntimeout = 7\n" + MINIMAL + "idempotent = false\n")
    stage = deployment.stages[0]
    assert (stage.timeout, stage.kill_after, stage.isolate) == (7.0, 7.0, False)
    assert deployment.engine.name == name_from(tmp_path.name)
    own = read(MINIMAL + "timeout = 2\nkill_after = 30\nidempotent = false\nisolate = true\n").stages[0]
    assert (own.timeout, own.kill_after, own.isolate) == (2.0, 30.0, True)
    assert read(MINIMAL).stages[0].isolate is True


@pytest.mark.parametrize(
    ("folder", "name"),
    [("embedding", "embedding"), ("my model (2)", "my-model-2"), ("..", "deployment"), ("é", "deployment")],
)
def test_a_folder_name_becomes_a_valid_name(folder, name):
    assert name_from(folder) == name
    assert read_key("engine", "name", name) == name


def test_default_route_takes_all_stages_in_file_order(read):
    text = "".join(f'[[stage]]\nname = "{name}"\nworker = "m:C"\n' for name in ("c", "a", "b"))
    assert read(text).routes[0].stages == ("c", "a", "b")


def test_a_stage_may_serve_several_routes(read):
    text = MINIMAL + '[[route]]\npath = "/a"\nstages = ["encode"]\n[[route]]\npath = "/b"\nstages = ["encode"]\n'
    assert [route.path for route in read(text).routes] == ["/a", "/b"]


def test_environment_values_become_strings_for_all_or_for_each(read):
    assert read(MINIMAL + "env = { A = 1, B = true, C = 0.5, D = 'x' }").stages[0].env == {
        "A": "1",
        "B": "true",
        "C": "0.5",
        "D": "x",
    }
    each = read(MINIMAL + "num = 2\nenv = [{ GPU = 0 }, { GPU = 1 }]").stages[0].env
    assert each == [{"GPU": "0"}, {"GPU": "1"}]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", ["cuda:0", "cpu"]])
def test_devices_that_are_understood(read, device):
    assert read(MINIMAL + f"device = {json.dumps(device)}").stages[0].device == device


@pytest.mark.parametrize("cpus", ["auto", "all", [0], [0, 1], [[0, 1], [2, 3]]])
def test_cpus_that_are_understood(read, cpus):
    assert read(MINIMAL + f"num = 2\ncpus = {json.dumps(cpus)}").stages[0].cpus == cpus


@pytest.mark.parametrize(
    "bind",
    ["tcp://127.0.0.1:7000", "tcp://127.8.8.8:1", "tcp://[::1]:65000", "tcp://localhost:7000", "tcp://0.0.0.0:7000",
     "tcp://10.0.0.1:7000", "tcp://[::]:7000", "tcp://example.org:7000"],
)  # fmt: skip
@pytest.mark.parametrize("access", ["insecure = true", 'key = "deployment.key"'])
def test_a_port_is_bound_with_a_key_or_where_the_file_says_without(read, bind, access):
    engine = read(f'[engine]\nbind = "{bind}"\n{access}\n' + MINIMAL).engine
    assert engine.bind == bind
    assert engine.is_open is ("insecure" in access)


def test_private_sockets_are_open_to_nobody(read):
    assert not read(MINIMAL).engine.is_open
    assert not read("[engine]\ninsecure = true\n" + MINIMAL).engine.is_open


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:7000", "tcp://0.0.0.0:7000"])
def test_a_port_needs_a_key_or_that_it_is_accepted_in_the_file(problems, bind):
    (line,) = problems(f'[engine]\nbind = "{bind}"\n' + MINIMAL)
    assert "engine.bind: every user of this machine can reach a tcp port" in line
    assert "insecure = true below [engine]" in line


@pytest.mark.parametrize(
    ("given_", "address"), [("::1", "::1"), ("[::]", "::"), ("localhost", "localhost"), ("0.0.0.0",) * 2]
)
def test_addresses_names_ipv4_ipv6(read, given_, address):
    assert read(f'[frontend]\naddress = "{given_}"\n' + MINIMAL).frontend.address == address


def test_a_folder_stands_for_the_file_in_it(read, tmp_path):
    assert read(MINIMAL) == load(tmp_path, environ={})


# --- what a wrong file is told ---------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once_with_file_key_and_expectation(problems):
    lines = problems("""
        [frontend]
        port = "abc"
        [[stage]]
        name = "tokenize"
        worker = "service:Tokenize"
        [[stage]]
        name = "encode"
        worker = "service:Encode"
        max_batch_sise = 3
        num = true
    """)
    assert lines == [
        'stages.toml: frontend.port: expected an integer from 0 to 65535, got "abc"',
        'stages.toml: stage[1] "encode".max_batch_sise: unknown key; did you mean max_batch_size?',
        'stages.toml: stage[1] "encode".num: expected an integer from 0 to 4096, got true',
    ]


STAGE = 'stages.toml: stage[0] "encode".'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "stages.toml: stage: expected at least one [[stage]] table"),
        ("stage = 3", "stages.toml: stage: expected tables, each written [[stage]], got 3"),
        ('[stage]\nname = "a"', 'stages.toml: stage: expected tables, each written [[stage]], got {"name": "a"}'),
        ("engine = 1\n" + MINIMAL, "stages.toml: engine: expected a table, written [engine], got 1"),
        ("[[stages]]\n", "stages.toml: stages: unknown section; did you mean [[stage]]?"),
        ("[stages]\n" + MINIMAL, "stages.toml: stages: unknown section; did you mean [[stage]]?"),
        (
            "[zzz]\n" + MINIMAL,
            "stages.toml: zzz: unknown section; sections are [engine], [frontend], [[stage]], [[route]], [[client]], "
            "[[endpoint]]",
        ),
        ("[engine]\nport = 1\n" + MINIMAL, "stages.toml: engine.port: unknown key; it belongs to [frontend]"),
        (
            "port = 1\n" + MINIMAL,
            "stages.toml: port: unknown key; it belongs to [frontend]: write it below that line",
        ),
        ('[frontend]\nhost = "::"\n' + MINIMAL, "stages.toml: frontend.host: unknown key; did you mean address?"),
        (MINIMAL + "workers = 2\n", f"{STAGE}workers: unknown key; did you mean num?"),
        ("[engine]\nxyzzy = 1\n" + MINIMAL, "stages.toml: engine.xyzzy: unknown key"),
        (
            '[[stage]]\nworker = "m:C"',
            "stages.toml: stage[0].name: missing; expected a name of at most 64 letters, digits, _ . and -",
        ),
        ('[[stage]]\nname = "encode"', STAGE + 'worker: missing; expected "module:Class"'),
        (MINIMAL + "num = 0", STAGE + "num: expected 1 or more, or min = 0 beside it, got 0"),
        (MINIMAL + "num = 1.0", STAGE + "num: expected an integer from 0 to 4096, got 1.0"),
        (MINIMAL + 'num = "2"', STAGE + 'num: expected an integer from 0 to 4096, got "2"'),
        (MINIMAL + "eager = 1", STAGE + "eager: expected true or false, got 1"),
        (MINIMAL + 'isolate = "no"', STAGE + 'isolate: expected true or false, got "no"'),
        (
            MINIMAL + "timeout = nan",
            STAGE + 'timeout: expected a time like "2.5 s" or "250 ms" or a number of seconds from 0 to 86400, got NaN',
        ),
        (
            MINIMAL + 'max_wait_time = "3 parsecs"',
            STAGE
            + 'max_wait_time: expected a time like "10 ms" or "0.5 s" or a number of milliseconds from 0 to 600000, '
            "got \"3 parsecs\" (unknown unit 'parsecs'; units are us, ms, s, min, h)",
        ),
        (
            '[engine]\nlog_level = "warn"\n' + MINIMAL,
            'stages.toml: engine.log_level: expected one of "debug", "info", "warning", "error", got "warn"; '
            "did you mean warning?",
        ),
        (
            MINIMAL + MINIMAL,
            'stages.toml: stage[1] "encode".name: stage[0] has this name already',
        ),
        (
            MINIMAL + "num = 3\nenv = [{}, {}]",
            STAGE + "env: expected one table, or one for each of num = 3 workers, got 2",
        ),
        (
            MINIMAL + "num = 3\ncpus = [[0], [1]]",
            STAGE + "cpus: expected one list, or one for each of num = 3 workers, got 2",
        ),
        (
            MINIMAL + "args = { since = 2020-01-01 }",
            STAGE + "args: expected a table of strings, numbers, booleans, lists and tables, "
            "got datetime.date(2020, 1, 1) at since; write a date as a string",
        ),
        (
            MINIMAL + '[[route]]\npath = "/a"\nstages = ["encoed"]',
            'stages.toml: route[0] "/a".stages: there is no stage "encoed"; did you mean encode?',
        ),
        (
            MINIMAL + '[[route]]\npath = "/a"\nstages = []',
            'stages.toml: route[0] "/a".stages: expected a list of stage names, got [] (at least one)',
        ),
        (
            MINIMAL + '[[route]]\npath = "/a"\nstages = ["encode", "encode"]',
            'stages.toml: route[0] "/a".stages: expected a list of stage names, got ["encode", "encode"] '
            "(encode more than once)",
        ),
        (
            MINIMAL + 2 * '[[route]]\npath = "/a"\nstages = ["encode"]\n',
            'stages.toml: route[1] "/a".path: route[0] has this path already',
        ),
        (
            MINIMAL + '[[route]]\npath = "/v2/models/stats/infer"\nstages = ["encode"]\nprotocol = "oip"',
            'stages.toml: route[0] "/v2/models/stats/infer".path: expected /v2/models/NAME/infer, as protocol = "oip" '
            'has it (NAME: letters, digits, . _ and -, not "stats"), got "/v2/models/stats/infer"',
        ),
        (
            MINIMAL
            + '[[route]]\npath = "/v2/models/m/infer"\nstages = ["encode"]\nprotocol = "oip"\n'
            + '[[route]]\npath = "/v2/health/live"\nstages = ["encode"]',
            'stages.toml: route[1] "/v2/health/live".path: "/v2/health/live" is a path of the routes with '
            'protocol = "oip"',
        ),
        (
            MINIMAL + '[[route]]\npath = "/v2/models/m/infer"\nstages = ["encode"]\nprotocol = "oip"\nmodel = "x"',
            'stages.toml: route[0] "/v2/models/m/infer".model: with protocol = "oip" the path names the model, got "x"',
        ),
        (
            MINIMAL + '[[stage]]\nname = "spare"\nworker = "m:C"\n[[route]]\npath = "/a"\nstages = ["encode"]\n',
            'stages.toml: route: no route passes through stage "spare"; name it in one, or remove it',
        ),
        (
            '[engine]\nbind = "tcp://127.0.0.1:65000"\ninsecure = true\n'
            + "".join(f'[[stage]]\nname = "s{index}"\nworker = "m:C"\n' for index in range(300)),
            "stages.toml: engine.bind: 300 stages and 256 lanes need the ports up to 65858; expected a lower PORT, or "
            "fewer engine.lanes",
        ),
    ],
)
def test_one_problem_one_line(problems, text, problem):
    assert problems(text) == [problem]


@pytest.mark.parametrize("name", ["", "a b", "ä", "-a", "a/b", "x" * 65])
def test_stage_names_have_a_charset(problems, name):
    (line,) = problems(f'[[stage]]\nname = {json.dumps(name)}\nworker = "m:C"')
    assert ".name: expected a name of at most 64 letters, digits, _ . and -" in line


@pytest.mark.parametrize("worker", ["service", "service:", ":C", "a b:C", "service:C()", "service.C", "service.py"])
def test_a_worker_is_module_and_class(problems, worker):
    (line,) = problems(f'[[stage]]\nname = "encode"\nworker = {json.dumps(worker)}')
    assert line == f'{STAGE}worker: expected "module:Class", got {json.dumps(worker)}'


@pytest.mark.parametrize("path", ["a", "", "/a?b", "/a#b", "/{id}", "/a b", "/ä"])
def test_a_path_is_literal_and_begins_with_a_slash(problems, path):
    (line,) = problems(MINIMAL + f'[[route]]\npath = {json.dumps(path)}\nstages = ["encode"]')
    assert '.path: expected a path like "/v1/embeddings", got' in line


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/openapi", "/openapi/metadata.json"])
def test_reserved_paths_are_refused(problems, path):
    (line,) = problems(MINIMAL + f'[[route]]\npath = "{path}"\nstages = ["encode"]')
    assert "reserved: / /healthz /readyz /metrics /openapi and below /openapi" in line


@pytest.mark.parametrize(
    ("broker", "brokers"),
    [
        ('"gpu-3:7000"', ("gpu-3:7000",)),
        ('"tcp://gpu-3:7000"', ("gpu-3:7000",)),
        ('["10.0.0.3:7000", "[fd00::3]:7000"]', ("10.0.0.3:7000", "[fd00::3]:7000")),
        ('"a:1, b:2"', ("a:1", "b:2")),
        ('"@/run/broker"', ("@/run/broker",)),
    ],
)
def test_brokers_that_are_accepted(read, broker, brokers):
    deployment = read(f"[engine]\nbroker = {broker}\ninsecure = true\n" + MINIMAL)
    found = deployment.engine
    assert (found.broker, deployment.brokers, found.is_tcp) == (brokers, len(brokers), True)


@pytest.mark.parametrize(
    ("broker", "why"),
    [
        ('"gpu-3"', ""), ('":7000"', ""), ('"gpu-3:0"', ""), ('"gpu-3:7000/x"', ""), ("7000", ""), ('"gpu 3:7000"', ""),
        ('"0.0.0.0:7000"', "name the broker's host"), ('"@broker"', "has to be whole"),
        ('["a:1", "a:1"]', "one stands there twice"),
    ],
)  # fmt: skip
def test_a_broker_is_a_host_and_a_port(problems, broker, why):
    (line,) = problems(f"[engine]\nbroker = {broker}\ninsecure = true\n" + MINIMAL)
    assert 'engine.broker: expected "HOST:PORT", "@FILE" that holds one, or a list of several, got' in line
    assert why in line


def test_brokers_on_several_hosts_are_listed_and_not_counted(problems):
    (line,) = problems(
        '[engine]\nbroker = "a:1"\ninsecure = true\ncells = 2\n'
        + MINIMAL.replace("[[stage]]\n", "[[stage]]\nnum = 2\n")
    )
    assert "engine.cells: expected 1 with engine.broker, got 2" in line


@pytest.mark.parametrize(
    "bind", ["7000", "127.0.0.1:7000", "udp://127.0.0.1:7000", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://:7000",
             "tcp://127.0.0.1:65001", "tcp://127.0.0.1:70000", "tcp://127.0.0.1:7000/x", "tcp://[::1:7000", "tcp://127.0.0.1:x"]
)  # fmt: skip
def test_a_bind_is_an_endpoint_with_host_and_port(problems, bind):
    (line,) = problems(f'[engine]\nbind = "{bind}"\ninsecure = true\n' + MINIMAL)
    assert "expected tcp://HOST:PORT with a port from 1 to 65000" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "gpu"),
        ("device", []),
        ("device", ["auto"]),
        ("device", "cuda:x"),
        ("device", 0),
        ("cpus", "some"),
        ("cpus", []),
        ("cpus", [0, 0]),
        ("cpus", [-1]),
        ("cpus", [True]),
        ("cpus", [[0], []]),
        ("cpus", [[0], 1]),
        ("env", "A=1"),
        ("env", {"": "x"}),
        ("env", {"A=B": "x"}),
        ("env", {"A": None}),
        ("env", {"A": "x\0"}),
        ("env", ["A"]),
        ("args", ["x"]),
        ("args", {"x": object()}),
        ("args", {"x": {1: 2}}),
        ("batch_sizes", 8),
        ("batch_sizes", [0, 8]),
        ("batch_sizes", [True]),
        ("batch_sizes", ["8"]),
        ("batch_sizes", [8, 1, 8]),
        ("batch_sizes", [65_537]),
        ("batch_sizes", list(range(1, 66))),
        ("cache", True),
        ("cache", {"sise": 1}),
        ("cache", {"size": 0}),
        ("cache", {"size": "much"}),
        ("cache", {"ttl": "soon"}),
        ("cache", {"ttl": -1}),
        ("cache", {"key": 7}),
        ("cache", {"key": ["a", ""]}),
        ("warm_up", "never"),
        ("warm_up", "-1 s"),
        ("warm_up", True),
        ("warm_up", ["auto"]),
    ],
)
def test_values_that_a_stage_key_does_not_take(key, value):
    with pytest.raises(BadValue, match=r"^expected "):
        read_key("stage", key, value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "batch_sizes = [1, 8]\nmax_batch_size = 32",
            "batch_sizes: expected max_batch_size = 32 to be the largest, got [1, 8] "
            "(a batch of 32 would have no size); leave max_batch_size out, or make them agree",
        ),
        (
            "batch_sizes = [8, 64]\nmax_batch_size = 32",
            "batch_sizes: expected max_batch_size = 32 to be the largest, got [8, 64] (no batch would be so large); "
            "leave max_batch_size out, or make them agree",
        ),
        (
            "batch_sizes = [1, 8]\nmax_batch_cost = 4096",
            "max_batch_cost: expected no batch_sizes beside it: a batch is as large as its items are cheap, and would "
            "be padded to another size; leave one of the two out",
        ),
        (
            'warm_up = "2 min"\nstart_timeout = 60',
            'warm_up: expected less than start_timeout = 60 s, in which the worker has to load too, got "2 min"',
        ),
        (
            "batch_sizes = [8, 8]",
            "batch_sizes: expected a list of at most 64 integers from 1 to 65536, like [1, 8, 32], got [8, 8] "
            "(8 more than once)",
        ),
    ],
)
def test_sizes_and_warm_up_that_contradict_other_keys(problems, text, problem):
    assert problems(f'[[stage]]\nname = "encode"\nworker = "service:Encode"\n{text}') == [STAGE + problem]


def test_a_cache_by_default_and_as_written(read):
    usual = {"size": 64 << 20, "ttl": 3600.0, "key": []}
    assert read_key("stage", "cache", {"ttl": 60}) == {**usual, "ttl": 60.0}
    written = {"size": "1 MiB", "ttl": "5 min", "key": "text"}
    assert read_key("stage", "cache", written) == {"size": 1 << 20, "ttl": 300.0, "key": ["text"]}
    assert read_key("stage", "cache", {}) == {}
    made = read(f'{MINIMAL}\ncache = {{ key = ["a", "b"] }}')
    assert made.stages[0].cache == {**usual, "key": ["a", "b"]}
    assert made.topology.cached == {0: ("a", "b")}


def test_a_running_deployment_is_told_which_change_of_a_cache_wants_a_restart(read):
    made = {text: read(f"{MINIMAL}\n{text}") for text in ("", "cache = { ttl = 1 }", "cache = { ttl = 2, size = 9 }")}
    keyed = read(f'{MINIMAL}\ncache = {{ ttl = 1, key = "a" }}')
    none, one, other = made.values()
    told = ["which stages have a cache, or its key"]
    assert (_fixed(one, other), _fixed(none, one), _fixed(one, keyed)) == ([], told, told)


@pytest.mark.parametrize(
    ("step", "key", "why"),
    [
        ('{ each = "x", through = "b" }', "any", ""),
        ('{ each = "", through = "b" }', "any", 'c gets a list on route[0] "/r", which has no fields: leave out key'),
        ('{ all = { one = "b", two = "d" } }', "two", ""),
        (
            '{ all = { one = "b", two = "d" } }',
            "tow",
            'expected key to be of one, two, which c gets on route[0] "/r", got "tow"',
        ),
    ],
)
def test_a_key_that_nothing_gathered_has_is_a_mistake(problems, step, key, why):
    names = [name for name in "abcd" if f'"{name}"' in step or name in "ac"]
    stages = [f'[[stage]]\nname = "{name}"\nworker = "service:Encode"' for name in names]
    stages[names.index("c")] += f'\ncache = {{ key = "{key}" }}'
    text = "\n".join([*stages, f'[[route]]\npath = "/r"\nstages = ["a", {step}, "c"]'])
    found = problems(text) if why else []
    assert len(found) == bool(why)
    assert all('"c".cache: ' in problem and why in problem for problem in found)


def test_what_goes_on_in_parts_cannot_be_kept(problems):
    stages = [f'[[stage]]\nname = "{name}"\nworker = "service:Encode"\ncache = {{ ttl = 1 }}' for name in "abc"]
    route = '[[route]]\npath = "/r"\nstages = ["a", { each = "x", through = "b" }, "c"]'
    (problem,) = problems("\n".join([*stages, route]))
    assert 'stage[0] "a".cache: what a returns goes on in parts on route[0] "/r", and cannot be kept' in problem


@pytest.mark.parametrize("sizes", [[1, 8, 32], [32, 1, 8]])
def test_the_largest_of_the_sizes_is_the_largest_batch(read, sizes):
    stage = read(f"{MINIMAL}\nbatch_sizes = {sizes}").stages[0]
    assert (stage.batch_sizes, stage.max_batch_size) == ((1, 8, 32), 32)
    assert read(MINIMAL).stages[0].batch_sizes == ()


@pytest.mark.parametrize(("text", "seconds"), [('"auto"', None), ('"examples"', 0), ('"1 min"', 60), ("2.5", 2.5)])
def test_how_long_to_warm_up(read, text, seconds):
    assert warm_up_s(read(f"{MINIMAL}\nwarm_up = {text}").stages[0].warm_up) == seconds


def test_syntax_errors_have_a_line(problems):
    (line,) = problems("[engine]\nname = \n")
    assert line.startswith("stages.toml: line 2, column 8: expected TOML: ")
    (line,) = problems("x = [1,")
    assert line.startswith("stages.toml: line 1, column 8: expected TOML: ")


def test_files_that_cannot_be_read_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file; expected a stages\.toml"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"stages\.toml: no such file"):
        load(tmp_path)
    (tmp_path / "stages.toml").write_bytes(b"[engine]\n# \xff")
    with pytest.raises(ConfigError, match="expected UTF-8 text; byte 11 is not"):
        load(tmp_path)


# --- flags over environment over file --------------------------------------------------------------------------------


def test_flags_override_environment_overrides_file_overrides_default(read):
    text = "[frontend]\nport = 1\ncapacity = 1\n" + MINIMAL
    environ = {"ENGINE_PORT": "2", "ENGINE_LOG_LEVEL": "error", "ENGINE_GRACE": ""}
    deployment = read(text, flags={"port": "3"}, environ=environ)
    assert deployment.frontend.port == 3
    assert deployment.engine.log_level == "error"
    assert deployment.frontend.capacity == 1
    assert deployment.engine.grace == 10.0
    assert read(text, environ=environ).frontend.port == 2


def test_text_of_every_type_is_read(read):
    deployment = read(
        MINIMAL,
        flags={
            "timeout": "250 ms",
            "max_request_size": "1 MiB",
            "compression": "true",
            "capacity": " 7 ",
            "grace": "3",
        },
    )
    frontend = deployment.frontend
    assert (frontend.timeout, frontend.max_request_size, frontend.compression) == (0.25, 1 << 20, True)
    assert (frontend.capacity, deployment.engine.grace) == (7, 3.0)
    assert deployment.stages[0].timeout == 0.25


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1", True),
        ("true", True),
        ("YES", True),
        ("on", True),
        ("0", False),
        ("False", False),
        ("no", False),
        ("off", False),
    ],
)
def test_words_for_booleans(read, word, value):
    assert read(MINIMAL, environ={"ENGINE_COMPRESSION": word}).frontend.compression is value


def test_problems_of_overrides_name_the_flag_or_variable(problems):
    lines = problems(
        MINIMAL,
        flags={"port": "abc", "prot": "1"},
        environ={"ENGINE_COMPRESSION": "maybe", "ENGINE_CAPACITY": "1e3", "ENGINE_PORT": "also wrong, but not used"},
    )
    assert lines == [
        "--prot: no such flag; did you mean port?",
        '--port: expected an integer from 0 to 65535, got "abc"',
        'ENGINE_CAPACITY: expected an integer from 1 to 10000000, got "1e3"',
        'ENGINE_COMPRESSION: expected one of 1, true, yes, on, 0, false, no, off, got "maybe"',
    ]


def test_no_two_sections_share_the_name_of_a_flag():
    names = [flag.name for flag in flags()]
    assert len(set(names)) == len(names)


def test_the_command_line_has_a_flag_for_each_such_key_with_help_and_default():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    text = " ".join(parser.format_help().split())
    for flag in flags():
        assert flag.option in text
        assert flag.variable in text
    assert "Largest request body; past it 413. (default 10 MiB; ENGINE_MAX_REQUEST_SIZE)" in text


def test_flags_of_gives_only_what_was_given():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    given_ = parser.parse_args(["--port", "1", "--no-compression", "--max-request-size", "1 KiB"])
    assert flags_of(given_) == {"port": "1", "compression": "false", "max_request_size": "1 KiB"}
    assert flags_of(parser.parse_args([])) == {}
    assert flags_of(argparse.Namespace()) == {}


# --- goals, classes and clients -------------------------------------------------------------------------------------

GOALS = """
[frontend]
slo = "200 ms"
[[stage]]
name = "a"
worker = "m:A"
[[route]]
path = "/quick"
stages = ["a"]
slo = 0.05
priority = "high"
[[route]]
path = "/usual"
stages = ["a"]
[[client]]
name = "nightly"
token_sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
priority = "low"
weight = 2
"""


def test_goals_classes_and_clients_reach_the_door(read):
    deployment = read(GOALS)
    spec = front_spec(deployment)
    assert spec.slos_s == (0.05, 0.2)
    assert spec.priorities == (Priority.HIGH, Priority.NORMAL)
    assert spec.clients == {sha256(b"secret").digest()[:8]: Client("nightly", 2, Priority.LOW)}
    assert front_spec(read(GOALS, flags={"slo": "1 s"})).slos_s == (0.05, 1.0)
    assert front_spec(read(MINIMAL)) == FrontSpec(1024, 1 << 30, slos_s=(0.0,), priorities=(Priority.NORMAL,))


def test_a_goal_beyond_the_timeout_is_a_mistake(problems):
    found = problems(GOALS, flags={"timeout": "0.1"})
    assert found == [
        "stages.toml: frontend.slo: expected at most frontend.timeout = 0.1 s, got 0.2 s: nobody waits longer"
    ]


def test_a_client_is_named_once_and_by_a_digest(problems):
    text = GOALS + '[[client]]\nname = "nightly"\ntoken_sha256 = "secret"\nweight = 0\npriority = "urgent"\n'
    told = "\n".join(problems(text))
    assert "client[0] has this one already" in told
    assert 'expected 64 hexadecimal digits in small letters, as sha256sum prints them, got "secret"' in told
    assert "weight: expected an integer" in told
    assert 'expected one of "", "high", "normal", "low", got "urgent"' in told


# --- run directory ---------------------------------------------------------------------------------------------------


def test_run_directory_is_given_or_under_the_runtime_directory_or_in_tmp(read, tmp_path):
    named = '[engine]\nname = "x"\n' + MINIMAL
    assert str(run_dir(read(named, environ={"XDG_RUNTIME_DIR": "/run/user/7"}))) == "/run/user/7/stageline/x"
    assert str(run_dir(read(named))) == f"/tmp/stageline-{os.getuid()}/x"
    assert str(run_dir(read(named, environ={"XDG_RUNTIME_DIR": "not/absolute"}))) == f"/tmp/stageline-{os.getuid()}/x"
    assert run_dir(read('[engine]\nrun_dir = "run"\n' + MINIMAL)) == tmp_path / "run"


def test_a_relative_run_directory_starts_at_the_file_or_for_a_flag_where_the_command_runs(read, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = '[engine]\nrun_dir = "run"\n' + MINIMAL
    assert run_dir(read(text)) == tmp_path / "run"
    assert run_dir(read(text, flags={"run_dir": "run"})) == tmp_path / "elsewhere" / "run"


# --- snapshot --------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_final(read, tmp_path, monkeypatch):
    deployment = read(MINIMAL, flags={"timeout": "2"})
    snapshot = tmp_path / "deployment.json"
    snapshot.write_bytes(dump(deployment))
    assert load(snapshot, environ={"ENGINE_TIMEOUT": "9", "XDG_RUNTIME_DIR": "/elsewhere"}) == deployment
    with pytest.raises(ConfigError, match="a snapshot cannot be changed by flags"):
        load(snapshot, flags={"port": "1"})


def test_a_snapshot_keeps_the_command_line_of_its_script(read, tmp_path):
    made = replace(read(MINIMAL), argv=("server.py", "--mine", "x"), path=("/a", "/b"))
    (tmp_path / "deployment.json").write_bytes(dump(made))
    assert load(tmp_path / "deployment.json") == made
    broken = json.loads(dump(made)) | {"argv": "server.py"}
    (tmp_path / "deployment.json").write_text(json.dumps(broken))
    with pytest.raises(ConfigError, match="argv: expected a list of strings"):
        load(tmp_path / "deployment.json")


def test_a_snapshot_knows_how_many_brokers_there_are_by_now(read, tmp_path):
    deployment = read(MINIMAL)
    assert (deployment.engine.cells, deployment.cells, deployment.brokers, deployment.keyed) == ("auto", 1, 1, 1)
    grown = replace(deployment, grown=4)
    assert (grown.cells, grown.brokers, grown.keyed) == (4, 4, 1)
    snapshot = tmp_path / "deployment.json"
    snapshot.write_bytes(dump(grown))
    assert load(snapshot) == grown
    for bad in (-1, 17, "4", True):
        data = json.loads(dump(grown)) | {"grown": bad}
        snapshot.write_text(json.dumps(data))
        with pytest.raises(ConfigError, match="grown: expected an integer from 0 to 16"):
            load(snapshot)


@pytest.mark.parametrize("cells", ["0", "17", '"many"', "true", "2.0"])
def test_cells_that_are_none(read, cells):
    with pytest.raises(ConfigError, match=r'engine\.cells: expected "auto" or an integer from 1 to 16'):
        read(f"[engine]\ncells = {cells}\n" + MINIMAL)


def test_cells_by_the_file(read):
    deployment = read("[engine]\ncells = 2\n" + MINIMAL + "num = 3\n")
    assert (deployment.cells, deployment.keyed, deployment.engine.may_grow) == (2, 2, False)
    assert not read('[engine]\nbind = "tcp://127.0.0.1:7000"\ninsecure = true\n' + MINIMAL).engine.may_grow
    assert read('[engine]\ncells = "auto"\n' + MINIMAL).engine.may_grow


def test_a_broken_snapshot_is_told_like_a_broken_file(read, tmp_path):
    snapshot = tmp_path / "deployment.json"
    snapshot.write_text("{")
    with pytest.raises(ConfigError, match="expected JSON"):
        load(snapshot)
    snapshot.write_text("{}")
    with pytest.raises(ConfigError, match="file: expected the absolute path"):
        load(snapshot)
    data = json.loads(dump(read(MINIMAL)))
    data["stage"][0]["num"] = -1
    snapshot.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r'"encode"\.num: expected an integer from 0 to 4096, got -1'):
        load(snapshot)


def test_a_deployment_that_was_not_resolved_round_trips_too(read, tmp_path):
    deployment = read(MINIMAL)
    bare = replace(
        deployment,
        engine=replace(deployment.engine, name="", run_dir=""),
        stages=(replace(deployment.stages[0], timeout=0.0, kill_after=0.0, isolate=None),),
    )
    snapshot = tmp_path / "deployment.json"
    snapshot.write_bytes(dump(bare))
    assert load(snapshot) == bare
    assert run_dir(bare).name == name_from(tmp_path.name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)


@st.composite
def stage_tables(draw, name):
    num = draw(st.integers(1, 3))
    variables = st.dictionaries(
        st.from_regex(r"[A-Z_]{1,5}", fullmatch=True), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    )
    optional = {
        "max_batch_size": st.integers(1, 64),
        "warm_up": st.sampled_from(["auto", "examples", "20 s", 3, 0.5]),
        "max_batch_bytes": st.sampled_from(["1 MiB", "3.5 kB", 77]),
        "max_wait_time": st.floats(0, 1000) | st.sampled_from(["10 ms", "1.1 s", 5]),
        "timeout": st.floats(0.001, 100),
        "isolate": st.booleans(),
        "idempotent": st.booleans(),
        "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3", ["cuda:0", "cuda:1"]]),
        "cpus": st.sampled_from(["auto", "all", [0, 5], [[1]] * num]),
        "env": variables | st.lists(variables, min_size=num, max_size=num),
        "args": st.dictionaries(st.text(), JSON, max_size=3),
    }
    values = draw(st.fixed_dictionaries({}, optional=optional))
    if sizes := draw(st.sets(st.integers(1, 64), max_size=4)):
        values |= {"batch_sizes": list(sizes), "max_batch_size": max(sizes)}
    return {"name": name, "worker": "pkg.mod:Class", "num": num, **values}


@st.composite
def documents(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    data = {"stage": [draw(stage_tables(name)) for name in names]}
    if draw(st.booleans()):
        data["route"] = [{"path": "/all", "stages": names}, {"path": "/first", "stages": names[:1]}]
    data["engine"] = draw(st.fixed_dictionaries({}, optional={"name": NAMES, "grace": st.floats(0, 3600)}))
    data["frontend"] = draw(
        st.fixed_dictionaries({}, optional={"timeout": st.floats(0.001, 50), "port": st.integers(0, 65535)})
    )
    return data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=documents())
def test_what_is_dumped_is_loaded_back_exactly(data, tmp_path):
    deployment = build(data, file=tmp_path / "stages.toml", label="stages.toml", environ={})
    snapshot = tmp_path / "deployment.json"
    snapshot.write_bytes(dump(deployment))
    assert load(snapshot) == deployment


def test_a_stage_begins_within_the_range_in_which_it_is_scaled(tmp_path):
    def stage(**values):
        data = {"stage": [{"name": "s", "worker": "m:C", "num": 3, **values}]}
        return build(data, file=tmp_path / "stages.toml", label="f").stages[0]

    assert (stage(min=0, max=9).min, stage(min=3, max=3).max, stage().min, stage().max) == (0, 3, 1, 0)
    with pytest.raises(ConfigError, match=r"min: expected at most num = 3"):
        stage(min=4)
    with pytest.raises(ConfigError, match=r"max: expected at least num = 3"):
        stage(max=2)
    with pytest.raises(ConfigError, match=r"max: expected 1 or more where num = 0"):
        stage(num=0, min=0)
    for one in ({"env": [{}, {}, {}]}, {"cpus": [[0], [0], [0]]}):
        stage(**one)
        with pytest.raises(ConfigError, match=rf"{next(iter(one))}: expected no list with one for each worker"):
            stage(**one, max=4)
    found = [stage(**one) for one in ({}, {"max": 9}, {"min": 0}, {"num": 0, "min": 0, "max": 2})]
    assert [(one.is_scaled, one.most) for one in found] == [(False, 3), (True, 9), (True, 3), (True, 2)]


# --- the schema itself -----------------------------------------------------------------------------------------------


def test_every_default_is_a_value_its_key_takes():
    for section, kind in SECTIONS.items():
        for item in kind.__dataclass_fields__.values():
            if item.default is not item.default_factory:  # not both MISSING: the key has a default
                value = item.default_factory() if callable(item.default_factory) else item.default
                assert read_key(section, item.name, value) == value, f"{section}.{item.name}"


def test_every_key_has_a_sentence_of_documentation():
    for section, kind in SECTIONS.items():
        for name, key in keys(kind).items():
            assert key.doc.endswith("."), f"{section}.{name}"
            assert key is key_of(kind.__dataclass_fields__[name])


def test_importing_the_configuration_stays_light():
    code = "import sys, engine, engine.config, engine.log, engine.loader; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"zmq", "falcon", "torch", "gunicorn", "stages", "frontend"} & set(loaded)


# --- endpoints -------------------------------------------------------------------------------------------------------

ONE_STAGE = '[[stage]]\nname = "a"\nworker = "m:A"\n'


def test_an_endpoint_is_read_and_kept_in_the_snapshot(tmp_path):
    file = tmp_path / "stages.toml"
    file.write_text(f'{ONE_STAGE}[[endpoint]]\npath = "/labels"\nhandler = "m:labels"\nmethods = "PUT"\n')
    found = load(file)
    assert [(one.path, one.handler, one.methods) for one in found.endpoints] == [("/labels", "m:labels", ("PUT",))]
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_bytes(dump(found))
    assert load(snapshot).endpoints == found.endpoints


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('path = "/x"', 'endpoint[0] "/x".handler: missing; expected "module:function"'),
        ('path = "/x"\nhandler = ""', 'handler: expected "module:function"'),
        ('path = "/x"\nhandler = "m:f"\nmethods = ["BREW"]', "methods: expected one of GET, POST"),
        ('path = "/x"\nhandler = "m:f"\nmethods = []', "methods: expected one of GET, POST"),
        ('path = "/metrics"\nhandler = "m:f"', "path: expected a path"),
        ('path = "/inference"\nhandler = "m:f"\nmethods = ["GET", "POST"]', "methods: POST /inference is a route's"),
        (
            'path = "/x"\nhandler = "m:f"\n[[endpoint]]\npath = "/x"\nhandler = "m:g"',
            "endpoint[0] has this path already",
        ),
    ],
)
def test_an_endpoint_that_is_wrong_is_refused(tmp_path, table, said):
    file = tmp_path / "stages.toml"
    file.write_text(f"{ONE_STAGE}[[endpoint]]\n{table}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert said in str(caught.value)

"""What other systems are given to run a deployment by: it is valid to them, and says what the deployment is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml as reader
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Deployment, build
from engine.core.liveness import frontend_stop_s
from engine.errors import ConfigError
from engine.keyfile import make
from engine.ports import ports
from engine.render import TARGETS, About, yaml
from engine.render.kubernetes import objects
from engine.supervisor.parts import parse

VERSIONS = ("1.30", "1.34")
CUSTOM = {"PodMonitor", "ScaledObject"}
TEXT = "# the file\n[engine]\nname = 'n'\n\n[[stage]]\n\tname = 'tabbed'\n"


def deployment(folder: Path = Path("/srv/n"), **changes: Any) -> Deployment:
    stages = [
        {"name": "tokenize", "worker": "service:T", "num": 2},
        {
            "name": "Encode_1",
            "worker": "service:E",
            "num": 3,
            "min": 0,
            "max": 8,
            "device": "cuda",
            "start_timeout": 95,
        },
    ]
    data = {
        "engine": {"name": "My.service", "bind": "tcp://0.0.0.0:7000", "key": "deployment.key", "grace": 20.0},
        "frontend": {"port": 8080, "drain_delay": 5.0},
        "stage": stages,
        **changes,
    }
    return build(data, file=folder / "stages.toml", label="f", environ={})


def manifests(cells: int = 1, found: Deployment | None = None) -> list[dict[str, Any]]:
    text = TARGETS["kubernetes"](found or deployment(), About(text=TEXT, cells=cells))
    return list(reader.safe_load_all(text))


def of_kind(kind: str, cells: int = 1) -> list[dict[str, Any]]:
    return [one for one in manifests(cells) if one["kind"] == kind]


# --- YAML -------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.one_of(
        st.text(), st.integers(), st.booleans(), st.sampled_from(["no", "1e3", "null", "~", "a: b", "- x", "\n\n"])
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert reader.safe_load(yaml.dump(value)) == value
    assert reader.safe_load(yaml.dump({"a": {"b": [value]}})) == {"a": {"b": [value]}}


@pytest.mark.parametrize("value", [1, "a\nb\n", {"b": [1]}, [{"c": 2}], {}], ids=str)
@pytest.mark.parametrize("length", [1022, 1023, 5000])
def test_a_key_may_be_longer_than_a_key_is_that_is_not_said_to_be_one(value: Any, length: int) -> None:
    for mark in ("k", ":"):
        written = {mark * length: value, "next": 3}
        assert reader.safe_load(yaml.dump(written)) == written
        assert reader.safe_load(yaml.dump([written])) == [written]


def test_a_text_of_several_lines_stands_as_it_is() -> None:
    assert yaml.dump({"a": "b = 1\n\nc\n"}) == "a: |\n  b = 1\n\n  c\n"


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cells", [1, 2])
def test_every_manifest_is_valid(cells: int, version: str) -> None:
    unknown = set()
    for one in manifests(cells):
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(one["kind"])
    assert unknown == CUSTOM


def test_the_validator_finds_what_is_misspelt() -> None:
    (one,) = of_kind("StatefulSet")
    one["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one, VERSIONS[0], strict=True)


def keys(value: Any, at: str = "") -> set[str]:
    """Every path of keys in there, lists passed through."""
    if isinstance(value, dict):
        return {path for key, one in value.items() for path in {f"{at}.{key}", *keys(one, f"{at}.{key}")}}
    return {path for one in value for path in keys(one, at)} if isinstance(value, list) else set()


# Of the custom kinds: what is there and may be, by their own documentation.
SCHEMAS = {
    "PodMonitor": ("monitoring.coreos.com/v1", {
        ".selector", ".selector.matchLabels", ".podMetricsEndpoints", ".podMetricsEndpoints.port",
        ".podMetricsEndpoints.path",
    }),
    "ScaledObject": ("keda.sh/v1alpha1", {
        ".scaleTargetRef", ".scaleTargetRef.name", ".minReplicaCount", ".maxReplicaCount", ".pollingInterval",
        ".cooldownPeriod",
        ".advanced", ".advanced.horizontalPodAutoscalerConfig", ".advanced.horizontalPodAutoscalerConfig.behavior",
        *[f".advanced.horizontalPodAutoscalerConfig.behavior.{way}{rest}"
          for way in ("scaleUp", "scaleDown") for rest in ("", ".stabilizationWindowSeconds")],
        ".triggers", ".triggers.type", ".triggers.metricType", ".triggers.metadata",
        *[f".triggers.metadata.{key}" for key in ("url", "format", "valueLocation", "targetValue")],
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_custom_kinds_have_what_their_operators_read(kind: str) -> None:
    (one,) = of_kind(kind)
    version, known = SCHEMAS[kind]
    assert one["apiVersion"] == version
    found = {path for path in keys(one["spec"]) if not path.startswith(".selector.matchLabels.")}
    assert found == known
    for trigger in one["spec"].get("triggers", ()):
        assert all(isinstance(text, str) for text in trigger["metadata"].values())


def pods(cells: int = 1) -> dict[str, dict[str, Any]]:
    found = [*of_kind("Deployment", cells), *of_kind("StatefulSet", cells)]
    return {one["metadata"]["name"]: one["spec"]["template"] for one in found}


def test_each_selector_chooses_pods_that_there_are() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(2).items()}

    def chosen(selector: dict[str, str]) -> set[str]:
        assert selector
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    workers = {f"my-service-{stage}-{cell}" for stage in ("tokenize", "encode-1") for cell in (1, 2)}
    assert set(labels) == {"my-service-broker", "my-service-frontend", *workers}
    for one in manifests(2):
        kind, name, spec = one["kind"], one["metadata"]["name"], one.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            assert chosen(spec["selector"]["matchLabels"]) == {name}
        elif kind == "Service":
            assert chosen(spec["selector"]) == {name}
        elif kind in ("PodDisruptionBudget", "PodMonitor"):
            assert chosen(spec["selector"]["matchLabels"])
        elif kind == "ScaledObject":
            assert spec["scaleTargetRef"]["name"] in labels
    everybody, broker, frontend = of_kind("NetworkPolicy", 2)
    assert (everybody["spec"]["ingress"], chosen(everybody["spec"]["podSelector"]["matchLabels"])) == ([], set(labels))
    assert chosen(broker["spec"]["podSelector"]["matchLabels"]) == {"my-service-broker"}
    assert chosen(broker["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]) == set(labels)
    assert chosen(frontend["spec"]["podSelector"]["matchLabels"]) == {"my-service-frontend"}


def test_the_ports_are_those_that_engine_ports_tells() -> None:
    told = [one for one in ports(deployment()) if one.process == "broker"]
    _, broker, frontend = of_kind("NetworkPolicy")
    assert broker["spec"]["ingress"][0]["ports"] == [
        {"protocol": "TCP", "port": told[0].first, "endPort": max(one.last for one in told)}
    ]
    fixed = {one.first for one in told if one.first == one.last}
    service, http = of_kind("Service")
    assert {port["port"] for port in service["spec"]["ports"]} == fixed
    (container,) = pods()["my-service-broker"]["spec"]["containers"]
    assert {port["containerPort"] for port in container["ports"]} == fixed
    assert http["spec"]["ports"][0]["port"] == 8080 == frontend["spec"]["ingress"][0]["ports"][0]["port"]


def test_each_pod_runs_its_part_and_knows_its_brokers() -> None:
    brokers = [f"my-service-broker-{cell}.my-service-broker:7000" for cell in range(2)]
    for name, pod in pods(2).items():
        (container,) = pod["spec"]["containers"]
        only, known = {
            "my-service-broker": ("broker", brokers),
            "my-service-frontend": ("frontend", brokers),
            "my-service-tokenize-2": ("tokenize=1", brokers[1:]),
            "my-service-encode-1-1": ("Encode_1=1", brokers[:1]),
        }.get(name, (None, None))
        if only is None:
            continue
        assert container["command"] == ["engine", "up", "/app/stages.toml", "--only", only]
        env = {one["name"]: one["value"] for one in container["env"]}
        assert env["ENGINE_BROKER"] == ",".join(known)
        assert parse(only, deployment())  # what the command says is what it takes
        build({"stage": [{"name": "s", "worker": "m:C"}]}, file=Path("/f"), label="f", environ=env)
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == "key"]
        assert env["ENGINE_KEY"] == f"{mount['mountPath']}/deployment.key"


def test_probes_need_no_network_where_nobody_serves_http() -> None:
    (encode,) = pods()["my-service-encode-1"]["spec"]["containers"]
    assert encode["readinessProbe"]["exec"]["command"] == [
        "engine", "health", "/app/stages.toml", "--only", "Encode_1=1",
    ]  # fmt: skip
    assert encode["livenessProbe"]["exec"]["command"][-1] == "--live"
    start = encode["startupProbe"]
    assert start["periodSeconds"] * (start["failureThreshold"] - 1) >= 95
    (frontend,) = pods()["my-service-frontend"]["spec"]["containers"]
    assert frontend["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_pod_has_time_to_stop_and_rights_to_nothing_else() -> None:
    for name, pod in pods().items():
        least = frontend_stop_s(5.0, 20.0) if name.endswith("frontend") else 20.0
        assert least < pod["spec"]["terminationGracePeriodSeconds"] < least + 20
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
        (key,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "key"]
        assert key["secret"] == {
            "secretName": "my-service-key", "defaultMode": 0o440,
            "items": [{"key": "deployment.key", "path": "deployment.key"}],
        }  # fmt: skip


def test_gpus_and_numbers_are_those_of_the_file() -> None:
    found = {one["metadata"]["name"]: one["spec"] for one in of_kind("Deployment")}
    (encode,) = found["my-service-encode-1"]["template"]["spec"]["containers"]
    (tokenize,) = found["my-service-tokenize"]["template"]["spec"]["containers"]
    assert encode["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert "resources" not in tokenize
    assert found["my-service-tokenize"]["replicas"] == 2
    assert "replicas" not in found["my-service-encode-1"]  # it is scaled
    (scaled,) = of_kind("ScaledObject")
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (0, 8)
    told = scaled["spec"]["triggers"][0]["metadata"]
    assert told["valueLocation"] == 'engine_stage_demand_workers{stage="Encode_1"}'
    assert told["url"] == "http://my-service-frontend.default.svc:8080/metrics"
    (brokers,) = of_kind("StatefulSet", 3)
    assert brokers["spec"]["replicas"] == 3


def test_the_file_is_there_as_it_is() -> None:
    (config,) = of_kind("ConfigMap")
    assert config["data"] == {"stages.toml": TEXT}


def test_what_could_not_run_so_is_refused() -> None:
    stage = {"name": "s", "worker": "m:C"}
    bound = {"bind": "tcp://0.0.0.0:7000", "insecure": True}
    for changes, said in (
        ({"engine": {}, "stage": [stage]}, "engine.bind: expected where the broker listens"),
        ({"engine": bound, "stage": [{**stage, "device": ["cuda:0", "cuda:1"]}]}, "of one machine"),
        ({"engine": bound, "stage": [{**stage, "name": "a_b"}, {**stage, "name": "A.b"}]}, "is that of a_b"),
        ({"engine": bound, "stage": [{**stage, "name": "broker"}]}, "is that of the broker"),
    ):
        with pytest.raises(ConfigError, match=said):
            objects(deployment(**changes), About())


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    """And it is enough: what is rendered from a new service needs these two lines, and no more."""
    stage = {"name": "s", "worker": "m:C"}
    for target in ("kubernetes", "compose"):
        with pytest.raises(ConfigError) as refused:
            TARGETS[target](deployment(engine={}, stage=[stage]), About())
        (problem,) = refused.value.problems
        lines = dict(re.findall(r'\b(bind|key) = "([^"]+)"', problem))
        assert set(lines) == {"bind", "key"}
        assert TARGETS[target](deployment(tmp_path, engine=lines, stage=[stage]), About())
    with pytest.raises(ConfigError) as refused:
        objects(deployment(engine={"insecure": True}, stage=[stage]), About())
    assert "key" not in str(refused.value)


# --- compose, Dockerfile, systemd -------------------------------------------------------------------------------------


def test_compose_has_a_service_for_each_part() -> None:
    whole = reader.safe_load(TARGETS["compose"](deployment(), About()))
    assert set(whole["services"]) == {"broker", "frontend", "tokenize", "encode-1"}
    for name, one in whole["services"].items():
        assert one["command"][:3] == ["up", "/app/stages.toml", "--only"]
        assert parse(one["command"][3], deployment()).names
        assert one["healthcheck"]["test"][-1] == one["command"][3]
        assert one["environment"]["ENGINE_BROKER"] == "broker:7000"
        assert ("ports" in one) == (name == "frontend")
        assert one["secrets"][0]["target"] == one["environment"]["ENGINE_KEY"]
        assert one["user"] == "${KEY_OWNER:-1000:1000}"  # who can read the file that the secret is
    assert whole["services"]["encode-1"]["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_without_a_key_the_containers_run_as_their_image_says() -> None:
    bare = deployment(engine={"bind": "tcp://0.0.0.0:7000", "insecure": True})
    whole = reader.safe_load(TARGETS["compose"](bare, About()))
    assert not any("user" in one or "secrets" in one for one in whole["services"].values())


def test_an_image_is_not_made_with_a_key_in_it(tmp_path: Path) -> None:
    text = TARGETS["dockerfile"](deployment(), About())
    copied, step = re.split(r"^RUN ", text, flags=re.MULTILINE)[:2]
    assert "COPY . /app" in copied
    command = step.replace("\\\n", "").replace("/app", str(tmp_path))

    def built() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60)

    (tmp_path / "stages.toml").write_text('[engine]\nkey = "deployment.key"  # made by engine keys new\n')
    assert built().returncode == 0
    (tmp_path / "secrets").mkdir()
    make(str(tmp_path / "secrets" / "any name"))
    done = built()
    assert done.returncode == 1
    assert f"add to .dockerignore: {tmp_path}/secrets/any name" in done.stderr


def test_the_dockerfile_is_clean(tmp_path: Path) -> None:
    lint = Path(sys.executable).parent / "hadolint"
    if not lint.exists():
        pytest.skip("hadolint is not installed")
    (tmp_path / "Dockerfile").write_text(TARGETS["dockerfile"](deployment(), About()))
    done = subprocess.run([lint, "--no-color", tmp_path / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("only", ["", "broker,frontend", "Encode_1=4"])
def test_the_unit_is_one_that_systemd_takes(only: str, tmp_path: Path) -> None:
    found = deployment(tmp_path)
    unit = TARGETS["systemd"](found, About(parts=parse(only, found), command=sys.executable))
    assert f' --only "{only}"' in unit if only else "--only" not in unit
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd is not installed")
    path = tmp_path / "stageline-tried.service"
    path.write_text(unit)
    done = subprocess.run([verify, "verify", "--man=no", path], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert complaints == []

"""The monitoring example is true: what its dashboard asks for is on the page of a running deployment.

Prometheus, where it is installed, answers every query of the dashboard and evaluates every alarm.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from harness import EXAMPLES, Deployed, deployed, short_folder, wait_for
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from pages import metrics

MONITOR = EXAMPLES / "monitor"
DASHBOARD: dict[str, Any] = json.loads((MONITOR / "dashboard.json").read_text())
TARGETS = [
    pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']}-{target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]

# What the dashboard uses of PromQL: `name{label="value",...}`, `by (label, ...)`, functions and ranges.
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!=|!~|=)"([^"]*)"')
BY = re.compile(r"\bby \(([^)]*)\)")
FUNCTIONS = {"sum", "max", "changes", "rate", "increase", "histogram_quantile", "by", "or", "vector"}
UNSEEN = {"engine_stage_refusals_total", "engine_device_memory_bytes"}  # where nobody is refused, and nothing has a GPU
OF_THE_SCRAPE = {"job", "instance"}  # labels that Prometheus adds


@dataclass(frozen=True)
class Page:
    """Samples of a scrape: name -> the label sets it has."""

    samples: dict[str, list[dict[str, str]]]
    kinds: dict[str, str]  # also of metrics that have no sample yet
    text: str
    open: str  # as OpenMetrics


@pytest.fixture(scope="module")
def running() -> Iterator[Deployed]:
    with deployed(EXAMPLES / "echo" / "stages.toml") as example:
        yield example


@pytest.fixture(scope="module")
def page(running: Deployed) -> Iterator[Page]:
    with running.client() as client:

        def send(number: int) -> int:
            return client.post("/inference", json={"text": "hi"} if number % 10 else {"no": "text"}).status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(send, range(200))) == {200, 422}
        client.get("/nowhere")  # a refusal

        def scraped() -> str:
            text = client.get("/metrics").text
            # The broker's numbers come by the beat: there when the last stage has counted every good item, and every
            # process, of which there are seven, has said what it uses.
            counted = 'engine_stage_items_total{stage="format"} 180\n' in text
            return text if counted and text.count("\nengine_process_start_time_seconds{") == 7 else ""

        text = wait_for("all stages' numbers", scraped)
        told = client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
        families = list(text_string_to_metric_families(text))
        samples: dict[str, list[dict[str, str]]] = {}
        for sample in (sample for family in families for sample in family.samples):
            samples.setdefault(sample.name, []).append(dict(sample.labels))
        suffixes = {"counter": "_total"}
        kinds = {family.name + suffixes.get(family.type, ""): family.type for family in families}
        kinds |= {sample.name: family.type for family in families for sample in family.samples}
        yield Page(samples, kinds, text, told)


def test_the_page_of_metrics_names_all_that_a_deployment_tells(page: Page) -> None:
    known = {(metric.name, metric.kind) for metric in metrics.found()}
    told = {(name, kind) for name, kind in page.kinds.items() if name.startswith("engine_")}
    parts = re.compile("_(bucket|sum|count)$")  # of histograms
    missing = {one for one in told if one not in known and (parts.sub("", one[0]), one[1]) not in known}
    assert missing <= {("engine_build_info", "gauge")}  # which is what the text format calls an info


@pytest.mark.parametrize(("expr", "legend"), TARGETS)
def test_a_query_finds_its_metrics_and_labels(page: Page, expr: str, legend: str) -> None:
    selectors = SELECTOR.findall(expr)
    assert selectors, expr
    kept = {label.strip() for labels in BY.findall(expr) for label in labels.split(",")}
    for name, matchers in selectors:
        assert name in page.kinds, f"no {name} on the page"
        if name not in page.samples:  # nothing has happened of which it tells
            assert name in UNSEEN
            continue
        labels = {label for sample in page.samples[name] for label in sample}
        for label, operator, value in MATCHER.findall(matchers):
            assert label in labels | OF_THE_SCRAPE, f"{name} has no label {label}"
            if operator == "=" and label not in OF_THE_SCRAPE:
                assert any(sample[label] == value for sample in page.samples[name]), f"{name} has no {label} {value}"
        assert kept - OF_THE_SCRAPE <= labels, f"{name} has no {kept - labels}"
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= kept
    rest = SELECTOR.sub("", BY.sub("", expr))
    assert set(re.findall(r"[a-zA-Z_]\w+", re.sub(r"\[[^]]*\]", "", rest))) <= FUNCTIONS, "a metric without its job"


@pytest.mark.parametrize(("expr", "legend"), TARGETS)
def test_rates_are_of_what_only_grows(page: Page, expr: str, legend: str) -> None:
    for function, name in re.findall(r"(\w+)\(([a-zA-Z_:][\w:]*)\{", expr):
        grows = page.kinds[name] in ("counter", "histogram")
        assert grows == (function in ("rate", "increase")), f"{function} of the {page.kinds[name]} {name}"


def test_the_list_of_deployments_is_of_a_metric_that_is_there(page: Page) -> None:
    (query,) = (item["query"]["query"] for item in DASHBOARD["templating"]["list"] if item["type"] == "query")
    assert re.fullmatch(r"label_values\((\w+), job\)", query)[1] in page.samples  # type: ignore[index]


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_page_as_openmetrics_says_the_same(page: Page) -> None:
    families = list(open_families(page.open))
    assert {family.name for family in families} == {
        family.name.removesuffix("_info") if family.name.endswith("build_info") else family.name
        for family in text_string_to_metric_families(page.text)
    }
    told = {tuple(sample.exemplar.labels) for family in families for sample in family.samples if sample.exemplar}
    assert told == {("request_id",)}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus' own reader is not installed")
def test_prometheus_reads_the_page(page: Page) -> None:
    told = subprocess.run(
        ["promtool", "check", "metrics"], input=page.text, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode in (0, 3), told.stderr  # 3: it would rather have other names, which are Mosec's


def test_every_process_tells_what_it_uses(page: Page) -> None:
    wanted = [
        {"process": "broker"},
        {"process": "supervisor"},
        {"process": "frontend", "connection": "1"},
        *({"process": "worker", "stage": stage, "connection": "1"} for stage in ("decode", "work", "format")),
    ]
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"):
        told = page.samples[f"engine_process_{name}"]
        assert all(one in told for one in wanted), (name, told)
        assert not any(told.count(one) > 1 for one in told)


RULES = [rule for group in yaml.safe_load((MONITOR / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["alert"]) for rule in RULES])
def test_an_alarm_looks_at_metrics_that_are_there(page: Page, rule: dict[str, Any]) -> None:
    expr = rule["expr"]
    names = set(re.findall(r"\bengine_\w+", expr))
    assert names
    assert names <= set(page.kinds)
    for name, matchers in SELECTOR.findall(expr):
        labels = {label for sample in page.samples.get(name, []) for label in sample} | OF_THE_SCRAPE
        assert {label for label, _, _ in MATCHER.findall(matchers)} <= labels
    by = [{label.strip() for label in labels.split(",")} for labels in BY.findall(expr)]
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert all(told <= one for one in by) or not by, "a label that the sum has not"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus' own reader is not installed")
def test_prometheus_reads_its_configuration_and_alarms() -> None:
    told = subprocess.run(
        ["promtool", "check", "config", str(MONITOR / "prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"{len(RULES)} rules found" in told.stdout


class Prometheus:
    """One that scrapes a deployment as the example says, but at its address and every second; beside some traffic."""

    def __init__(self, running: Deployed, folder: Path) -> None:
        shutil.copy(MONITOR / "alerts.yml", folder)
        text = (MONITOR / "prometheus.yml").read_text()
        changes = {
            "127.0.0.1:8000": running.url.removeprefix("http://"),
            "scrape_interval: 5s": "scrape_interval: 1s",
            "scrape_timeout: 4s": "scrape_timeout: 1s",
            "evaluation_interval: 5s": "evaluation_interval: 1s",
        }
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / "prometheus.yml").write_text(text)
        (command,) = (
            service["command"]
            for name, service in yaml.safe_load((MONITOR / "compose.yml").read_text())["services"].items()
            if name == "prometheus"
        )
        features = [word for word in command if word.startswith("--enable-feature")]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    *features,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._running = running
        self._stopping = threading.Event()
        self._traffic = threading.Thread(target=self._send, name="traffic")
        self._traffic.start()

    def _send(self) -> None:
        with self._running.client() as client:
            while not self._stopping.wait(0.05):
                for body in ({"text": "hi"}, {"no": "text"}):
                    client.post("/inference", json=body)
                client.get("/nowhere")

    def url(self) -> str:
        listens = re.search(r'Listening on"? .*?address="?(127\.0\.0\.1:\d+)', self._log.read_text())
        assert self.process.poll() is None, self._log.read_text()
        return f"http://{listens[1]}" if listens else ""

    def stop(self) -> None:
        self._stopping.set()
        self._traffic.join(10)
        self.process.send_signal(signal.SIGKILL)  # what it has stored goes with its folder
        self.process.wait(10)


@pytest.fixture(scope="module")
def prometheus(running: Deployed, page: Page) -> Iterator[httpx.Client]:
    assert page  # whose requests are counted, so that no others may come before it is read
    with short_folder() as folder:
        one = Prometheus(running, folder)
        try:
            with httpx.Client(base_url=wait_for("Prometheus listens", one.url, within_s=60)) as client:
                wait_for("it is ready", lambda: client.get("/-/ready").status_code == 200, within_s=60)
                yield client
        finally:
            one.stop()


def asked(prometheus: httpx.Client, path: str, **parameters: str) -> Any:
    answer = prometheus.get(f"/api/v1/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_prometheus_answers_every_query_with_numbers(prometheus: httpx.Client) -> None:
    def numbers(expr: str) -> bool:
        found = asked(prometheus, "query", query=expr)["result"]
        return bool(found) and any(not math.isnan(float(one["value"][1])) for one in found)

    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"].replace("$job", "echo").replace("$__rate_interval", "20s")
            if any(name in expr for name in UNSEEN):
                assert asked(prometheus, "query", query=expr)["result"] == [], "it is seen"
            else:
                wait_for(f"{panel['title']}: {expr}", lambda expr=expr: numbers(expr), within_s=30)  # type: ignore[misc]
    (query,) = (item["query"]["query"] for item in DASHBOARD["templating"]["list"] if item["type"] == "query")
    name = re.fullmatch(r"label_values\((\w+), job\)", query)[1]  # type: ignore[index]
    assert asked(prometheus, "label/job/values", **{"match[]": name}) == ["echo"]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_a_latency_leads_to_a_request(prometheus: httpx.Client) -> None:
    def exemplars() -> set[str]:
        found = asked(
            prometheus,
            "query_exemplars",
            query="engine_request_duration_second_bucket",
            start="0",
            end="9999999999",
        )
        return {label for series in found for one in series["exemplars"] for label in one["labels"]}

    assert wait_for("an exemplar is stored", exemplars, within_s=30) == {"request_id"}


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_prometheus_evaluates_every_alarm_and_a_healthy_service_raises_none(prometheus: httpx.Client) -> None:
    def evaluated() -> Any:
        (group,) = asked(prometheus, "rules")["groups"]
        return group["rules"] if all(rule["health"] != "unknown" for rule in group["rules"]) else None

    rules = wait_for("every alarm is evaluated", evaluated, within_s=30)
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
    assert {(rule["name"], rule["health"], rule.get("lastError")) for rule in rules} == {
        (rule["alert"], "ok", None) for rule in RULES
    }
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} == set()


def test_what_compose_mounts_is_there_and_listens_to_this_host_alone() -> None:
    services = yaml.safe_load((MONITOR / "compose.yml").read_text())["services"]
    mounts = [one.split(":") for service in services.values() for one in service["volumes"] if one.startswith("./")]
    assert mounts
    for here, there, how in mounts:
        assert (MONITOR / here).is_file(), here
        assert how == "ro", there
    inside = {there: MONITOR / here for here, there, _ in mounts}
    (source,) = yaml.safe_load(_of(inside, "provisioning/datasources").read_text())["datasources"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    (provider,) = yaml.safe_load(_of(inside, "provisioning/dashboards").read_text())["providers"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert inside[home] == MONITOR / "dashboard.json"
    assert home.startswith(provider["options"]["path"])


def _of(inside: dict[str, Path], part: str) -> Path:
    (found,) = (path for there, path in inside.items() if part in there)
    return found


def test_the_scrape_is_of_the_page_a_deployment_has() -> None:
    text = (MONITOR / "prometheus.yml").read_text()
    assert "metrics_path: /metrics" in text
    assert 'targets: ["127.0.0.1:8000"]' in text  # the port of the example it is for
    assert "port = 8000" in (EXAMPLES / "echo" / "stages.toml").read_text()

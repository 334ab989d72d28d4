"""The live page in a real browser: it moves with the load, shows what dies and fails, and says when nobody answers."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import pytest
from harness import Deployed, deployed, wait_for, write_service
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

pytestmark = pytest.mark.unmeasured

CAP_S = 40.0  # a browser on a busy machine
TOML = """
[engine]
name = "watched"
[frontend]
address = "127.0.0.1"
port = 0
timeout = "20 s"
[[stage]]
name = "check"
worker = "service:Check"
[[stage]]
name = "square"
worker = "service:Square"
num = 2
max_batch_size = 8
[[stage]]
name = "other-one"
worker = "service:Check"
[[route]]
path = "/v1/square"
stages = ["check", "square"]
[[route]]
path = "/v1/a-path-that-is-somewhat-longer-than-others"
stages = ["check", "other-one"]
[[route]]
path = "/v1/either"
stages = ["check", { by = "kind", of = { square = "square" }, default = "other-one" }]
"""
SERVICE = """
import time
from engine import Worker, ValidationError

class Check(Worker):
    def forward(self, data):
        if data["x"] < 0:
            raise ValidationError(f"{data['x']} is below zero")
        return data

class Square(Worker):
    def forward(self, data):
        time.sleep(0.1)
        return [{"x": one["x"] ** 2} for one in data]
"""
T = TypeVar("T")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    file = write_service(tmp_path_factory.mktemp("page"), TOML, SERVICE)
    with deployed(file) as running:
        yield running


@contextmanager
def load(running: Deployed, users: int = 12) -> Iterator[None]:
    """Requests, one after another of each user, until the end of the block."""
    over = threading.Event()

    def use() -> None:
        with running.client() as client:
            while not over.is_set():
                try:
                    client.post("/v1/square", json={"x": 3})
                except httpx.HTTPError:
                    over.wait(0.1)

    threads = [threading.Thread(target=use) for _ in range(users)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


class Page:
    def __init__(self, browser: Chrome, running: Deployed) -> None:
        self.browser = browser
        browser.get(running.url)
        self.until("the page", lambda: self.text("#standing") == "serving")

    def told(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(f"return {script}", *arguments)

    def text(self, selector: str) -> str:
        """Of the first of these; the page may change while it is looked at."""
        said: str = self.told("document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return said

    def fact(self, stage: str, what: str) -> str:
        """What the card of a stage says."""
        found: str = self.told(
            """[...document.querySelectorAll("article")]
                .find((card) => card.querySelector("h3 span").textContent === arguments[0])
                .querySelectorAll("dt").values()
                .find((term) => term.textContent === arguments[1])
                .nextElementSibling.textContent""",
            stage,
            what,
        )
        return found

    def until(self, what: str, condition: Callable[[], T]) -> T:
        return wait_for(what, condition, within_s=CAP_S)

    def look(self, width: int, height: int = 900, *, theme: str = "light", picture: str = "") -> None:
        """As on a screen of this size; ``picture``: a file to look at, where a folder for it is named."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        if folder := os.environ.get("PICTURES"):
            self.browser.save_screenshot(str(Path(folder) / f"{picture or width}.png"))


@pytest.fixture
def page(browser: Chrome, service: Deployed) -> Page:
    return Page(browser, service)


def deaths(page: Page) -> list[int]:
    """Of the stage that computes, and what was replayed."""
    return [int(one) for one in page.fact("square", "deaths · replays").split(" · ")]


def test_under_load_figures_move_and_a_killed_worker_shows(page: Page, service: Deployed) -> None:
    assert urlsplit(page.browser.current_url).path == "/ui/"  # where / leads a browser
    with load(service):
        page.until("a rate", lambda: float(page.text("#figures .figure span") or 0) > 1)
        page.until("busy workers", lambda: page.fact("square", "busy").split()[0] not in ("0", ""))
        page.until("a batch", lambda: page.fact("square", "batch") > "1.0")
        page.until("a line", lambda: page.told("document.querySelector('.run').getAttribute('d')"))
        assert len(page.browser.find_elements(By.CSS_SELECTOR, "[aria-label='Workers of square'] li")) == 2
        victim = next(one for one in service.status()["stages"] if one["name"] == "square")["workers"][0]["pid"]
        os.kill(victim, signal.SIGKILL)
        page.until("a death and a replay", lambda: min(deaths(page)) >= 1)
        page.until(
            "another worker", lambda: page.text("#standing") == "serving" and str(victim) not in page.text("#hosts")
        )


def test_a_failure_shows_with_the_id_of_its_request(page: Page, service: Deployed) -> None:
    with service.client() as client:
        answer = client.post("/v1/square", json={"x": -7}, headers={"x-request-id": "looked-for-1"})
    assert answer.status_code == 422
    page.until("the failure", lambda: "looked-for-1" in page.text("#failures"))
    shown = page.text("#failures")
    assert "request validation error: -7 is below zero" in shown
    assert "422" in shown
    page.until("its count", lambda: "422: 1" in page.text("#routes"))


def test_a_stage_at_rest_is_not_one_that_is_broken(page: Page) -> None:
    """By what the page would say of it; the terminal's judgement is tested by the same cases."""
    rests = {"bounds": [0, 4], "ready": 0, "wanted": 0, "starting": 0, "queued": 0}
    cases: list[tuple[dict[str, Any], bool, list[str]]] = [
        (rests, False, ["resting · 0 of 0-4", ""]),
        (rests | {"wanted": 1}, False, ["resting · 0 of 0-4", ""]),
        (rests | {"wanted": 1, "queued": 3}, False, ["0 of 1 ready", "warn"]),
        (rests | {"wanted": 1, "starting": 1}, False, ["0 of 1 ready", "warn"]),
        (rests | {"wanted": 2, "ready": 1}, False, ["1 of 2 ready", "warn"]),
        (rests | {"wanted": 1, "ready": 1}, False, ["1 of 1 ready", "good"]),
        (rests | {"not_fed": "it kills"}, True, ["0 of 0 ready", "bad"]),
        (rests | {"wanted": 1, "bounds": [1, 4]}, True, ["0 of 1 ready", "bad"]),
        (rests | {"wanted": 1, "bounds": None}, True, ["0 of 1 ready", "bad"]),
    ]
    found = page.browser.execute_async_script(
        """import("./picture.js").then(
            ({ isMissing, presence }) => arguments[1](arguments[0].map((one) => [isMissing(one), presence(one)])))""",
        [stage for stage, _, _ in cases],
    )
    assert found == [[missing, words] for _, missing, words in cases]


def test_nothing_has_to_be_scrolled_sideways(page: Page) -> None:
    def wide() -> list[int]:
        found: list[int] = page.told(
            """[document.documentElement.scrollWidth - innerWidth,
            ...[...document.querySelectorAll(".scroll, .picture")].map((one) => one.scrollWidth - one.clientWidth)]"""
        )
        return found

    def lines() -> list[int]:  # of each figure
        found: list[int] = page.told(
            """[...document.querySelectorAll(".node dd")].map((one) => {
            const range = document.createRange();
            range.selectNodeContents(one);
            return new Set([...range.getClientRects()].map((line) => Math.round(line.top))).size;
            })"""
        )
        return found

    for width in (320, 390, 768, 950, 1280, 1920):
        page.look(width, picture=f"page-{width}")
        page.until(f"a layout for {width}", lambda: wide()[0] <= 0)
        if width < 600 or width > 1200:  # on a phone, and on a screen, nothing inside either
            page.until(f"what is inside {width} fits", lambda: not any(wide()[1:]))
    page.look(950)  # where four columns just stand beside each other
    page.until("two figures are in one line", lambda: max(lines()) == 1)


def test_dark_is_dark(page: Page) -> None:
    def brightness() -> int:
        ground: str = page.told("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", ground)[:3]))

    page.look(1280, theme="dark", picture="page-dark")
    assert brightness() < 150
    page.look(1280, theme="light")
    assert brightness() > 600


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_forbidden(page: Page, service: Deployed) -> None:
    page.until(
        "some looks", lambda: page.browser.execute_script("return performance.getEntriesByType('resource').length") > 8
    )
    hosts = set()
    for entry in page.browser.get_log("performance"):
        message: dict[str, Any] = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme in ("http", "https"):
                hosts.add(url.netloc)
    assert hosts == {urlsplit(service.url).netloc}
    assert [entry["message"] for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_it_says_when_nobody_answers_and_finds_back(browser: Chrome, tmp_path: Path) -> None:
    file = write_service(tmp_path / "lost", TOML, SERVICE)
    with deployed(file) as running:
        page = Page(browser, running)
        broker = running.status()["brokers"][0]["pid"]
        os.kill(broker, signal.SIGSTOP)
        try:
            page.until("a word", lambda: "The broker does not answer" in page.text("#trouble"))
            assert page.text("#standing") == "no answer"
        finally:
            with suppress(ProcessLookupError):  # it was replaced
                os.kill(broker, signal.SIGCONT)
        page.until("the broker, or its heir", lambda: page.text("#standing") == "serving")
        assert page.text("#trouble") == ""
        running.terminate()
        page.until("another word", lambda: "The server of this page does not answer" in page.text("#trouble"))
        assert "What is shown is from" in page.text("#trouble")

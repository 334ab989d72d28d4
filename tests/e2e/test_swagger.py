"""The page under /openapi/swagger/ in a real browser: it loads from this service alone, and a request can be tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from harness import SERVICES, Deployed, deployed
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = pytest.mark.unmeasured

CAP_S = 40.0  # a browser on a busy machine


@pytest.fixture(scope="module")
def orders() -> Iterator[Deployed]:
    with deployed(SERVICES / "typed.toml") as running:
        yield running


@pytest.fixture
def page(browser: Chrome, orders: Deployed) -> Page:
    browser.get(f"{orders.url}/openapi/swagger")  # without its slash: a redirect adds it
    page = Page(browser)
    page.one(".opblock-summary")
    return page


class Page:
    def __init__(self, browser: Chrome) -> None:
        self.browser = browser
        self._wait = WebDriverWait(browser, CAP_S)

    def one(self, selector: str) -> WebElement:
        """The first element that shows, once there is one."""
        return self._wait.until(
            lambda browser: next(
                (it for it in browser.find_elements(By.CSS_SELECTOR, selector) if it.is_displayed()), None
            ),
            f"no {selector}",
        )

    def text(self, selector: str) -> str:
        """Its text, once it has some."""
        return self._wait.until(lambda _: self.one(selector).text, f"no text in {selector}")

    def expand(self, path: str) -> str:
        """Open the operation of a path; the selector of its block."""
        block = f".opblock:has([data-path='{path}'])"
        if "is-open" not in self.one(block).get_attribute("class"):
            self.one(f"{block} .opblock-summary-control").click()
        self.one(f"{block} .opblock-body")
        return block

    def execute(self, path: str, body: str) -> tuple[int, Any]:
        """Try it out: status and body of the answer that the page shows."""
        block = self.expand(path)
        self.one(f"{block} .try-out__btn").click()
        field = self.one(f"{block} textarea.body-param__text")
        field.clear()
        field.send_keys(body)
        self.one(f"{block} .execute").click()
        status = int(self.text(f"{block} .live-responses-table .response .response-col_status").split()[0])
        shown = self.text(f"{block} .live-responses-table .response .highlight-code")
        self.one(f"{block} .try-out__btn.cancel").click()
        return status, shown.removeprefix("Download").strip()


def test_every_route_is_listed_with_its_words(page: Page) -> None:
    assert page.text(".info .title").startswith("orders")
    listed = [
        it.get_attribute("data-path") for it in page.browser.find_elements(By.CSS_SELECTOR, ".opblock-summary-path")
    ]
    assert listed[:5] == ["/price", "/model", "/packed", "/untyped", "/count"]
    assert page.text(".opblock:has([data-path='/price']) .opblock-summary-description") == "Price an order."
    assert page.browser.title == "orders - API"


def test_a_request_is_tried_out_and_answered(page: Page) -> None:
    status, shown = page.execute("/price", '{"name": "tea", "count": 4}')
    assert (status, json.loads(shown)) == (200, {"total": 10.0, "currency": "EUR"})


def test_the_example_that_the_page_proposes_is_a_valid_request(page: Page, orders: Deployed) -> None:
    block = page.expand("/price")
    page.one(f"{block} .try-out__btn").click()
    proposed = page.one(f"{block} textarea.body-param__text").get_attribute("value")
    with orders.client() as client:
        assert client.post("/price", content=proposed).status_code == 200
    page.one(f"{block} .try-out__btn.cancel").click()


def test_a_refusal_is_shown_with_its_reason(page: Page) -> None:
    status, shown = page.execute("/price", '{"name": "tea", "count": 101}')
    assert status == 422
    assert "Expected `int` <= 100 - at `$.count`" in shown


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_forbidden(page: Page, orders: Deployed) -> None:
    """No other host in the network log, and no word of the Content-Security-Policy in the console's."""
    page.expand("/model")
    hosts = set()
    for entry in page.browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme in ("http", "https"):
                hosts.add(url.netloc)
    assert hosts == {urlsplit(orders.url).netloc}
    errors = [entry["message"] for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []

"""The page about the deployment: who sees it, where a browser is led, and how often the broker is asked for it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from fakes import Exchange, FakeClient, Response, Service, deployment
from leanbench import Bench, head
from leanbench import run as run_scenario

from engine.config.schema import FrontendSection, RouteSection
from engine.errors import Unavailable
from frontend import onlookers
from frontend.answer import Answering
from frontend.app import create
from frontend.errors import Refusal
from frontend.gate import Gate
from frontend.head import Head
from frontend.metrics import FrontendMetrics
from frontend.onlookers import ANSWERS_MOST, Looks, is_local

BROWSER = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8")
HERE = ("host", "localhost:8000")


def service(ui: str = "local") -> Service:
    return Service(frontend=FrontendSection(address="127.0.0.1", port=0, ui=ui))


def get(one: Service, path: str, *headers: tuple[str, str], host: str = "localhost", **options: Any) -> Response:
    return one.call("GET", path, headers=[("host", host), *headers], **options)


# --- who sees it -----------------------------------------------------------------------------------------------------


def asked(host: str = "localhost:8000", *fields: tuple[bytes, bytes]) -> Head:
    return Head("/ui/", b"", [(b"host", host.encode()), *fields])


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        (("127.0.0.1", 1), True),
        (["127.9.9.9", 1], True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1), True),
        (("10.0.0.1", 1), False),
        (("172.17.0.1", 1), False),
        (("::ffff:10.0.0.1", 1), False),
        (("fe80::1%lo", 1), False),
        (("", 0), False),
        ("", False),
        (None, False),
        (("/run/x.sock",), False),
    ],
)
def test_by_default_it_is_for_this_machine(peer: object, local: bool) -> None:
    assert is_local(asked(), peer, is_old=False) is local


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True), ("LOCALHOST:80", True), ("localhost.", True), ("a.localhost:8000", True),
        ("127.0.0.1:8000", True), ("127.0.0.1", True), ("[::1]:8000", True), ("[::1]", True),
        ("evil.example", False), ("evil.example:8000", False), ("localhost.evil.example", False),
        ("10.0.0.1:8000", False), ("evil.example:127", False), ("", False), ("localhost:80:80", False),
        ("[::2]", False),
    ],
)  # fmt: skip
def test_a_name_that_leads_here_is_not_enough(host: str, own: bool) -> None:
    """Else the pages of whoever owns the name could read this one, in a browser on this machine."""
    assert is_local(asked(host), ("127.0.0.1", 1), is_old=False) is own


@pytest.mark.parametrize(
    "name",
    ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-server", "x-forwarded-port",
     "forwarded", "via", "x-real-ip", "true-client-ip"],
)  # fmt: skip
def test_what_a_proxy_passes_on_is_not_of_this_machine(name: str) -> None:
    assert not is_local(asked("localhost", (name.encode(), b"203.0.113.9")), ("127.0.0.1", 1), is_old=False)
    assert get(service(), "/ui/", (name, "203.0.113.9")).status == 404
    assert get(service("all"), "/ui/", (name, "203.0.113.9")).status == 200


def test_what_speaks_as_no_browser_does_is_a_proxy_that_says_nothing() -> None:
    """nginx with nothing but ``proxy_pass http://127.0.0.1:8000``."""
    bare: dict[str, Any] = {"host": "127.0.0.1:8000", "version": "1.0"}
    one = service()
    for path in ("/ui", "/ui/", "/ui/page.js", "/ui/data"):
        assert get(one, path, **bare).status == 404
        assert get(one, path, host="127.0.0.1:8000").status in (200, 308)
    assert get(one, "/", BROWSER, **bare).status == 200
    assert get(one, "/", BROWSER).status == 303
    assert get(service("all"), "/ui/", **bare).status == 200


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/page.js", "/ui/data"])
def test_others_find_nothing_there(path: str) -> None:
    far: dict[str, Any] = {"peer": ("203.0.113.9", 1)}
    assert get(service("local"), path).status in (200, 308)
    assert get(service("local"), path, **far).status == 404
    assert get(service("all"), path, host="service.example", **far).status in (200, 308)
    assert get(service("off"), path).status == 404
    one = service("local")
    get(one, path, **far)
    assert not one.client.asked


# --- where a browser is led ------------------------------------------------------------------------------------------


def test_a_browser_is_led_to_it_and_others_are_answered_as_ever() -> None:
    one = service()
    led = get(one, "/", BROWSER)
    assert (led.status, led.headers["location"], led.headers["vary"]) == (303, "ui/", "accept")
    for headers in ((), (("accept", "*/*"),), (("accept", "application/json"),)):
        plain = get(one, "/", *headers)
        assert (plain.status, plain.text) == (200, '{"status":"ok"}')
    for other, options in ((service("off"), {}), (service(), {"peer": ("203.0.113.9", 1)})):
        assert get(other, "/", BROWSER, **options).status == 200
    one.gate.draining = True
    assert get(one, "/", BROWSER).status == 503  # as a balancer would hear it
    assert get(one, "/healthz", BROWSER).status == 200


def test_the_short_way_leaves_browsers_to_who_leads_them() -> None:
    async def scenario() -> None:
        for fields, handed in (((), False), (("accept: */*",), False), ((": ".join(BROWSER),), True)):
            bench = Bench()
            bench.feed(head("host: localhost", *fields, line="GET / HTTP/1.1"))
            assert bool(bench.handed) is handed
            assert bool(bench.replies) is not handed

    run_scenario(scenario())


def test_a_route_of_the_service_there_is_the_services() -> None:
    section = FrontendSection(ui="all")
    whole = deployment(section)
    for path in ("/ui", "/ui/data", "/ui/other"):
        own = replace(whole, routes=(RouteSection(path=path, stages=("first",)), *whole.routes))
        client, gate = FakeClient(), Gate(section)
        app = create(own, client, FrontendMetrics("e", [path], 3.0), gate, Answering.of(own), name="f")

        def call(method: str, path: str, *headers: tuple[str, str], app: Any = app) -> int:
            exchange = Exchange(app, method, path, [b"x"], headers=headers)
            answer: Response = asyncio.run(asyncio.wait_for(exchange.response(), 20))
            return answer.status

        assert call("POST", path) == 200
        assert call("GET", "/", BROWSER) == 200
        assert call("GET", "/ui/page.js") == 404
    beside = replace(whole, routes=(RouteSection(path="/uics", stages=("first",)),))
    app = create(beside, FakeClient(), FrontendMetrics("e", [], 3.0), Gate(section), Answering.of(beside), name="f")
    assert asyncio.run(Exchange(app, "GET", "/ui/page.js").response()).status == 200


# --- its files -------------------------------------------------------------------------------------------------------

FILES = ("", "index.html", "page.css", "page.js", "picture.js", "figures.js", "icon.svg")


@pytest.mark.parametrize("name", FILES)
def test_its_files_are_asked_for_again_and_load_nothing_from_elsewhere(name: str) -> None:
    one = service()
    answer = get(one, f"/ui/{name}")
    assert answer.status == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-cache"
    again = get(one, f"/ui/{name}", ("if-none-match", answer.headers["etag"]))
    assert (again.status, again.body) == (304, b"")


def test_all_that_its_files_name_is_there() -> None:
    one, seen, left = service(), set(), [""]
    while left:
        name = left.pop()
        seen.add(name)
        text = get(one, f"/ui/{name}").text
        found = re.findall(r'(?:src|href)="([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        left += [other for other in found if other not in seen]
        assert not re.search(r"""style="|\son\w+="|eval\(|innerHTML""", text), name
    assert seen | {"index.html"} == set(FILES)
    for name in ("nothing.js", "..", "../../app.py", "%00", "data/"):
        assert get(one, f"/ui/{name}").status == 404


def test_looking_at_it_is_not_counted_as_traffic() -> None:
    one = service()
    one.client.status = Unavailable(503, "no broker listens at ipc:///run/secret")
    for path in ("/ui/", "/ui/page.js", "/ui/data"):
        get(one, path)
    counted = [family.name for family in one.metrics.families() if family.samples]
    assert not [name for name in counted if name.endswith(("_throughput", "_rejections"))]


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_it_is_told_what_the_broker_says_and_nothing_of_sockets() -> None:
    one = service()
    answer = get(one, "/ui/data")
    assert (answer.status, answer.body) == (200, one.client.status)
    assert answer.headers["cache-control"] == "no-store"
    other = service()
    other.client.status = Unavailable(503, "no broker listens at ipc:///run/secret")
    answer = get(other, "/ui/data")
    assert answer.status == 503
    assert "secret" not in answer.text


def test_the_broker_is_asked_once_a_second_however_many_look(monkeypatch: pytest.MonkeyPatch) -> None:
    instant = [100.0]
    monkeypatch.setattr(onlookers, "now", lambda: instant[0])
    asked: list[asyncio.Future[bytes]] = []

    async def scenario() -> None:
        async def ask() -> bytes:
            asked.append(asyncio.get_running_loop().create_future())
            return await asked[-1]

        looks = Looks(ask)
        waiting = [asyncio.create_task(looks.newest()) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting[0].cancel()  # who leaves does not take it from the others
        await asyncio.sleep(0)
        assert len(asked) == 1
        asked[0].set_result(b"1")
        assert set(await asyncio.gather(*waiting[1:])) == {b"1"}
        assert await looks.newest() == b"1"
        assert len(asked) == 1
        instant[0] += 1.0
        late = asyncio.create_task(looks.newest())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked[1].set_exception(Unavailable(503, "gone"))
        with pytest.raises(Unavailable):
            await late
        with pytest.raises(Unavailable):  # nor is it asked again at once
            await looks.newest()
        assert len(asked) == 2

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_so_many_may_look_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    instant = [100.0]
    monkeypatch.setattr(onlookers, "now", lambda: instant[0])

    async def ask() -> bytes:
        return b"told"

    async def scenario() -> None:
        looks = Looks(ask)
        for _ in range(ANSWERS_MOST):
            assert await looks.newest() == b"told"
        with pytest.raises(Refusal) as refused:
            await looks.newest()
        assert refused.value.problem.status == 429
        instant[0] += 1.0
        assert await looks.newest() == b"told"

    asyncio.run(asyncio.wait_for(scenario(), 20))


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * one for one in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_its_text_can_be_read_in_both_themes(theme: int) -> None:
    style = get(service(), "/ui/page.css").text
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", block))
    pairs = [(text, ground) for text in ("ink", "quiet") for ground in ("ground", "card", "sunken")]
    pairs += [(text, "card") for text in ("good", "warn", "bad", "accent")]
    pairs += [(text, f"{text}-ground") for text in ("good", "warn", "bad")]
    for text, ground in pairs:
        low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)

"""How a broker is found whose host has a name, and which ports there are."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from harness import free_ports

from engine import addresses, admin, ports, transport
from engine.addresses import RETRY_S, Search
from engine.broker.service import Broker
from engine.cells import client_of
from engine.client import Client, submit
from engine.config import Deployment, build
from engine.config.endpoints import Endpoints
from engine.core import link, meta
from engine.core.introduction import Stranger
from engine.core.messages import Bye, Welcome
from engine.errors import ProtocolError, StartError, Unavailable
from tests.engine.test_broker import Worker, ask, client, got, in_thread, ready, running, until, until_async, worker

NAMED = Endpoints("tcp://broker.test:7000", ("a", "b"))


class Names:
    """A resolver: what it knows, and whom it keeps waiting."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.answers = threading.Event()

    def look(self, host: str, port: object, **_: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host in self.silent:
            self.answers.wait()
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self.known[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    found = Names()
    monkeypatch.setattr(addresses.socket, "getaddrinfo", found.look)
    yield found
    found.answers.set()


def look(search: Search, rung: threading.Event, now: float = 0.0) -> Endpoints | None:
    search.begin()
    assert rung.wait(20)
    rung.clear()
    return search.result(now)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["/run/here", "tcp://10.0.0.1:7000", "tcp://[fd00::1]:7000"])
def test_where_there_is_no_name_nobody_is_asked(names: Names, base: str) -> None:
    found = Endpoints(base, ("a",))
    search = Search(found, lambda: None)
    search.begin()
    assert search.result(0.0) is found
    assert addresses.numbered(found) is found
    assert names.asked == []


def test_each_new_connection_is_made_by_what_the_name_means_then(names: Names) -> None:
    rung = threading.Event()
    search = Search(NAMED, rung.set)
    names.known["broker.test"] = ["10.0.0.1"]
    assert look(search, rung) == NAMED.at("10.0.0.1")
    names.known["broker.test"] = ["fd00::2"]
    found = look(search, rung)
    assert found is not None
    assert found.front == "tcp://[fd00::2]:7000"


def test_of_several_addresses_where_nobody_listens_the_next_one_is_tried(names: Names) -> None:
    rung = threading.Event()
    search = Search(Endpoints(f"tcp://broker.test:{free_ports(1)}", ("a",)), rung.set)
    names.known["broker.test"] = ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    hosts = [found.host for _ in range(4) if (found := look(search, rung)) is not None]
    assert sorted(hosts[:2]) == ["127.0.0.1", "127.0.0.2"]
    assert hosts[2:] == hosts[:2]


def test_of_several_addresses_one_where_somebody_listens_is_taken(names: Names) -> None:
    rung = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        search = Search(Endpoints(f"tcp://broker.test:{listening.getsockname()[1]}", ("a",)), rung.set)
        names.known["broker.test"] = ["127.0.0.2", "127.0.0.1"]
        hosts = [found.host for _ in range(2) if (found := look(search, rung)) is not None]
    assert hosts == ["127.0.0.1", "127.0.0.1"]


def test_a_name_that_nobody_knows_is_told_once_and_tried_again(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    rung = threading.Event()
    search = Search(NAMED, rung.set)
    assert look(search, rung) is None
    assert search.result(RETRY_S - 0.1) is None
    assert names.asked == ["broker.test"]
    assert search.result(RETRY_S) is None  # which begins anew
    assert rung.wait(20)
    assert [record.message for record in caplog.records] == ["the broker's address cannot be looked up"]
    names.known["broker.test"] = ["10.0.0.1"]
    rung.clear()
    assert search.result(2 * RETRY_S) is None
    assert search.result(3 * RETRY_S + 0.1) is None
    assert rung.wait(20)
    assert search.result(3 * RETRY_S + 0.1) == NAMED.at("10.0.0.1")


def test_an_address_may_stand_in_a_file(tmp_path: Path, names: Names, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "broker"
    rung = threading.Event()
    search = Search(transport.reaching(over_tcp(tmp_path, broker=f"@{file}")), rung.set)
    assert look(search, rung) is None
    for told in ("", "nothing", "a:b", f"@{file}", "a:1\nb:2"):
        file.write_text(told)
        assert look(search, rung) is None
    assert len(caplog.records) == 2  # for the file that was not there, and for what it said
    file.write_text("10.0.0.7:7100\n")
    assert look(search, rung) == Endpoints("tcp://10.0.0.7:7100", ("s0",))
    file.write_text("broker.test:7200")
    names.known["broker.test"] = ["10.0.0.8"]
    assert look(search, rung) == Endpoints("tcp://10.0.0.8:7200", ("s0",))
    assert addresses.numbered(transport.reaching(over_tcp(tmp_path, broker=f"@{file}"))).port == 7200


@pytest.mark.parametrize(
    "text", ["a:SECRET", "SECRET:7000 and more", "# of SECRET\nstageline-key-1:SECRET=", "[SECRET"]
)
def test_what_a_file_says_that_has_no_address_is_told_to_nobody(
    tmp_path: Path, names: Names, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    file = tmp_path / "deployment.key"
    file.write_text(text)
    reaching = transport.reaching(over_tcp(tmp_path, broker=f"@{file}"))
    with pytest.raises(ValueError, match="expected HOST:PORT in it") as error:
        addresses.numbered(reaching)
    assert "SECRET" not in str(error.value)
    rung = threading.Event()
    assert look(Search(reaching, rung.set), rung) is None
    assert "deployment.key" in caplog.records[0].reason  # type: ignore[attr-defined]
    assert "SECRET" not in str(caplog.records[0].__dict__)
    assert names.asked == []


def test_while_a_name_is_looked_up_it_is_not_looked_up_again(names: Names) -> None:
    names.silent.add("broker.test")
    search = Search(NAMED, lambda: None)
    search.begin()
    until(lambda: names.asked, "a look")
    search.begin()
    assert search.result(100.0) is None
    assert names.asked == ["broker.test"]


# --- frontends -------------------------------------------------------------------------------------------------------


def over_tcp(folder: Path, **engine: Any) -> Deployment:
    data = {
        "engine": {"name": "t", "run_dir": str(folder), "insecure": True, **engine},
        "stage": [{"name": "s0", "worker": "m:W", "timeout": 10.0}],
    }
    return build(data, file=folder / "stages.toml", label="stages.toml")


def as_it_is(deployment: Deployment, broker: str) -> Deployment:
    """The same as seen by others, who know this broker of it."""
    return replace(deployment, engine=replace(deployment.engine, broker=(broker,)))


async def ask_and_answer(c: Client, w: Worker) -> None:
    answer = ask(c, b"hello")
    await in_thread(lambda: w.answer(*w.batch()))
    assert (await got(answer)).status == 200


def test_a_frontend_follows_a_broker_to_another_address(
    tmp_path: Path, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LIMIT_S", 0.2)
    port = free_ports(8)
    here, there = (over_tcp(tmp_path, bind=f"tcp://127.0.0.{host}:{port}", lanes=4) for host in (1, 2))
    names.known["broker.test"] = ["127.0.0.1"]

    async def scenario() -> None:
        async with client(as_it_is(here, f"broker.test:{port}")) as c:
            with running(here), worker(here) as w:
                await until_async(lambda: ready(c), "readiness")
                await ask_and_answer(c, w)
            names.known["broker.test"] = ["127.0.0.2"]
            with running(there), worker(there) as w:
                await ask_and_answer(c, w)

    asyncio.run(scenario())


def test_a_resolver_that_does_not_answer_holds_up_nobody_else(tmp_path: Path, names: Names) -> None:
    port = free_ports(8)
    here = over_tcp(tmp_path, bind=f"tcp://127.0.0.1:{port}", lanes=4)
    names.silent.add("dead.test")
    both = replace(here, engine=replace(here.engine, broker=(f"dead.test:{port}", f"127.0.0.1:{port}")))

    async def scenario() -> None:
        cells = client_of(both, "test", list)
        with running(here), worker(here) as w:
            await cells.start()
            try:
                assert names.asked == ["dead.test"]
                await until_async(lambda: cells.view().stages and cells.view().stages[0].ready, "readiness")
                for _ in range(4):
                    answer = submit(cells, 0, b"hello", timeout_s=10.0, meta=meta.pack("r"))
                    await in_thread(lambda: w.answer(*w.batch()))
                    assert (await got(answer)).status == 200
                with pytest.raises(Unavailable, match="looked up"):
                    await cells._clients[0].ask("status")  # type: ignore[attr-defined]  # of the dead one
            finally:
                await cells.close()

    asyncio.run(scenario())


def test_who_is_asked_by_a_name_that_nobody_knows_is_told_of(tmp_path: Path, names: Names) -> None:
    deployment = over_tcp(tmp_path, broker="nobody.test:7000")
    with pytest.raises(Unavailable, match=r"the broker's address nobody\.test:7000 cannot be looked up"):
        admin.ask(deployment, "status", 0.1)
    with pytest.raises(StartError, match=r"cannot listen at tcp://nobody\.test:7000: nobody\.test: "):
        Broker(over_tcp(tmp_path, bind="tcp://nobody.test:7000"))


# --- lanes -----------------------------------------------------------------------------------------------------------


def test_each_worker_has_a_lane_out_of_the_range(tmp_path: Path) -> None:
    port = free_ports(7)
    deployment = over_tcp(tmp_path, bind=f"tcp://127.0.0.1:{port}", lanes=2)
    with running(deployment), worker(deployment) as one, worker(deployment, slot=2) as two:
        assert {one.told, two.told} == {"5", "6"}
        with closing(Worker(deployment, slot=3)) as third:
            third.send(third.who)
            assert third.receive() == Stranger()  # not now
        one.send(Bye(one.key))

        def is_taken() -> bool:
            with closing(Worker(deployment, slot=4)) as fourth:
                fourth.send(fourth.who)
                welcome = fourth.receive()
                return isinstance(welcome, Welcome) and welcome.lane == one.told

        until(is_taken, "the lane of the one that has gone")


def test_the_port_of_a_worker_that_has_gone_is_the_last_to_be_given_again() -> None:
    ends = Endpoints("tcp://127.0.0.1:7000", ("a", "b"))
    assert list(ends.lane_offsets(4, 8)) == [9, 10, 7, 8]
    assert list(islice(ends.lane_offsets(4, 10), 2)) == [7, 8]


def test_a_lane_is_joined_to_the_address_and_the_port_by_which_the_broker_was_reached() -> None:
    assert Endpoints("tcp://10.0.0.9:17000", ("a",)).told_lane("7") == "tcp://10.0.0.9:17007"
    assert Endpoints("tcp://[fd00::1]:7000", ("a",)).told_lane("5") == "tcp://[fd00::1]:7005"
    assert Endpoints("/run/x", ("a",)).told_lane("ipc:///run/x/l0-1") == "ipc:///run/x/l0-1"
    for odd in ("tcp://10.0.0.1:9", "-1", "", "99999", "\u0665"):
        with pytest.raises(ProtocolError, match="no lane"):
            Endpoints("tcp://10.0.0.9:7000", ("a",)).told_lane(odd)


@pytest.mark.parametrize(
    ("engine", "base"),
    [
        ({"bind": "tcp://10.0.0.1:7000"}, "tcp://10.0.0.1:7000"),
        ({"bind": "tcp://0.0.0.0:7000"}, "tcp://127.0.0.1:7000"),
        ({"bind": "tcp://[::]:7000"}, "tcp://[::1]:7000"),
        ({"bind": "tcp://0.0.0.0:7000", "broker": "gpu-3:17000"}, "tcp://gpu-3:17000"),
        ({"broker": ["gpu-3:7000", "[fd00::3]:7000"]}, "tcp://gpu-3:7000"),
    ],
)
def test_by_what_the_broker_is_reached(tmp_path: Path, engine: dict[str, Any], base: str) -> None:
    deployment = over_tcp(tmp_path, **engine)
    assert transport.reaching(deployment).base == base
    if deployment.brokers > 1:
        assert transport.reaching(deployment, 1).base == "tcp://[fd00::3]:7000"


# --- for a firewall --------------------------------------------------------------------------------------------------


def test_the_ports_are_told(tmp_path: Path) -> None:
    told = ports.ports(over_tcp(tmp_path, bind="tcp://0.0.0.0:7000", lanes=8))
    assert ports.table(told).splitlines() == [
        "ports      of                   who connects                           for",
        "7000       broker at 0.0.0.0    frontends                              requests and answers",
        "7001       broker at 0.0.0.0    frontends, engine status and its like  questions",
        "7002       broker at 0.0.0.0    workers                                final results",
        "7003       broker at 0.0.0.0    workers of s0                          control",
        "7004       broker at 0.0.0.0    workers                                what goes on to s0",
        "7005-7012  broker at 0.0.0.0    workers                                batches",
        "8000       frontend at 0.0.0.0  clients                                HTTP",
    ]
    assert json.loads(ports.as_json(told))[-1]["first"] == 8000
    ends = transport.listening(over_tcp(tmp_path, bind="tcp://0.0.0.0:7000"))
    assert [ends.front, ends.admin, ends.egress, ends.control(0), ends.intake(0), ends.lane_port(ends.first_lane)] == [
        f"tcp://0.0.0.0:{one.first}" for one in told[:-1]
    ]


def test_without_a_bind_only_the_frontend_listens(tmp_path: Path) -> None:
    (one,) = ports.ports(over_tcp(tmp_path))
    assert one.process == "frontend"


def test_ports_are_found_at_an_address_of_either_family() -> None:
    assert addresses.free_ports(2, "::1")
    assert addresses.free_ports(2, "127.0.0.1")


def test_ports_are_looked_for_in_the_whole_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PORTS_TO", addresses.PORTS_FROM + 20)
    with pytest.raises(RuntimeError, match="no 21 ports"):
        addresses.free_ports(21)
    taken: set[int] = set()

    class Sock:
        def __init__(self, family: int) -> None:
            assert family == socket.AF_INET

        def __enter__(self) -> Sock:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def bind(self, at: tuple[str, int]) -> None:
            if at[1] in taken:
                raise OSError

        def close(self) -> None:
            pass

    monkeypatch.setattr(addresses.socket, "socket", Sock)
    firsts = set()
    while len(firsts) < 4:
        firsts.add(first := addresses.free_ports(5))
        taken.add(first + 4)
    assert firsts == {addresses.PORTS_FROM + step for step in (0, 5, 10, 15)}
    with pytest.raises(RuntimeError):
        addresses.free_ports(5)

"""What a head means and on which terms it may come in: fields in, a value or a refusal out."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from fakes import READY

from engine.config.schema import FrontendSection
from engine.core.fairness import Priority
from engine.core.messages import Qos
from frontend import errors, head
from frontend.errors import Problem, Refusal
from frontend.gate import HEADS_ALL, Gate, Terms
from frontend.head import Head

MIB = 1 << 20
SECRET = sha256(b"secret").digest()[:8]
HOST = (b"Host", b"x")


def read(*fields: tuple[bytes, bytes], version: str = "1.1", path: str = "/inference", method: str = "POST") -> Head:
    return head.read(method, version, path, b"q=1", [HOST, *fields])


def refused(*fields: tuple[bytes, bytes], **about: Any) -> Problem:
    with pytest.raises(Refusal) as caught:
        read(*fields, **about)
    return caught.value.problem


# --- what a head means -----------------------------------------------------------------------------------------------


def test_names_are_lower_case_and_values_without_blanks_around() -> None:
    found = read((b"X-A", b" b \t"), (b"content-length", b"12"), (b"Accept", b"a/b"), (b"accept", b"c/d"))
    assert found.fields[1] == (b"x-a", b"b")
    assert (found.length, found.accept, found.query) == (12, b"a/b, c/d", b"q=1")


@pytest.mark.parametrize("name", sorted(head.SINGLE - {b"content-length"}))
def test_a_field_that_may_stand_once_does(name: bytes) -> None:
    assert refused((name, b"1"), (name.title(), b"1")) is errors.TWICE


def test_others_may_stand_as_often_as_they_like() -> None:
    found = read((b"x-tag", b"a"), (b"x-tag", b"b"), (b"cookie", b"a=1"), (b"cookie", b"b=2"))
    assert found.fields[1:] == [(b"x-tag", b"a"), (b"x-tag", b"b"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]


def test_a_name_with_an_underscore_is_not_told_to_anybody() -> None:
    assert read((b"X_User", b"admin"), (b"content_length", b"5")).fields == [(b"host", b"x")]


@pytest.mark.parametrize("length", [b"", b"+3", b"-1", b"3 ", b"0x3", b"3,3", b"\xb2", b"1" * 19, b"9" * 4400])
def test_a_length_is_a_number_of_digits(length: bytes) -> None:
    if length.strip() == b"3":
        assert read((b"content-length", length)).length == 3
    else:
        assert refused((b"content-length", length)) is errors.BAD_LENGTH


def test_a_host_is_needed_where_the_protocol_asks_for_one() -> None:
    for version in ("1.0", "2"):
        assert head.read("POST", version, "/inference", b"", []).path == "/inference"
    with pytest.raises(Refusal) as caught:
        head.read("POST", "1.1", "/inference", b"", [])
    assert caught.value.problem is errors.NO_HOST


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a", "/a"),
        ("http://x/a", "/a"),
        ("HTTPS://u@x:80/a/b", "/a/b"),
        ("http://x", "/"),
        ("/", "/"),
        ("/a//b", "/a//b"),
    ],
)
def test_an_absolute_target_is_its_path(target: str, path: str) -> None:
    assert read(path=target).path == path


@pytest.mark.parametrize(
    ("target", "method", "problem"),
    [
        ("//a", "POST", errors.NOT_FOUND),
        ("http://x//a", "POST", errors.NOT_FOUND),
        ("ftp://x/a", "POST", errors.BAD_REQUEST),
        ("*", "OPTIONS", errors.WRONG_METHOD),
        ("x:80", "CONNECT", errors.WRONG_METHOD),
    ],
)
def test_other_targets_are_nobodys_address(target: str, method: str, problem: Problem) -> None:
    assert refused(path=target, method=method) is problem


def test_a_websocket_handshake_is_refused_and_other_upgrades_are_not_taken() -> None:
    shake = [(b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"WebSocket")]
    assert refused(*shake, method="GET", path="/") is errors.WEBSOCKET
    assert read((b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")).path == "/inference"
    assert read((b"Upgrade", b"websocket")).path == "/inference"  # nobody asks for it on this connection


def test_an_id_is_the_clients_own_if_it_is_sane() -> None:
    assert read((b"x-request-id", b"mine")).request_id == "mine"
    assert read((b"x-request-id", b"not mine")).request_id == ""


# --- on which terms --------------------------------------------------------------------------------------------------


def gate(**frontend: Any) -> Gate:
    return Gate(FrontendSection(**{"capacity": 2, "capacity_bytes": 100, "max_request_size": 50, **frontend}))


@pytest.mark.parametrize(
    ("fields", "terms"),
    [
        ((), Terms(3.0)),
        (((b"x-request-timeout", b"1.5"),), Terms(1.5)),
        (((b"x-request-timeout-ms", b"20"), (b"x-request-timeout", b"1")), Terms(0.02)),
        (((b"content-length", b"50"),), Terms(3.0)),
        (((b"content-encoding", b"identity"),), Terms(3.0)),
        (((b"transfer-encoding", b"Chunked"),), Terms(3.0)),
        (((b"x-slo", b"0.2"),), Terms(3.0, qos=Qos(200_000))),
        (((b"x-slo-ms", b"0.0001"),), Terms(3.0, qos=Qos(1))),
        (((b"x-slo-ms", b"250"), (b"x-request-timeout", b"0.1")), Terms(0.1, qos=Qos(100_000))),
        (((b"x-priority", b"Low"),), Terms(3.0, qos=Qos(priority=Priority.LOW))),
        (((b"authorization", b"Bearer secret"),), Terms(3.0, qos=Qos(client=SECRET))),
        (((b"x-api-key", b"secret"),), Terms(3.0, qos=Qos(client=SECRET))),
        (((b"x-api-key", b"other"), (b"authorization", b"bearer  secret")), Terms(3.0, qos=Qos(client=SECRET))),
    ],
)
def test_terms(fields: tuple[tuple[bytes, bytes], ...], terms: Terms) -> None:
    assert gate().terms(read(*fields)) == terms


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ((b"x-request-timeout", b"soon"), errors.BAD_TIMEOUT),
        ((b"x-slo", b"soon"), errors.BAD_SLO),
        ((b"x-slo-ms", b"0"), errors.BAD_SLO),
        ((b"x-priority", b"urgent"), errors.BAD_PRIORITY),
        ((b"content-length", b"51"), errors.TOO_LARGE),
        ((b"content-encoding", b"gzip"), errors.ENCODING),
        ((b"transfer-encoding", b"gzip, chunked"), errors.CODING),
    ],
)
def test_no_terms(field: tuple[bytes, bytes], problem: Problem) -> None:
    with pytest.raises(Refusal) as caught:
        gate().terms(read(field))
    assert caught.value.problem is problem


def test_codings_are_undone_where_that_is_turned_on() -> None:
    assert gate(compression=True).terms(read((b"content-encoding", b"gzip"))).coding == "gzip"
    with pytest.raises(Refusal) as caught:
        gate(compression=True).terms(read((b"content-encoding", b"br")))
    assert caught.value.problem.status == 415


# --- from moment to moment -------------------------------------------------------------------------------------------


def test_it_is_open() -> None:
    one = gate()
    assert one.refusal(READY) is None
    assert one.enter(7)
    assert (one.pending, one.held) == (1, 7)
    one.leave(7)
    assert (one.pending, one.held) == (0, 0)


def test_it_closes_when_it_holds_more_than_it_may() -> None:
    one = gate()
    one.held = 101  # bodies that are whole count in full, whatever there was room for
    assert one.refusal(READY) is errors.CAPACITY_BYTES
    assert not one.enter(1)
    assert one.held == 101


def test_it_closes_at_capacity() -> None:
    one = gate()
    one.pending = 2
    assert one.refusal(READY) == errors.CAPACITY
    assert not one.enter(1)
    assert (one.pending, one.held) == (2, 0)
    one.pending = 1
    assert one.refusal(READY) is None
    assert one.enter(1)


def test_it_closes_when_the_broker_has_no_room() -> None:
    assert gate().refusal(replace(READY, headroom=0)) == errors.CAPACITY


def test_the_last_headroom_of_a_lost_broker_means_nothing() -> None:
    assert gate().refusal(replace(READY, headroom=0, connected=False)) is None


def test_it_closes_for_draining() -> None:
    one = gate()
    assert one.refusal(replace(READY, draining=True)) is errors.DRAINING
    one.draining = True
    assert one.refusal(READY) is errors.DRAINING
    assert not one.enter(1)


def test_heads_are_bounded_together_and_no_client_has_all_of_it() -> None:
    one = gate()
    while one.open(MIB, "greedy"):
        pass
    assert HEADS_ALL // 2 < one.heads <= HEADS_ALL // 2 + 2 * MIB
    opened = 0
    while one.open(MIB, f"other {opened}"):
        opened += 1
    assert HEADS_ALL < one.heads <= HEADS_ALL + 2 * MIB
    for number in range(opened + 1):
        one.close(MIB, f"other {number}")
    for _ in range(one.heads // MIB):
        one.close(MIB, "greedy")
    assert (one.heads, one._heads_by) == (0, {})


def test_bytes_are_held_up_to_the_bound_and_released() -> None:
    one = gate()
    assert one.hold(60)
    assert not one.hold(41)
    assert one.held == 60
    assert one.hold(40)
    one.release(100)
    assert one.held == 0

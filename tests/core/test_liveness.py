"""Times that must stand to each other as they do, also where they are used."""

from __future__ import annotations

import inspect

import pytest

from engine import admin, cli, transport
from engine.core import liveness
from engine.core.liveness import RULES


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_holds(rule: str) -> None:
    assert RULES[rule]


def test_every_time_is_positive_and_ends_in_its_unit() -> None:
    times = {name: value for name, value in vars(liveness).items() if name.isupper() and name != "RULES"}
    assert all(name.endswith("_S") and value > 0 for name, value in times.items())


def test_who_asks_waits_as_long_as_the_broker_gathers() -> None:
    assert inspect.signature(admin.ask).parameters["timeout_s"].default >= liveness.REPORT_S
    assert cli.STATUS_TIMEOUT_S >= liveness.REPORT_S


def test_a_socket_comes_back_as_quickly_as_the_rules_count_on() -> None:
    ctx = transport.context()
    sock = transport.dealer(ctx, "tcp://127.0.0.1:1")
    try:
        assert sock.reconnect_ivl_max == liveness.RECONNECT_MOST_S * 1000
    finally:
        sock.close()
        ctx.term()

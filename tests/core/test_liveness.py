"""Times that must stand to each other as they do, also where they are used."""

from __future__ import annotations

import inspect

import pytest

from engine import admin, transport
from engine.commands import command
from engine.core import liveness
from engine.core.liveness import RULES


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_holds(rule: str) -> None:
    assert RULES[rule]


def test_every_time_is_positive_and_ends_in_its_unit() -> None:
    times = {name: value for name, value in vars(liveness).items() if name.isupper() and name != "RULES"}
    assert times.pop("PROBES") == 2
    assert all(name.endswith("_S") and value > 0 for name, value in times.items())


def test_who_asks_waits_as_long_as_the_broker_gathers() -> None:
    assert inspect.signature(admin.ask).parameters["timeout_s"].default >= liveness.REPORT_S
    assert command.STATUS_TIMEOUT_S >= liveness.REPORT_S


@pytest.mark.parametrize(
    ("endpoint", "most_s"),
    [("ipc:///tmp/nobody-listens-here", liveness.RECONNECT_MOST_S), ("tcp://127.0.0.1:1", liveness.RECONNECT_FAR_S)],
)
def test_a_socket_comes_back_as_quickly_as_the_rules_count_on(endpoint: str, most_s: float) -> None:
    with transport.context() as ctx, transport.dealer(ctx, endpoint) as sock:
        assert sock.reconnect_ivl_max == most_s * 1000


def test_the_kernel_ends_a_connection_to_a_host_that_has_vanished_within_the_limit() -> None:
    """All makers of sockets over tcp tell it so: whoever connects, and whoever accepts."""
    with transport.context() as ctx:
        bound = transport.lane(ctx, "tcp://127.0.0.1:*")
        made = [
            bound,
            transport.router(ctx, "tcp://127.0.0.1:*"),
            transport.pull(ctx, "tcp://127.0.0.1:*"),
            transport.dealer(ctx, transport.bound(bound)),
            transport.push(ctx, transport.bound(bound)),
            transport.lane_end(ctx, transport.bound(bound)),
        ]
        for sock in made:
            assert sock.tcp_maxrt == liveness.LIMIT_S * 1000
            assert sock.tcp_keepalive == 1
            assert sock.tcp_keepalive_idle + sock.tcp_keepalive_intvl <= liveness.LIMIT_S
            assert sock.connect_timeout == liveness.CONNECT_S * 1000
            sock.close()
        ctx.term()

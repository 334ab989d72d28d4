"""Classes and fair shares: the rules, and what becomes of a service that is asked for more than it can do, in counted
time. Every run is drawn from one seed."""

from __future__ import annotations

import pytest

from engine.core import fairness
from engine.core.fairness import HASTE, PART, WHOLE, Client, Priority, Shares
from engine.core.messages import Qos
from tests.core.traffic import Attempt, Layer, Service, line

pytestmark = pytest.mark.unmeasured

HIGH, NORMAL, LOW = Priority
A, B, C = b"aaaaaaaa", b"bbbbbbbb", b"cccccccc"


def fill(shares: Shares, client: bytes, times: int, now: float = 0.0, priority: Priority = NORMAL) -> None:
    """It has been known for long, and asks so often now."""
    if client and client not in shares.clients:
        shares._seen.setdefault(client, -9.0)
    for _ in range(times):
        shares.ask(client, priority, now)
        shares.admit(client, priority, now, 0.1)


def test_one_client_alone_may_use_all_there_is() -> None:
    shares = Shares()
    fill(shares, A, 100)
    assert shares.ask(A, NORMAL, 0.0) == WHOLE


def test_who_has_had_more_than_its_share_may_use_a_part_of_it() -> None:
    shares = Shares()
    fill(shares, A, 30)
    fill(shares, B, 10)
    assert shares.ask(A, NORMAL, 0.0) == (PART, True, 1.0)
    assert shares.ask(B, NORMAL, 0.0) == WHOLE


def test_shares_go_by_weight() -> None:
    shares = Shares({A: Client("a", weight=4)})
    fill(shares, A, 30)
    fill(shares, B, 10)
    assert shares.ask(A, NORMAL, 0.0) == WHOLE
    assert shares.ask(B, NORMAL, 0.0).over


def test_what_was_had_is_soon_forgotten_and_who_does_not_ask_claims_nothing() -> None:
    shares = Shares()
    fill(shares, A, 30)
    fill(shares, B, 10)
    fill(shares, B, 40, now=3.0)
    assert shares.ask(B, NORMAL, 3.0) == WHOLE  # a is gone
    assert shares.ask(A, NORMAL, 3.0) == WHOLE
    assert shares.ask(B, NORMAL, 3.0).over


def test_time_that_goes_backwards_is_no_time() -> None:
    shares = Shares()
    fill(shares, A, 3, now=5.0)
    assert shares.ask(A, NORMAL, 4.9) == WHOLE


def test_so_many_clients_are_told_apart_and_the_others_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "CLAIMS_MOST", 2)
    shares = Shares()
    for now in (0.0, 1.0):
        for number in range(2 if now else 100):
            shares.ask(b"%8d" % (98 + number if now else number), NORMAL, now)
    assert len(shares._claims) <= 3
    assert len(shares._seen) == 2


def test_who_draws_another_token_for_each_request_is_one_client_with_all_who_do() -> None:
    shares = Shares()
    for number in range(50):
        shares.ask(b"%8d" % number, NORMAL, 0.0)
        shares.admit(b"%8d" % number, NORMAL, 0.0, 0.1)
    fill(shares, A, 10)
    assert set(shares._claims) == {b"", A}
    assert shares.ask(b"another!", NORMAL, 0.0).over
    assert not shares.ask(A, NORMAL, 0.0).over


def test_a_token_that_comes_again_after_a_moment_is_somebodys() -> None:
    shares = Shares()
    for now in (0.0, 0.1, 0.3):
        shares.ask(A, NORMAL, now)
    assert set(shares._claims) == {b"", A}


def test_where_the_file_names_clients_all_others_are_one() -> None:
    shares = Shares({A: Client("a")})
    fill(shares, A, 5)
    for client in (B, C, b""):
        fill(shares, client, 5)
    assert set(shares._claims) == {A, b""}
    assert shares.ask(B, NORMAL, 0.0).over
    assert not shares.ask(A, NORMAL, 0.0).over


def test_a_lower_class_leaves_room_for_each_higher_one_that_asks() -> None:
    shares = Shares()
    for priority in Priority:
        fill(shares, A, 10, priority=priority)
    assert shares.ask(A, HIGH, 0.0) == (1.0, False, HASTE)
    assert shares.ask(A, NORMAL, 0.0).part == pytest.approx(PART)
    assert shares.ask(A, LOW, 0.0).part == pytest.approx(PART**2)
    assert shares.ask(A, LOW, 9.0) == WHOLE  # of the others nobody has asked for long


def test_a_class_however_low_has_a_floor() -> None:
    shares = Shares()
    fill(shares, A, 100, priority=HIGH)
    assert shares.ask(A, LOW, 0.0) == (1.0, False, HASTE)
    fill(shares, A, 10, priority=LOW)
    assert shares.ask(A, LOW, 0.0).part == pytest.approx(PART)


def test_the_class_is_the_clients_else_the_routes_and_a_request_may_lower_it() -> None:
    shares = Shares({A: Client("a", priority=HIGH), B: Client("b")})
    assert shares.priority(A, LOW, HIGH) is HIGH
    assert shares.priority(B, LOW, HIGH) is LOW
    assert shares.priority(b"", NORMAL, HIGH) is NORMAL
    assert shares.priority(A, NORMAL, LOW) is LOW


def test_who_is_refused_for_its_share_waits_behind_its_own_others_only() -> None:
    shares = Shares({A: Client("a", weight=3)})
    fill(shares, A, 30)
    fill(shares, B, 1)
    turns = [shares.turn(A, 40.0, 0.0, 10.0) for _ in range(3)]
    assert turns == pytest.approx([1 / 30, 2 / 30, 3 / 30])
    assert shares.turn(B, 40.0, 0.0, 10.0) == pytest.approx(1 / 10)
    assert max(shares.turn(A, 40.0, 0.0, 0.5) for _ in range(100)) == 0.5


def test_where_nobody_is_told_apart_nothing_is_counted() -> None:
    """What it would cost each request."""
    service = Service(Layer(line(20, 0.1), 1, 32), timeout_s=0.2, warm=1.0)
    service.arrive(service.poisson(1.5 * service.capacity, 0.5))
    service.run(1.0)
    shares = service.front.door.shares
    assert service.front.stats.rejected["predicted"]
    assert not shares._claims
    service.arrive(iter([0.0, 0.3]), qos=Qos(client=A))
    service.arrive(service.poisson(1.5 * service.capacity, 0.5))
    service.run(0.5)
    assert b"" in shares._claims


# --- in a service ----------------------------------------------------------------------------------------------------

LAYERS = {
    "usual": (Layer(line(5, 0.5), 4, 32), 0.084),
    "flat": (Layer(line(20, 0.1), 4, 32), 0.100),
    "slow": (Layer(line(200, 10), 4, 8), 1.5),
}


def share(requests: list[Attempt], slo_s: float, client: bytes) -> float:
    """Of a client's requests, those that were answered within the goal."""
    asked = [one for one in requests if one.qos is not None and one.qos.client == client]
    return len([one for one in asked if one.status == 200 and one.answered_at - one.at <= slo_s]) / len(asked)


@pytest.mark.parametrize("draws", [False, True], ids=["one token", "another each time"])
@pytest.mark.parametrize("name", LAYERS)
def test_one_client_that_floods_costs_the_others_nothing(name: str, draws: bool) -> None:
    layer, slo_s = LAYERS[name]
    service = Service(layer, timeout_s=3.0, slos_s=(slo_s,), warm=1.0, capacity=4096)
    seconds, rate = max(1.2, 40 * slo_s / 4), 1.5 * service.capacity
    for client, part in ((B, 0.1), (C, 0.1)):
        service.arrive(service.poisson(part * rate, seconds), qos=Qos(client=client))
    for at in service.poisson(0.8 * rate, seconds):
        token = service.rng.randbytes(8) if draws else A
        service.arrive(iter([at]), qos=Qos(client=token))
    service.run(seconds + 4.0)
    begin = max(seconds / 4, 0.6)  # for a moment nobody's token is known
    requests = service.within(begin, seconds)
    assert share(requests, slo_s, B) >= 0.99
    assert share(requests, slo_s, C) >= 0.99
    assert draws or share(requests, slo_s, A) >= 0.5
    assert service.goodput(begin, seconds) >= 0.95


def test_where_the_room_at_the_door_is_what_is_scarce_it_is_shared_as_well() -> None:
    """Batches are short, and the time that requests have is long: the door is full before anybody is late."""
    service = Service(Layer(line(20, 0.1), 1, 32), timeout_s=30.0, capacity=256)
    rate = service.capacity
    service.arrive(service.poisson(4.0 * rate, 4.0), qos=Qos(client=A))
    service.arrive(service.poisson(0.2 * rate, 4.0), qos=Qos(client=B))
    service.run(40.0)
    requests = service.within(1.0, 4.0)
    assert share(requests, 30.0, B) >= 0.99
    rejected = service.front.stats.rejected
    assert rejected["share"] > 10 * rejected.get("capacity", 0)


def test_equal_clients_are_served_alike_and_weights_count() -> None:
    layer, slo_s = LAYERS["usual"]
    for clients, least in (({}, 0.40), ({A: Client("a", weight=4)}, 0.68)):
        service = Service(layer, timeout_s=3.0, slos_s=(slo_s,), warm=1.0, clients=clients)
        for client in (A, B):
            service.arrive(service.poisson(service.capacity, 1.2), qos=Qos(client=client))
        service.run(4.5)
        requests = service.within(0.4, 1.2)
        first, second = share(requests, slo_s, A), share(requests, slo_s, B)
        assert first >= least
        assert second >= 0.17
        assert first + second >= 0.92


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("high", "low"), [(0.7, 0.7), (0.4, 1.6)])
def test_a_higher_class_is_served_as_if_the_lower_was_not_there(name: str, high: float, low: float) -> None:
    layer, slo_s = LAYERS[name]
    service = Service(
        layer,
        timeout_s=3.0,
        slos_s=(slo_s, slo_s),
        warm=1.0,
        capacity=4096,
        routes=((0,), (0,)),
        priorities=(HIGH, LOW),
    )
    seconds = max(1.2, 40 * slo_s / 4)
    for route, part, client in ((0, high, A), (1, low, B)):
        rate = part * service.capacity
        service.arrive(service.poisson(rate, seconds), route=route, qos=Qos(client=client))
    service.run(seconds + 4.0)
    requests = service.within(seconds / 4, seconds)
    assert share(requests, slo_s, A) >= 0.99
    assert share(requests, slo_s, B) * low >= 0.6 * (1.0 - high)  # of what is left
    done = sorted(one.answered_at - one.at for one in requests if one.qos == Qos(client=A) and one.status == 200)
    assert done[len(done) // 2] <= 0.5 * slo_s


def test_a_higher_class_alone_above_what_can_be_done_leaves_the_lower_its_floor() -> None:
    layer, slo_s = LAYERS["usual"]
    service = Service(
        layer, timeout_s=3.0, slos_s=(slo_s, slo_s), warm=1.0, routes=((0,), (0,)), priorities=(HIGH, LOW)
    )
    for route, part, client in ((0, 1.8, A), (1, 0.2, B)):
        service.arrive(service.poisson(part * service.capacity, 2.0), route=route, qos=Qos(client=client))
    service.run(4.5)
    requests = service.within(0.5, 2.0)
    assert 0.15 <= share(requests, slo_s, B) <= 0.4
    assert share(requests, slo_s, A) >= 0.45

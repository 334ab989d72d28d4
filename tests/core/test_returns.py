"""Clients that ask again when they are answered share a batch of one worker alone; others are not kept waiting."""

from __future__ import annotations

import pytest

from engine.core.batching import BUSY, IDLE, Backlog, Policy, Reason, Taker, decide
from engine.core.returns import Returns
from engine.simulation.world import BEGIN, Curve
from tests.core.test_unequal import served
from tests.core.traffic import Layer, Service, line

LONG, SHORTER, BY_THE_ITEM = line(50.0, 2.0), line(6.0, 0.3), line(1.0, 12.0)


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody is waited for while ``are_usual`` is so; :meth:`undo` brings the rule back."""
    monkeypatch.setattr(Returns, "are_usual", property(lambda self: False))
    return monkeypatch


@pytest.mark.parametrize("clients", [2, 4, 8])
@pytest.mark.parametrize("curve", [LONG, SHORTER])
def test_who_asks_again_at_once_shares_one_batch_instead_of_taking_turns(
    curve: Curve, clients: int, as_before: pytest.MonkeyPatch
) -> None:
    seconds = 100 * curve(clients)
    in_turns, took_s = served(curve, [1.0], 32, clients, seconds)
    as_before.undo()
    rate, together_s = served(curve, [1.0], 32, clients, seconds)
    assert rate > 0.93 * clients / (curve(clients) + 0.001)
    assert rate > 1.7 * in_turns
    assert together_s < 0.7 * took_s


@pytest.mark.parametrize(
    ("curve", "clients", "workers"), [(LONG, 1, 1), (BY_THE_ITEM, 4, 1), (LONG, 40, 1), (LONG, 4, 2)]
)
def test_where_nothing_is_gained_all_is_as_it_was(
    curve: Curve, clients: int, workers: int, as_before: pytest.MonkeyPatch
) -> None:
    former = served(curve, [1.0] * workers, 8, clients, 4.0)
    as_before.undo()
    assert served(curve, [1.0] * workers, 8, clients, 4.0) == former


@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("curve", [LONG, line(20.0, 0.1)])
def test_who_comes_whenever_it_likes_is_not_kept_waiting(
    curve: Curve, load: float, as_before: pytest.MonkeyPatch
) -> None:
    def mean_s() -> float:
        service = Service(Layer(curve, 1, 32), warm=1.0, timeout_s=60.0, capacity=10_000)
        service.arrive(service.poisson(load * service.capacity, 4.0))
        service.finish()
        took = [one.answered_at - one.at for one in service.attempts if one.at > BEGIN + 0.5]
        return sum(took) / len(took)

    former_s = mean_s()
    as_before.undo()
    assert mean_s() <= 1.01 * former_s


# --- what is counted --------------------------------------------------------------------------------------------------


def known(*behind: int, count: int = 4, rate: float = 0.0) -> Returns:
    """Of batches of ``count``, each of a second, behind each of which so many come at once."""
    returns, now = Returns(), 0.0
    for came in behind:
        returns.done(count, 1.0, rate, now)
        returns.come(came, now + 0.1)
        now += 1.0
    returns.done(count, 1.0, rate, now)
    return returns


def test_most_have_to_come_back_for_some_batches() -> None:
    assert not Returns().are_usual
    assert not known(4).are_usual
    assert known(4, 4, 4).are_usual
    assert not known(2, 2, 2, 2).are_usual
    assert not known(4, 4, 4, rate=20.0).are_usual  # as many would have come anyway
    assert not known(4, 4, 4, 4, 0, 0, 0, 0, 0).are_usual


def test_who_comes_later_has_not_come_back() -> None:
    returns = Returns()
    for number in range(6):
        returns.done(4, 1.0, 0.0, float(number))
        returns.come(4, number + 0.26)
    assert not returns.are_usual


def test_it_is_waited_until_as_many_as_usual_have_come_or_the_while_is_over() -> None:
    returns = known(4, 4, 4)
    assert returns.until(10.0) == 3.25
    assert returns.until(0.1) == 3.1
    returns.come(3, 3.01)
    assert returns.until(10.0) == 3.25
    returns.come(1, 3.02)
    assert returns.until(10.0) < 0.0


def test_of_three_in_four_three_are_waited_for() -> None:
    returns = known(3, 3, 3, 3, 3)
    returns.come(3, 5.0)
    assert returns.until(10.0) < 0.0


# --- what becomes of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backlog", "taker", "expected"),
    [
        (Backlog(2, 10, 0.9), IDLE, (None, 1.5)),
        (Backlog(2, 10, 0.9), BUSY, (None, 1.5)),
        (Backlog(2, 10, 0.0), IDLE, (None, 1.5)),  # who has waited for the worker waits for those as well
        (Backlog(8, 10, 0.9), IDLE, (Reason.FULL, None)),
        (Backlog(2, 10, 0.9, first_due=1.4), IDLE, (None, 1.2)),
        (Backlog(2, 10, 0.9, first_due=1.2), IDLE, (Reason.DEADLINE, None)),
    ],
)
def test_a_batch_that_is_not_full_waits_for_them_unless_somebody_is_due(
    backlog: Backlog, taker: Taker, expected: tuple[Reason | None, float | None]
) -> None:
    decision = decide(Policy(8, max_wait_s=0.1), backlog, taker, now=1.0, service_s=0.2, free_at=0.5, returns_until=1.5)
    assert decision.reason is expected[0]
    assert expected[1] is None or decision.wake_at == pytest.approx(expected[1])


def test_when_the_stage_stops_nobody_is_waited_for() -> None:
    assert (
        decide(Policy(8), Backlog(2, 10, 0.9), IDLE, now=1.0, returns_until=1.5, draining=True).reason is Reason.DRAIN
    )

"""Memory is given back once after each peak, when it is over."""

from __future__ import annotations

from engine.core.ebb import CALM_S, LEAST, PART, Ebb


def test_once_after_a_peak_and_not_before_it_has_been_calm_for_a_while() -> None:
    ebb = Ebb()
    assert not ebb.is_over(LEAST, 0.0)
    assert not ebb.is_over(0, 1.0)
    assert not ebb.is_over(0, 1.0 + CALM_S / 2)
    assert ebb.is_over(0, 1.0 + CALM_S)
    assert not any(ebb.is_over(0, 2.0 + second) for second in range(10))


def test_little_is_not_worth_it() -> None:
    ebb = Ebb()
    assert not any(ebb.is_over(held, second) for second, held in enumerate([LEAST - 1, 0, 0, 0, 0]))


def test_while_the_load_goes_on_nothing_is_given_back() -> None:
    """Between two large requests there is little as well."""
    ebb = Ebb()
    instant = 0.0
    for _ in range(100):
        for held in (2 * LEAST, 0, LEAST // PART):
            instant += CALM_S / 4
            assert not ebb.is_over(held, instant)


def test_after_it_less_is_a_peak() -> None:
    ebb = Ebb()
    for second, held in enumerate([100 * LEAST, LEAST, LEAST, LEAST]):
        over = ebb.is_over(held, second * CALM_S)
    assert not over
    assert not ebb.is_over(0, 10.0)
    assert ebb.is_over(0, 10.0 + CALM_S)

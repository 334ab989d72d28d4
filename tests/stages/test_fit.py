"""The size that memory takes: found by failing, remembered, and slowly tried higher."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.runtime.fit import RETRY_MAX_S, RETRY_S, Fit


def test_what_fitted_is_given_from_then_on_and_a_quarter_more_after_a_while() -> None:
    fit = Fit(32)
    assert not fit.is_reduced
    assert fit.exhausted(32, 16, 0.0)
    assert (fit.most, fit.is_reduced) == (16, True)
    assert not fit.worked(16, RETRY_S - 1)
    assert not fit.worked(3, RETRY_S + 1)  # says nothing of 16
    assert fit.worked(16, RETRY_S + 1)
    assert fit.most == 20


def test_a_try_that_fails_goes_back_and_waits_twice_as_long() -> None:
    fit = Fit(32)
    fit.exhausted(32, 16, 0.0)
    fit.worked(16, RETRY_S)
    assert fit.exhausted(20, 10, RETRY_S + 1)
    assert fit.most == 10
    assert not fit.worked(10, 2 * RETRY_S + 1)
    assert fit.worked(10, 3 * RETRY_S + 1)


def test_at_the_configured_size_it_is_as_before() -> None:
    fit, moment = Fit(4), 0.0
    fit.exhausted(4, 2, moment)
    while fit.most < 4:
        moment += RETRY_S
        fit.worked(fit.most, moment)
    assert fit.is_reduced
    fit.worked(4, moment)
    assert not fit.is_reduced


def test_a_single_value_that_does_not_fit_lowers_nothing() -> None:
    fit = Fit(8)
    assert not fit.exhausted(1, 0, 0.0)
    assert (fit.most, fit.times, fit.is_reduced) == (8, 1, False)


def test_where_nothing_may_be_tried_again_the_half_is_taken_for_what_fits() -> None:
    fit = Fit(8)
    fit.exhausted(8, 0, 0.0)
    assert fit.most == 4


@given(st.integers(1, 64), st.integers(1, 64), st.lists(st.floats(0, 120), max_size=200))
def test_it_finds_any_size_that_fits_and_stays_within_bounds(size: int, room: int, pauses: list[float]) -> None:
    """A device that takes ``room`` values, and full batches at odd moments."""
    fit, moment, failed_in_a_row = Fit(size), 0.0, 0
    for pause in pauses:
        moment += pause
        tried = fit.most
        if tried > room:
            fitted = tried
            while fitted > room:  # halves, the larger first
                fitted = (fitted + 1) // 2
            fit.exhausted(tried, fitted, moment)
            failed_in_a_row += 1
        else:
            fit.worked(tried, moment)
            failed_in_a_row = 0
        assert 1 <= fit.most <= size
        assert failed_in_a_row <= 1  # the next batch fits
        assert fit._wait_s <= RETRY_MAX_S


def test_of_sizes_that_are_allowed_the_next_below_and_above_are_taken() -> None:
    fit = Fit(32, (1, 8, 32))
    assert fit.exhausted(32, 8, 0.0)
    assert fit.most == 8
    assert fit.worked(8, RETRY_S)
    assert fit.most == 32
    assert fit.exhausted(32, 0, RETRY_S)  # nothing was tried again
    assert fit.most == 8
    only = Fit(8, (8,))
    assert not only.exhausted(8, 0, 0.0)
    assert only.most == 8


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.booleans(), max_size=50),
)
def test_it_gives_only_sizes_that_are_allowed(sizes: list[int], fits: list[bool]) -> None:
    fit = Fit(sizes[-1], sizes)
    for step, fitted in enumerate(fits):
        if fitted:
            fit.worked(fit.most, step * RETRY_S)
        else:
            fit.exhausted(fit.most, 0, step * RETRY_S)
        assert fit.most in sizes

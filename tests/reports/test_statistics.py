"""The statistics of a table agree with scipy and statsmodels on the same numbers."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ssl_jax.reports import statistics

ARM = {0: 0.8412, 1: 0.8377, 2: 0.8455, 3: 0.8391}
DEFAULT = {0: 0.8290, 1: 0.8310, 2: 0.8301, 3: 0.8333}
values = st.lists(st.floats(-1e3, 1e3).map(lambda v: round(v, 6)), min_size=2, max_size=8)


def test_a_summary_is_that_of_statsmodels():
    """statsmodels 0.15.0: DescrStatsW(ARM).mean and .tconfint_mean(); numpy's deviation with ddof=1."""
    found = statistics.summarize(list(ARM.values()))
    np.testing.assert_allclose(
        [found.mean, found.sd, found.low, found.high],
        [0.840875, 0.0034023276346250753, 0.8354611374949115, 0.8462888625050886],
        rtol=1e-13,
    )


def test_a_comparison_is_that_of_statsmodels():
    """statsmodels 0.15.0: DescrStatsW(ARM - DEFAULT).tconfint_mean() and .ttest_mean(0)."""
    found = statistics.compare(ARM, DEFAULT)
    expected = [0.010025000000000006, 0.002760495546843042, 0.01728950445315697, 0.02187248838060147]
    np.testing.assert_allclose([found.difference, found.low, found.high, found.p], expected, rtol=1e-10)


def test_holm_is_that_of_statsmodels():
    """statsmodels 0.15.0: multipletests(ps, method="holm"); a comparison without a test does not count."""
    ps = [0.012, 0.04, None, 0.03, 0.2, 0.0004]
    np.testing.assert_allclose([p for p in statistics.holm(ps) if p is not None], [0.048, 0.09, 0.09, 0.2, 0.002], rtol=1e-12)
    assert statistics.holm(ps)[2] is None and statistics.holm([]) == [] and statistics.holm([0.6, 0.7]) == [1.0, 1.0]


@given(values)
def test_a_summary_is_that_of_scipy(sample):
    found = statistics.summarize(sample)
    low, high = scipy.stats.t.interval(0.95, len(sample) - 1, np.mean(sample), max(scipy.stats.sem(sample), 1e-300))
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-9, atol=1e-9)


@given(st.data())
def test_a_comparison_is_that_of_scipy(data):
    n = data.draw(st.integers(3, 7))
    draw = lambda: dict(enumerate(data.draw(st.lists(st.integers(0, 1000), min_size=n, max_size=n))))
    a, b = draw(), draw()
    found = statistics.compare(a, b)
    differences = {a[s] - b[s] for s in range(n)}
    if len(differences) == 1:
        assert found.p == (1.0 if differences == {0} else None)
        return
    theirs = scipy.stats.ttest_rel(list(a.values()), list(b.values()))
    interval = theirs.confidence_interval(0.95)
    np.testing.assert_allclose([found.p, found.low, found.high], [theirs.pvalue, interval.low, interval.high], rtol=1e-7)


def test_pairs_are_matched_by_seed_and_what_is_missing_is_left_out():
    shuffled = {3: 0.8333, 0: 0.8290, 2: 0.8301, 1: 0.8310, 9: 5.0}
    assert statistics.compare(ARM, shuffled) == statistics.compare(ARM, DEFAULT)
    assert statistics.compare({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_neither_interval_nor_test():
    assert statistics.summarize([0.5]) == statistics.Summary(1, 0.5)
    assert statistics.compare({0: 0.5}, {0: 0.25}) == statistics.Comparison(1, 0.25)
    assert not statistics.compare({0: 0.5}, {0: 0.25}).significant


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf]])
def test_what_is_not_finite_has_no_summary(bad):
    with pytest.raises(ValueError):
        statistics.summarize(bad)


def test_the_order_of_arms_is_compared():
    assert statistics.concordance([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert statistics.concordance([1, 2, 3], [30, 20, 10]) == pytest.approx(-1)
    assert statistics.concordance([1, 2], [1, 2]) is None and statistics.concordance([1, 1, 1], [1, 2, 3]) is None

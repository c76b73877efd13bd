"""Statistics against independent references: exact enumeration, and scipy where it is there."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from diablo_ds.evaluation.statistics import (
    Estimate,
    Interval,
    bootstrap_interval,
    estimate,
    mcnemar_p,
    paired_difference,
    pass_at_k,
    wilson_interval,
)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 10), (3, 10), (81, 100), (7, 7)])
def test_wilsons_interval_is_where_the_score_test_does_not_reject(correct, n):
    z = 1.959963984540054
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(correct / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(z)
    assert (low == 0) == (correct == 0)
    assert (high == 1) == (correct == n)


def test_wilsons_interval_equals_scipys():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for correct, n in ((3, 10), (660, 1319)):
        of_scipy = stats.binomtest(correct, n).proportion_ci(method="wilson")
        assert wilson_interval(correct, n) == pytest.approx((of_scipy.low, of_scipy.high))


def test_mcnemars_p_is_that_of_all_outcomes():
    for lost, won in itertools.product(range(6), repeat=2):
        total = lost + won
        as_far = sum(
            abs(2 * sum(outcome) - total) >= abs(won - lost)
            for outcome in itertools.product((0, 1), repeat=total)
        )
        assert mcnemar_p(lost, won) == pytest.approx(as_far / 2**total)
    assert mcnemar_p(0, 0) == 1
    assert 0 < mcnemar_p(600, 719) < 0.01


def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_pass():
    for n, passed in ((1, 0), (1, 1), (5, 2), (6, 5), (7, 0)):
        samples = [1] * passed + [0] * (n - passed)
        for k in range(1, n + 1):
            draws = list(itertools.combinations(samples, k))
            expected = Fraction(sum(map(any, draws)), len(draws))
            assert pass_at_k(n, passed, k) == pytest.approx(float(expected))
    assert pass_at_k(20, 20, 10) == 1
    with pytest.raises(ValueError, match="k must be from 1 to num_samples"):
        pass_at_k(5, 1, 6)


def test_the_bootstraps_interval_is_near_that_of_all_draws():
    values = [0.0, 0.1, 0.5, 0.9, 1.0]
    means = [np.mean(draw) for draw in itertools.product(values, repeat=5)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.021)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    many = [value**2 for value in np.linspace(0, 1, 30)]
    assert bootstrap_interval(many, seed=1) != bootstrap_interval(many, seed=2)


def test_weighted_values_give_the_ratio_of_sums():
    sums, weights = [2.0, 9.0, 1.0, 4.0], [1, 3, 1, 2]
    pairs = itertools.product(zip(sums, weights, strict=True), repeat=4)
    ratios = [sum(s for s, _ in draw) / sum(w for _, w in draw) for draw in pairs]
    found = estimate(sums, weights)
    assert found.score == 16 / 7
    assert found.interval == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.1)
    assert estimate([3, 6, 9], [1, 2, 3]).interval == pytest.approx((3, 3))


def test_yes_or_no_scores_have_wilsons_interval_and_others_the_bootstraps():
    assert estimate([1, 0, 1, 1]) == Estimate(0.75, 4, wilson_interval(3, 4))
    assert estimate([1, 0, 0.5]) == Estimate(0.5, 3, bootstrap_interval([1, 0, 0.5]))
    assert estimate([0.5, 0.5]).interval == Interval(0.5, 0.5)
    with pytest.raises(ValueError, match="there must be a value"):
        estimate([])


def test_a_difference_of_yes_or_no_scores():
    before = [1] * 5 + [0] * 15 + [1] * 60 + [0] * 20
    after = [0] * 5 + [1] * 15 + [1] * 60 + [0] * 20
    found = paired_difference(before, after)
    assert found.difference == pytest.approx(0.1)
    assert found.p == mcnemar_p(5, 15)
    assert found.test == "exact McNemar"
    low, high = found.interval
    assert low < 0.1 < high
    reverse = paired_difference(after, before)
    assert reverse.difference == -found.difference
    assert reverse.interval == pytest.approx((-high, -low))
    # Where the interval excludes 0 the test rejects, and the other way round, but at the edge.
    assert (low > 0) == (found.p < 0.05)


def test_the_interval_of_a_difference_covers_what_it_should():
    generator = np.random.default_rng(0)
    num_covered = 0
    for _ in range(400):
        outcomes = generator.choice(4, size=80, p=[0.4, 0.25, 0.1, 0.25])
        before, after = outcomes % 2, outcomes // 2
        interval = paired_difference([*before], [*after]).interval
        num_covered += interval.low <= 0.35 - 0.5 <= interval.high
    assert 0.92 <= num_covered / 400 <= 0.98


def test_a_difference_of_other_scores():
    before, after = [0.0, 0.5, 0.25, 1.0, 0.2], [0.5, 0.75, 0.5, 1.0, 0.6]
    changes = np.subtract(after, before)
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    exact = np.mean(np.abs(signs @ changes) >= changes.sum() - 1e-9)
    found = paired_difference(before, after)
    assert found.difference == pytest.approx(changes.mean())
    assert found.p == pytest.approx(exact, abs=0.02)
    assert found.interval == bootstrap_interval([*changes])
    assert paired_difference(before, before).p == 1
    weighted = paired_difference([2, 6], [4, 9], [1, 2])
    assert weighted.difference == pytest.approx(5 / 3)
    with pytest.raises(ValueError, match="of the same questions"):
        paired_difference([1], [1, 0])

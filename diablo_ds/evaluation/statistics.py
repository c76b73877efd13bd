"""What scores say about a model: intervals, differences on the same questions, and pass@k.

All intervals are of 95 %. Random numbers come from a fixed seed, so that equal scores give equal
results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]

LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
NUM_RESAMPLES = 10_000
_CHUNK_ELEMENTS = 1 << 22
"""Random numbers held at a time."""


class Interval(NamedTuple):
    """Where a score lies with a confidence of `LEVEL`."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A score over all questions."""

    score: float
    n: int
    interval: Interval


class Difference(NamedTuple):
    """How much higher the second of two scores is than the first, on the same questions."""

    difference: float
    interval: Interval
    p: float
    """Two-sided probability of such a difference between equally good models."""
    test: str
    """Which test `p` is from, in words."""


def wilson_interval(num_correct: int, n: int) -> Interval:
    """Return the interval of a share of yes-or-no scores (Wilson, 1927).

    Raises:
        ValueError: unless ``0 <= num_correct <= n`` and ``n > 0``.
    """
    if not 0 <= num_correct <= n or n == 0:
        raise ValueError(f"num_correct must be from 0 to n > 0; got {num_correct=}, {n=}")
    share, z2 = num_correct / n, _Z * _Z
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Exactly 0 and 1 at the ends, which rounding would miss.
    low = 0.0 if num_correct == 0 else center - half
    return Interval(low, 1.0 if num_correct == n else center + half)


def bootstrap_interval(
    values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 0
) -> Interval:
    """Return the percentile interval of a mean, by drawing questions with replacement.

    Args:
        values: a score per question or, with weights, a sum such as the nats of all its tokens.
        weights: what the sum of values is divided by, in sum, e.g. the number of tokens.
        seed: of the draws.

    Raises:
        ValueError: if there is no value.
    """
    sums, parts = _arrays(values, weights)
    if _is_constant(sums, parts):
        mean = float(sums.sum() / parts.sum())
        return Interval(mean, mean)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            sums[draws].sum(axis=1) / parts[draws].sum(axis=1)
            for draws in (
                generator.integers(len(sums), size=(rows, len(sums))) for rows in _chunks(len(sums))
            )
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def estimate(values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
    """Return the mean over questions, with Wilson's interval for yes-or-no scores.

    Other scores have that of the bootstrap; see `bootstrap_interval` for the arguments.

    Raises:
        ValueError: if there is no value.
    """
    sums, parts = _arrays(values, weights)
    score = float(sums.sum() / parts.sum())
    if weights is None and _is_binary(sums):
        interval = wilson_interval(int(sums.sum()), len(sums))
    else:
        interval = bootstrap_interval(values, weights)
    return Estimate(score, len(sums), interval)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test (1947).

    Args:
        only_first: questions that only the first model answers correctly.
        only_second: questions that only the second model answers correctly.
    """
    num_different = only_first + only_second
    fewer = min(only_first, only_second)
    outcomes = tail = 1  # with k questions for the one: num_different over k
    for k in range(1, fewer + 1):
        outcomes = outcomes * (num_different - k + 1) // k
        tail += outcomes
    return min(1.0, 2 * tail / (1 << num_different))


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Difference:
    """Compare two models on the same questions.

    Yes-or-no scores are compared by McNemar's exact test, with the adjusted Wald interval of
    Bonett and Price (2012); others by random exchanges of the two models, with the interval of the
    bootstrap.

    Args:
        first: the first model's score per question; with weights, a sum, see `bootstrap_interval`.
        second: the second model's, in the same order.
        weights: of the questions, the same for both models.
        seed: of the random exchanges and draws.

    Raises:
        ValueError: if there is no question, or the lengths differ.
    """
    before, parts = _arrays(first, weights)
    after, _ = _arrays(second, weights)
    if len(before) != len(after):
        raise ValueError(f"scores must be of the same questions; got {len(before)}, {len(after)}")
    changes = after - before
    difference = float(changes.sum() / parts.sum())
    if weights is None and _is_binary(before) and _is_binary(after):
        lost, won = int((changes < 0).sum()), int((changes > 0).sum())
        interval = _bonett_price(lost, won, len(changes))
        return Difference(difference, interval, mcnemar_p(lost, won), "exact McNemar")
    interval = bootstrap_interval([*changes], weights, seed=seed)
    return Difference(difference, interval, _exchange_p(changes, seed), "random exchanges")


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Return the unbiased estimate that one of k samples passes (Chen et al., 2021).

    Raises:
        ValueError: unless ``1 <= k <= num_samples`` and ``0 <= num_passed <= num_samples``.
    """
    if not 1 <= k <= num_samples or not 0 <= num_passed <= num_samples:
        raise ValueError(
            "k must be from 1 to num_samples, and num_passed at most that; got "
            f"{k=}, {num_samples=}, {num_passed=}"
        )
    num_failed = num_samples - num_passed
    return 1 - math.comb(num_failed, k) / math.comb(num_samples, k)


def _bonett_price(lost: int, won: int, n: int) -> Interval:
    share_lost, share_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    center = share_won - share_lost
    half = _Z * math.sqrt((share_lost + share_won - center * center) / (n + 2))
    return Interval(max(-1.0, center - half), min(1.0, center + half))


def _exchange_p(changes: _Floats, seed: int) -> float:
    """Return how often random signs give a sum at least as far from 0; the given one counts."""
    generator = np.random.default_rng(seed)
    observed = abs(float(changes.sum())) * (1 - 1e-12)  # sums differ by rounding
    num_as_far = 1
    for rows in _chunks(len(changes)):
        signs = generator.integers(2, size=(rows, len(changes)), dtype=np.int8) * 2 - 1
        num_as_far += int((np.abs(signs @ changes) >= observed).sum())
    return num_as_far / (NUM_RESAMPLES + 1)


def _chunks(n: int) -> Iterator[int]:
    """Yield numbers of rows of n elements that sum up to `NUM_RESAMPLES`."""
    size = max(1, _CHUNK_ELEMENTS // n)
    for start in range(0, NUM_RESAMPLES, size):
        yield min(size, NUM_RESAMPLES - start)


def _arrays(values: Sequence[float], weights: Sequence[float] | None) -> tuple[_Floats, _Floats]:
    sums = np.asarray(values, np.float64)
    parts = np.ones_like(sums) if weights is None else np.asarray(weights, np.float64)
    if not len(sums) or sums.shape != parts.shape or not (parts > 0).all():
        raise ValueError(
            "there must be a value, and a weight above 0 for each; got "
            f"{len(sums)} values, {len(parts)} weights"
        )
    return sums, parts


def _is_binary(values: _Floats) -> Any:
    return np.isin(values, (0, 1)).all()


def _is_constant(sums: _Floats, parts: _Floats) -> Any:
    return (sums == sums[0]).all() and (parts == parts[0]).all()

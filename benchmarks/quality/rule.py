"""What the best rates say about a rule: rate = rate at N = 64, times (N / 64) to some power."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import linear_regression

REFERENCE = 64


@dataclass(frozen=True)
class Rule:
    """A line through the best rates over N, both on logarithmic scales."""

    rate: float
    """At N = `REFERENCE`."""
    power: float
    residuals: Mapping[int, float]
    """By N: factors of 2 between the best rate and the line's."""

    def text(self) -> str:
        """Return the rule with its residuals."""
        residuals = ", ".join(f"N={n}: {value:+.2f}" for n, value in self.residuals.items())
        return (
            f"rate = {self.rate:.3g} * (N / {REFERENCE}) ** {self.power:.2f}; residuals in "
            f"factors of 2: {residuals}. Rates were tried in steps of a factor of 2, so that each "
            "best rate is known to about half a step."
        )


def fit_rule(rates: Mapping[int, float]) -> Rule | None:
    """Fit log2(rate) over log2(N) by least squares; None with fewer than 3 points.

    Args:
        rates: best rate by N, of searches whose best rate is inside.
    """
    if len(rates) < 3:
        return None
    xs = [math.log2(n / REFERENCE) for n in rates]
    ys = [math.log2(rate) for rate in rates.values()]
    power, offset = linear_regression(xs, ys)
    residuals = {n: y - (power * x + offset) for n, x, y in zip(rates, xs, ys, strict=True)}
    return Rule(2.0**offset, power, residuals)

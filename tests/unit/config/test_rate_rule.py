"""The rule for the learning rate: by the width that most blocks have."""

from __future__ import annotations

import math

import pytest

from diablo_ds.config.rate_rule import POWER, REFERENCE_RATE, REFERENCE_WIDTH, choose_rate
from diablo_ds.errors import UserError


def test_at_the_width_where_it_was_measured_the_rate_is_the_best_one():
    rate, reason = choose_rate([REFERENCE_WIDTH] * 4 + [24])
    assert rate == REFERENCE_RATE
    assert f"blocks of {REFERENCE_WIDTH} inputs" in reason


def test_wider_blocks_get_a_lower_rate_by_a_power_of_the_width():
    rates = {width: choose_rate([width])[0] for width in (3, 9, 36, 64, 144)}
    assert sorted(rates.values(), reverse=True) == list(rates.values())
    for width, rate in rates.items():
        expected = REFERENCE_RATE * (REFERENCE_WIDTH / width) ** POWER
        assert math.isclose(rate, expected, rel_tol=0.05)
        assert rate == float(f"{rate:.1e}")


def test_without_a_target_there_is_no_rate():
    with pytest.raises(UserError, match="needs a target layer"):
        choose_rate([])

"""The rule for the learning rate: by the width that most blocks have."""

from __future__ import annotations

import math

import pytest

from diablo_ds.config.rate_rule import RATE_TIMES_WIDTH, choose_rate
from diablo_ds.errors import UserError


def test_the_rate_is_one_over_the_width_to_two_digits():
    for width in (3, 9, 36, 64, 144):
        rate, reason = choose_rate([width])
        assert math.isclose(rate * width, RATE_TIMES_WIDTH, rel_tol=0.05)
        assert rate == float(f"{rate:.1e}")
        assert f"/ {width}, the inputs of a block" in reason


def test_the_width_that_most_layers_have_decides():
    assert choose_rate([9] * 4 + [24]) == choose_rate([9])
    assert choose_rate([9, 24, 24]) == choose_rate([24])


def test_without_a_target_there_is_no_rate():
    with pytest.raises(UserError, match="needs a target layer"):
        choose_rate([])

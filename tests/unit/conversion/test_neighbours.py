"""The numbers of a dtype around a value, and rounding to one of them at random."""

from __future__ import annotations

import pytest
import torch

from diablo_ds.conversion.neighbours import ROUNDED_DTYPES, neighbours, round_stochastically


def _values():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, generator=generator) * 2.0 ** torch.arange(-20, 5).repeat(200)
    return torch.cat([values, torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1.0, -2.0, 2.0**-24])])


@pytest.mark.parametrize("dtype", ROUNDED_DTYPES)
def test_both_neighbours_enclose_the_value_with_no_number_between(dtype):
    exact = _values()
    nearest, other = neighbours(exact, dtype)
    assert torch.equal(nearest, exact.to(dtype))
    low, high = torch.minimum(nearest.float(), other.float()), torch.maximum(nearest, other).float()
    assert (low <= exact).all()
    assert (exact <= high).all()
    is_number = exact.to(dtype).float() == exact
    assert torch.equal(nearest[is_number], other[is_number])
    apart = ~is_number
    assert (low[apart] < high[apart]).all()
    between = (low.double() + (high.double() - low.double()) / 2).to(dtype).double()
    assert ((between == low.double()) | (between == high.double())).all()


@pytest.mark.parametrize("dtype", ROUNDED_DTYPES)
def test_the_mean_is_exact_where_rounding_to_nearest_swallows(dtype):
    step = torch.finfo(dtype).eps
    exact = torch.full((200_000,), 1 + step / 8)
    assert (exact.to(dtype) == 1).all()
    rounded = round_stochastically(exact, dtype, torch.Generator().manual_seed(1)).float()
    assert set(((rounded - 1) / step).tolist()) == {0.0, 1.0}
    # The standard deviation of the mean is sqrt(1/8 * 7/8 / 200,000) = 0.00074 steps.
    assert float((rounded.double() - 1).mean()) / step == pytest.approx(1 / 8, abs=0.004)


def test_the_same_seed_rounds_alike():
    exact = _values()
    first, second = (
        round_stochastically(exact, torch.bfloat16, torch.Generator().manual_seed(2))
        for _ in range(2)
    )
    assert torch.equal(first, second)

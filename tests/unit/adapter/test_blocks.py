"""Block counts, shapes and places."""

from __future__ import annotations

import pytest
import torch

from diablo_ds.adapter import blocks
from diablo_ds.errors import UserError
from tests.unit.adapter.block_cases import dense_delta


def test_diagonal_blocks_is_a_view_laid_out_like_a_delta():
    weight = torch.zeros(9, 6)
    delta = torch.randn(3, 2, 3)
    blocks.diagonal_blocks(weight, 3).add_(delta)
    assert torch.equal(weight, dense_delta(delta))


def test_legal_counts_divide_both_widths():
    assert blocks.legal_num_blocks(12, 18) == [1, 2, 3, 6]
    assert blocks.nearest_num_blocks(12, 18, 4) == [3, 6]
    assert blocks.nearest_num_blocks(12, 18, 64) == [6]
    assert blocks.nearest_num_blocks(12, 18, 3) == [3]


@pytest.mark.parametrize(("share", "num_blocks"), [(1.0, 1), (0.01, 128), (0.02, 64), (0.5, 2)])
def test_num_blocks_for_share_takes_the_nearest(share, num_blocks):
    assert blocks.num_blocks_for_share(4096, 11008, share) == num_blocks


@pytest.mark.parametrize("num_blocks", [0, -1, 5, 64])
def test_bad_num_blocks_names_widths_and_repair(num_blocks):
    with pytest.raises(UserError, match=r"in_features=12, out_features=18; nearest that work: "):
        blocks.delta_shape(num_blocks, 12, 18)

"""The norm of a weight's diagonal blocks from shards that end anywhere."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from diablo_ds.adapter.blocks import diagonal_blocks
from diablo_ds.zero.block_norms import shard_square_sum


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5, 7, 40, 60, 241])
def test_shards_add_up_to_the_norm_of_the_blocks(num_shards):
    weight = torch.randn(12, 20)  # [out_features, in_features]
    shape = (4, 5, 3)
    size = -(-weight.numel() // num_shards)
    parts = [
        shard_square_sum(own, index * size, shape)
        for index, own in enumerate(weight.flatten().split(size))
    ]
    assert_close(sum(parts), diagonal_blocks(weight, 4).square().sum())

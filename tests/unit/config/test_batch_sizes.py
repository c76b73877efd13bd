"""Batch sizes that are open adapt to any world size; given ones are kept or refused."""

from __future__ import annotations

import pytest

from diablo_ds.config.batch_sizes import MOST_MICRO_BATCH, choose_batch_sizes
from diablo_ds.errors import UserError


@pytest.mark.parametrize("world_size", [*range(1, 10), 12, 16, 96, 1000])
def test_open_sizes_suit_any_world_size(world_size):
    sizes = choose_batch_sizes(0, 0, world_size)
    micro_batch, global_batch = sizes.micro_batch, sizes.global_batch
    assert global_batch >= max(8, world_size)
    assert global_batch - world_size < 8 or global_batch == world_size
    assert global_batch % (micro_batch * world_size) == 0
    larger = range(micro_batch + 1, MOST_MICRO_BATCH + 1)
    assert not [m for m in larger if global_batch % (m * world_size) == 0]
    assert sizes.reason


@pytest.mark.parametrize(
    ("given", "world_size", "expected"),
    [
        ((0, 0), 1, (4, 8)),
        ((0, 0), 2, (4, 8)),
        ((0, 0), 3, (3, 9)),
        ((0, 0), 4, (2, 8)),
        ((0, 0), 8, (1, 8)),
        ((3, 0), 1, (3, 9)),
        ((16, 0), 2, (16, 32)),
        ((0, 36), 2, (3, 36)),
        ((0, 7), 1, (1, 7)),
        ((8, 16), 2, (8, 16)),
    ],
)
def test_what_is_given_stays(given, world_size, expected):
    sizes = choose_batch_sizes(*given, world_size)
    assert (sizes.micro_batch, sizes.global_batch) == expected
    assert bool(sizes.reason) == (0 in given)


@pytest.mark.parametrize(
    ("given", "world_size", "repair"),
    [
        ((0, 8), 3, "global_batch may be 6 or another multiple of 3"),
        ((0, 4), 8, "global_batch may be 8 or another multiple of 8"),
        ((3, 8), 2, "micro_batch may be 1, 2, 4"),
        ((4, 8), 3, "global_batch may be 12 or another multiple of 12"),
    ],
)
def test_what_does_not_divide_is_refused(given, world_size, repair):
    with pytest.raises(UserError, match=f"world size={world_size}; {repair}"):
        choose_batch_sizes(*given, world_size)


def test_batches_counted_in_tokens_have_no_micro_batch():
    assert choose_batch_sizes(0, 0, 3, counted_in_tokens=True)[:2] == (0, 9)
    assert choose_batch_sizes(0, 8, 3, counted_in_tokens=True)[:2] == (0, 8)

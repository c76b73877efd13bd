from __future__ import annotations

import numpy as np
import pytest

from diablo_ds.data.packing import grouped_by_length, pack, packed, pass_seed, shuffled


def _lengths(count, longest, seed=0):
    generator = np.random.default_rng(seed)
    return np.clip(generator.lognormal(4.5, 0.6, count).astype(np.int64), 1, longest)


def _fill(lengths, capacity):
    ordered = -np.sort(-np.asarray(lengths))
    sequences = pack(ordered, capacity)
    totals = np.bincount(sequences, weights=ordered)
    assert totals.max() <= capacity
    assert totals.min() > 0  # numbered without gaps
    return totals.sum() / (len(totals) * capacity)


@pytest.mark.parametrize(("count", "capacity"), [(5000, 512), (5000, 2048), (300, 512)])
def test_hardly_any_room_is_left(count, capacity):
    assert _fill(_lengths(count, capacity), capacity) > 0.97


@pytest.mark.parametrize(
    ("lengths", "capacity", "num_sequences"),
    [
        ([6, 6, 6], 6, 3),
        ([4, 4, 2, 2], 6, 2),
        ([1] * 12, 6, 2),
        ([5, 4, 3, 3, 2, 1], 6, 3),
        ([7], 7, 1),
        # Best fit decreasing needs 3: it puts 4 with 3 where 4 + 2 + 2 and 3 + 3 + 2 are full.
        ([4, 3, 3, 2, 2, 2], 8, 2),
    ],
)
def test_small_cases_are_packed_as_well_as_can_be(lengths, capacity, num_sequences):
    assert pack(np.array(lengths), capacity).max() + 1 == num_sequences


@pytest.mark.parametrize("make", ["shuffled", "grouped", "packed"])
def test_an_order_has_every_example_once_and_depends_on_the_seed_alone(make):
    lengths = _lengths(1001, 512)
    slots = pack(-np.sort(-lengths), 512)

    def order(seed):
        if make == "shuffled":
            return shuffled(len(lengths), seed)
        if make == "grouped":
            return grouped_by_length(lengths, 8, seed)
        return packed(lengths, slots, 8, seed)

    first = order(0)
    assert sorted(first.members) == list(range(1001))
    assert first.starts[0] == 0
    assert first.starts[-1] == 1001
    assert (np.diff(first.starts) > 0).all()
    assert [len(x) for x in order(0)] == [len(x) for x in first]
    assert np.array_equal(order(0).members, first.members)
    assert not np.array_equal(order(1).members, first.members)
    assert len(order(1)) == len(first)  # as many sequences in each epoch


def test_packed_sequences_fit():
    lengths = _lengths(1001, 512)
    order = packed(lengths, pack(-np.sort(-lengths), 512), 8, seed=3)
    totals = [lengths[order.sequence(i)].sum() for i in range(len(order))]
    assert max(totals) <= 512
    assert sum(totals) == lengths.sum()


def test_packing_mixes_other_examples_in_each_epoch():
    lengths = _lengths(1001, 512)
    slots = pack(-np.sort(-lengths), 512)
    partners = [
        {frozenset(o.sequence(i)) for i in range(len(o))}
        for o in (packed(lengths, slots, 8, seed) for seed in (0, 1))
    ]
    assert len(partners[0] & partners[1]) < len(partners[0]) / 4


def test_a_global_batch_grouped_by_length_needs_less_padding():
    lengths = _lengths(4000, 512)

    def padded(order):
        batches = lengths[order.members][: 4000 // 16 * 16].reshape(-1, 16)
        return (batches.max(axis=1) * 16).sum() / batches.sum()

    assert padded(grouped_by_length(lengths, 16, 0)) < 1.05 < 1.5 < padded(shuffled(4000, 0))
    # The batches themselves are in random order, not from long to short.
    firsts = lengths[grouped_by_length(lengths, 16, 0).members[::16]]
    assert abs(np.corrcoef(firsts, np.arange(len(firsts)))[0, 1]) < 0.3


def test_seeds_of_passes_and_windows_are_all_different():
    pairs = [(seed, number) for seed in range(30) for number in range(30)]
    assert len({pass_seed(seed, number, "hashed") for seed, number in pairs}) == len(pairs)
    assert pass_seed(3, 4, "seed-plus-epoch") == 7

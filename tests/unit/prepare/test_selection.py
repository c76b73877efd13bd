from __future__ import annotations

import numpy as np
import pytest

from diablo_ds.prepare import selection


def _digests(*chunks):
    return [np.array([[v % 7, v] for v in chunk], np.uint64).reshape(-1, 2) for chunk in chunks]


def _masks(*sizes):
    return [np.ones(size, np.bool_) for size in sizes]


@pytest.mark.parametrize("rows_per_pass", [3, 1000])
def test_the_first_of_equal_rows_is_kept(monkeypatch, rows_per_pass):
    monkeypatch.setattr(selection, "ROWS_PER_PASS", rows_per_pass)
    masks = selection.first_occurrences(_digests([1, 2, 1], [], [3, 2], [8, 1, 8, 4]))
    assert [mask.tolist() for mask in masks] == [
        [True, True, False],
        [],
        [True, False],
        [True, False, False, True],
    ]


def test_many_rows_equal_a_plain_python_set(monkeypatch):
    monkeypatch.setattr(selection, "ROWS_PER_PASS", 500)
    generator = np.random.default_rng(0)
    chunks = [generator.integers(0, 900, n).tolist() for n in (300, 0, 700, 1, 999)]
    masks = selection.first_occurrences(_digests(*chunks))
    seen = set()
    expected = [[not (v in seen or seen.add(v)) for v in chunk] for chunk in chunks]
    assert [mask.tolist() for mask in masks] == expected


def test_taking_is_exact_and_depends_on_seed_and_purpose():
    masks = [mask & (np.arange(len(mask)) % 3 > 0) for mask in _masks(100, 0, 7, 250)]

    def taken(amount, seed=0, purpose="x"):
        return np.concatenate(selection.take(masks, amount, seed, purpose))

    available = np.concatenate(masks)
    for amount in (0, 1, 100, int(available.sum())):
        assert taken(amount).sum() == amount
        assert not (taken(amount) & ~available).any()
    assert np.array_equal(taken(50), taken(50))
    assert not np.array_equal(taken(50), taken(50, seed=1))
    assert not np.array_equal(taken(50), taken(50, purpose="y"))


def test_every_row_has_the_same_chance():
    masks = _masks(10, 30, 20)
    hits = sum(np.concatenate(selection.take(masks, 15, s, "x")).astype(int) for s in range(2000))
    assert abs(hits / 2000 - 0.25).max() < 0.05


def test_a_mix_takes_numbers_and_shares_by_name():
    masks, names = _masks(10, 20, 30, 40), ["a", "b", "a", "c"]
    mixed = selection.mix(masks, names, {"a": 7, "b": 0.5}, seed=0)
    assert [int(mask.sum()) for mask in mixed][1::2] == [10, 40]
    assert int(mixed[0].sum() + mixed[2].sum()) == 7
    assert selection.mix(masks, names, {}, seed=0) == masks


def test_a_mix_that_cannot_be_had_is_named():
    masks, names = _masks(10, 20), ["a", "b"]
    with pytest.raises(ValueError, match="got 'z', known are a, b"):
        selection.check_names({"z": 1}, {"b", "a"})
    with pytest.raises(ValueError, match="got a=11, 10 good and different rows"):
        selection.mix(masks, names, {"a": 11}, seed=0)


def test_shards_end_where_they_are_full():
    assert selection.shard_ends(iter([4, 4, 4, 4, 1]), 8) == [1, 3, 4]
    assert selection.shard_ends(iter([9, 9]), 8) == [0, 1]
    assert selection.shard_ends(iter([1]), 8) == [0]

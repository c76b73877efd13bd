from __future__ import annotations

import hashlib

import numpy as np
import pytest

from diablo_ds.data.prepare import selection
from diablo_ds.errors import UserError


def _digests(*chunks):
    return [np.array([[v % 7, v] for v in chunk], np.uint64).reshape(-1, 2) for chunk in chunks]


def _masks(*sizes):
    return [np.ones(size, np.bool_) for size in sizes]


def _one_each(masks):
    return [np.arange(len(mask), dtype=np.int32) for mask in masks]


@pytest.mark.parametrize("examples_per_pass", [3, 1000])
def test_the_first_of_equal_rows_is_kept(monkeypatch, examples_per_pass):
    monkeypatch.setattr(selection, "EXAMPLES_PER_PASS", examples_per_pass)
    masks = selection.first_occurrences(_digests([1, 2, 1], [], [3, 2], [8, 1, 8, 4]))
    assert [mask.tolist() for mask in masks] == [
        [True, True, False],
        [],
        [True, False],
        [True, False, False, True],
    ]


def test_many_rows_equal_a_plain_python_set(monkeypatch):
    monkeypatch.setattr(selection, "EXAMPLES_PER_PASS", 500)
    generator = np.random.default_rng(0)
    chunks = [generator.integers(0, 900, n).tolist() for n in (300, 0, 700, 1, 999)]
    masks = selection.first_occurrences(_digests(*chunks))
    seen = set()
    expected = [[not (v in seen or seen.add(v)) for v in chunk] for chunk in chunks]
    assert [mask.tolist() for mask in masks] == expected


def test_taking_is_exact_and_depends_on_seed_and_purpose():
    masks = [mask & (np.arange(len(mask)) % 3 > 0) for mask in _masks(100, 0, 7, 250)]

    def taken(amount, seed=0, purpose="x"):
        return np.concatenate(selection.take(masks, _one_each(masks), amount, seed, purpose))

    available = np.concatenate(masks)
    for amount in (0, 1, 100, int(available.sum())):
        assert taken(amount).sum() == amount
        assert not (taken(amount) & ~available).any()
    assert np.array_equal(taken(50), taken(50))
    assert not np.array_equal(taken(50), taken(50, seed=1))
    assert not np.array_equal(taken(50), taken(50, purpose="y"))


def test_every_row_has_the_same_chance():
    masks = _masks(10, 30, 20)
    rows = _one_each(masks)
    taken = (selection.take(masks, rows, 15, seed, "x") for seed in range(2000))
    hits = sum(np.concatenate(chosen).astype(int) for chosen in taken)
    assert abs(hits / 2000 - 0.25).max() < 0.05


def _take_examples(masks, amount, seed, purpose):
    """The draw of examples, as it was before a row could give several."""
    key = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(key, np.uint32))
    left = sum(int(mask.sum()) for mask in masks)
    chosen = []
    for mask in masks:
        there = np.flatnonzero(mask)
        share = int(generator.hypergeometric(amount, left - amount, len(there)))
        chosen.append(np.zeros_like(mask))
        chosen[-1][generator.choice(there, share, replace=False)] = True
        amount, left = amount - share, left - len(there)
    return chosen


def test_rows_of_one_example_each_are_drawn_as_examples():
    masks = [mask & (np.arange(len(mask)) % 3 > 0) for mask in _masks(100, 7, 250)]
    rows = [3 * numbers for numbers in _one_each(masks)]  # rows between them were skipped
    for seed in range(5):
        taken = selection.take(masks, rows, 50, seed, "x")
        for mine, expected in zip(taken, _take_examples(masks, 50, seed, "x"), strict=True):
            assert np.array_equal(mine, expected)


def test_rows_of_several_examples_are_drawn_together():
    """As many as asked for, the same ones as if each had one example."""
    one_each = _masks(40, 0, 60)
    numbers = _one_each(one_each)
    rows = [np.repeat(n, n % 4 + 1) for n in numbers]
    masks = _masks(*map(len, rows))
    for seed in range(5):
        taken = selection.take(masks, rows, 30, seed, "x")
        expected = selection.take(one_each, numbers, 30, seed, "x")
        for chosen, several, one in zip(taken, rows, expected, strict=True):
            assert np.array_equal(chosen, np.isin(several, np.flatnonzero(one)))
        assert selection.count_rows(taken, rows) == 30
    mixed = selection.mix(masks, rows, ["a", "a", "b"], {"a": 10, "b": 0.5}, seed=0)
    assert [selection.count_rows([m], [r]) for m, r in zip(mixed, rows, strict=True)] == [10, 0, 30]
    with pytest.raises(UserError, match="got a=41, 40 good and different rows"):
        selection.mix(masks, rows, ["a", "a", "b"], {"a": 41}, seed=0)


def test_a_mix_takes_numbers_and_shares_by_name():
    masks, names = _masks(10, 20, 30, 40), ["a", "b", "a", "c"]
    rows = _one_each(masks)
    mixed = selection.mix(masks, rows, names, {"a": 7, "b": 0.5}, seed=0)
    assert [int(mask.sum()) for mask in mixed][1::2] == [10, 40]
    assert int(mixed[0].sum() + mixed[2].sum()) == 7
    assert selection.mix(masks, rows, names, {}, seed=0) == masks


def test_a_mix_that_cannot_be_had_is_named():
    masks, names = _masks(10, 20), ["a", "b"]
    with pytest.raises(UserError, match="got 'z', known are a, b"):
        selection.check_names({"z": 1}, {"b", "a"})
    with pytest.raises(UserError, match="got a=11, 10 good and different rows"):
        selection.mix(masks, _one_each(masks), names, {"a": 11}, seed=0)


def test_shards_end_where_they_are_full():
    assert selection.shard_ends(iter([4, 4, 4, 4, 1]), 8) == [1, 3, 4]
    assert selection.shard_ends(iter([9, 9]), 8) == [0, 1]
    assert selection.shard_ends(iter([1]), 8) == [0]

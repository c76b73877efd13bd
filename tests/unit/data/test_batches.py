from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from diablo_ds.data.batches import PAD_TO_MULTIPLE, collate, padded_width
from diablo_ds.data.examples import Examples, TokenTable
from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.model.loss import count_targets
from tests.unit.data.sources import PAD, source_of


def _examples(lengths) -> Examples:
    """Examples whose tokens tell which example they are."""
    table = TokenTable.from_examples([Example([i] * n, [i] * n) for i, n in enumerate(lengths)])
    return Examples(table, np.arange(len(table)), table.lengths(), "test")


def _ids(micro_batches) -> Counter[int]:
    """How often each example is in micro batches, counted by its tokens."""
    tokens = Counter(i for batch in micro_batches for i in batch.input_ids.flatten().tolist())
    tokens.pop(PAD, None)
    return tokens


LENGTHS = [5, 3, 9, 1, 7, 2, 8, 4, 6, 10]
MODES = [
    {},
    {"packing": True},
    {"group_by_length": True},
    {"micro_batch": 0, "micro_batch_tokens": 64},
    {"micro_batch": 0, "micro_batch_tokens": 64, "packing": True},
]


def test_rows_are_padded_on_the_right_without_a_mask():
    examples = [Example([1, 2, 3], [IGNORE_LABEL, 2, 3]), Example([4, 5], [IGNORE_LABEL, 5])]
    batch = collate([[example] for example in examples], pad_id=9)
    width = PAD_TO_MULTIPLE
    assert batch.input_ids.tolist() == [[1, 2, 3] + [9] * (width - 3), [4, 5] + [9] * (width - 2)]
    assert batch.num_tokens == 5
    assert count_targets(batch.labels) == 3
    assert set(batch.model_inputs()) == {"input_ids"}


def test_packed_rows_restart_positions_and_predict_nothing_across_examples():
    rows = [[Example([1, 2, 3], [1, 2, 3]), Example([4, 5], [4, 5])], []]
    batch = collate(rows, pad_id=9, packing=True)
    assert batch.input_ids[0].tolist() == [1, 2, 3, 4, 5, 9, 9, 9]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    no = IGNORE_LABEL
    assert batch.labels[0].tolist() == [no, 2, 3, no, 5, no, no, no]
    assert (batch.labels[1] == no).all()
    assert set(batch.model_inputs()) == {"input_ids", "position_ids"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_step_is_the_same_set_of_examples_at_any_world_size(world_size, mode):
    examples = _examples(LENGTHS)
    for step in range(3):
        alone = _ids(source_of(examples, **mode).step(step))
        ranks = range(world_size)
        parts = [list(source_of(examples, r, world_size, **mode).step(step)) for r in ranks]
        assert len({len(part) for part in parts}) == 1
        assert sum((_ids(part) for part in parts), Counter()) == alone


@pytest.mark.parametrize("mode", MODES)
def test_each_epoch_has_every_example_once_in_another_order(mode):
    source = source_of(_examples(LENGTHS * 4), global_batch=2, num_epochs=2, **mode)
    assert source.run_config.num_sequences(len(source)) == 2 * len(source)
    steps = [_ids(source.step(s)) for s in range(source.run_config.num_steps(len(source)))]
    per_example = Counter(dict(enumerate(LENGTHS * 4)))
    assert sum(steps, Counter()) == per_example + per_example
    assert (source.epochs_after(0), source.epochs_after(len(steps))) == (0.0, 2.0)
    assert source.examples_after(1) == 2
    assert source.examples_after(len(steps)) == 2 * len(source)
    if not len(source) % 2:
        half = len(steps) // 2
        assert sum(steps[:half], Counter()) == per_example
        assert steps[:half] != steps[half:]


@pytest.mark.parametrize("mode", MODES)
def test_a_step_does_not_depend_on_the_steps_before(mode):
    examples = _examples(LENGTHS * 4)
    in_order = [list(source_of(examples, **mode).step(step)) for step in range(4)]
    fresh = list(source_of(examples, **mode).step(3))
    for one, other in zip(in_order[3], fresh, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_held_out_examples_are_seen_once_with_equal_counts_on_all_ranks(world_size, mode):
    examples = _examples([2, 9, 4, 7, 5, 3, 8])
    ranks = range(world_size)
    parts = [list(source_of(examples, r, world_size, **mode).heldout()) for r in ranks]
    counted = {source_of(examples, r, world_size, **mode).num_heldout_batches for r in ranks}
    assert {len(part) for part in parts} == counted
    assert len(counted) == 1
    counts = sum((_ids(part) for part in parts), Counter())
    assert counts == Counter(dict(enumerate(examples.lengths.tolist())))


def test_ranks_without_a_row_get_an_empty_one():
    examples = _examples([3])
    batches = [list(source_of(examples, rank, 3).heldout()) for rank in range(3)]
    assert [len(part) for part in batches] == [1, 1, 1]
    assert [int(count_targets(part[0].labels)) for part in batches] == [2, 0, 0]
    assert [part[0].num_tokens for part in batches] == [3, 0, 0]


def test_examples_of_similar_length_share_a_micro_batch():
    lengths = torch.randint(1, 400, (64,)).tolist()
    source = source_of(_examples(lengths), micro_batch=8, max_length=512)
    widths = [batch.input_ids.shape[1] for batch in source.heldout()]
    assert widths == sorted(widths, reverse=True)
    assert sum(widths) * 8 < 1.25 * sum(lengths)


def test_micro_batches_by_tokens_hold_as_many_examples_as_fit():
    lengths = np.random.default_rng(0).integers(1, 64, 200)
    source = source_of(_examples(lengths), micro_batch=0, micro_batch_tokens=128, global_batch=64)
    shapes = [tuple(batch.input_ids.shape) for batch in source.step(0)]
    assert all(rows * width <= 128 for rows, width in shapes)
    assert sum(rows for rows, _ in shapes) == 64
    assert max(rows for rows, _ in shapes) > 4 > min(rows for rows, _ in shapes)


@pytest.mark.parametrize("multiple", [8, 64])
@pytest.mark.parametrize("mode", MODES)
def test_no_micro_batch_is_larger_than_the_largest(mode, multiple):
    lengths = np.random.default_rng(0).integers(1, 150, 200)
    limits = {"max_length": 190, "global_batch": 16, "pad_to_multiple_of": multiple, **mode}
    if limits.get("micro_batch_tokens"):
        limits["micro_batch_tokens"] = 768
    source = source_of(_examples(lengths), **limits)
    largest = source.largest()
    batches = [batch for step in range(12) for batch in source.step(step)]
    widest = max(batch.input_ids.shape[1] for batch in batches)
    assert largest.input_ids.shape[1] == widest
    if not limits.get("micro_batch_tokens"):
        assert len(largest.input_ids) == max(len(batch.input_ids) for batch in batches)
    assert widest <= largest.input_ids.numel() <= (limits.get("micro_batch_tokens") or 2 * widest)
    assert (largest.position_ids is None) == (batches[0].position_ids is None)
    assert count_targets(largest.labels) == len(largest.labels) * (
        largest.num_tokens // len(largest.labels) - 1
    )


def test_a_larger_multiple_gives_fewer_widths_and_no_row_beyond_the_longest():
    lengths = np.random.default_rng(0).integers(1, 190, 200)
    for mode in MODES:
        limits = {"max_length": 190, "global_batch": 16, **mode}
        if limits.get("micro_batch_tokens"):
            limits["micro_batch_tokens"] = 768
        batches = [
            batch
            for step in range(12)
            for batch in source_of(_examples(lengths), pad_to_multiple_of=64, **limits).step(step)
        ]
        assert {batch.input_ids.shape[1] for batch in batches} <= {64, 128, 192}
        if limits.get("micro_batch_tokens"):
            assert max(batch.input_ids.numel() for batch in batches) <= 768
        default = source_of(_examples(lengths), **limits)
        assert sum(map(_ids, [batches]), Counter()) == _ids(
            batch for step in range(12) for batch in default.step(step)
        )
    assert padded_width(70, 64, at_most=72) == 72
    assert padded_width(70, 64) == 128


def _passes(count=3, **changes) -> list[list[int]]:
    """The order of examples in each pass."""
    source = source_of(_examples([3] * 40), micro_batch=1, num_epochs=count, **changes)
    steps = [[next(iter(_ids([b]))) for b in source.step(s)] for s in range(10 * count)]
    flat = [example for step in steps for example in step]
    return [flat[start : start + 40] for start in range(0, len(flat), 40)]


@pytest.mark.parametrize("kind", ["plain", "packing", "group_by_length"])
def test_passes_of_neighbouring_seeds_share_no_order(kind):
    changes = {} if kind == "plain" else {kind: True, "max_length": 3}
    orders = [order for seed in range(3) for order in _passes(seed=seed, **changes)]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert all(sorted(order) == list(range(40)) for order in orders)


def test_the_order_of_earlier_versions_can_be_had():
    old = {"data_order": "seed-plus-epoch"}
    assert _passes(2, seed=4, **old)[1] == _passes(1, seed=5, **old)[0]
    expected = np.random.Generator(np.random.PCG64(5)).permutation(40).tolist()
    assert _passes(1, seed=5, **old)[0] == expected

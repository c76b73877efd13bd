from __future__ import annotations

import numpy as np
import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.data import loading
from diablo_ds.data.examples import Examples
from diablo_ds.data.labels import Example
from diablo_ds.data.length_limit import LengthLimit
from diablo_ds.data.packing import permutation
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from tests.tiny import tiny_examples, tiny_tokenizer, write_pairs


def _load(path, vocab_size=264, **changes):
    defaults = {"heldout_share": 0.25, "max_length": 100}
    config = RunConfig(**{"data": (str(path),), **defaults, **changes})
    return loading.load_data(config, tiny_tokenizer(), vocab_size)


def test_held_out_share_is_disjoint_and_depends_on_the_seed_alone(tmp_path):
    path = write_pairs(tmp_path / "d.jsonl", 20)
    train, heldout = _load(path)
    assert (len(train), len(heldout)) == (15, 5)
    assert sorted([*train.indices, *heldout.indices]) == list(range(20))
    assert np.array_equal(_load(path)[1].indices, heldout.indices)
    assert not np.array_equal(_load(path, seed=1)[1].indices, heldout.indices)
    assert _load(path, heldout_share=0.0)[1] is None


def test_rows_of_one_example_each_are_split_as_examples(tmp_path):
    """For a seed the same share as before a row could give several."""
    path = write_pairs(tmp_path / "d.jsonl", 20)
    for seed in range(3):
        train, heldout = _load(path, seed=seed)
        order = permutation(20, seed)
        assert heldout.indices.tolist() == sorted(order[:5])
        assert train.indices.tolist() == sorted(order[5:])
    assert train.describe().startswith("15 examples, ")


def _rows(*lengths):
    return TokenTable.from_examples([Example([n] * n, [n] * n) for n in lengths], [0, 0, 1, 2, 2])


def test_what_is_cut_on_access_has_the_length_that_was_counted():
    table = _rows(3, 9, 4, 7, 6)
    for overlong, lengths, num_dropped, num_cut in (
        ("drop", [3, 4], 3, 0),
        ("cut-completion", [3, 5, 4, 5, 5], 0, 3),
    ):
        examples = Examples.from_table(table, LengthLimit(5, overlong), "test")
        assert examples.lengths.tolist() == lengths
        assert [len(example.input_ids) for example in examples] == lengths
        assert (len(examples.dropped), examples.counts().cut) == (num_dropped, num_cut)


def test_examples_of_one_row_are_split_off_together():
    examples = Examples.from_table(_rows(1, 2, 3, 4, 5), LengthLimit(9), "test")
    assert examples.num_rows() == 3
    assert examples.describe() == (
        "5 examples of 3 rows, 15 tokens, 15 of them targets; longest 5; from test"
    )
    for seed in range(5):
        train, heldout = examples.split(0.4, seed)
        assert set(train.table.source_rows(train.indices)).isdisjoint(
            heldout.table.source_rows(heldout.indices)
        )
        assert (train.num_rows(), heldout.num_rows()) == (2, 1)


def test_one_row_cannot_be_split():
    with pytest.raises(UserError, match="at least 2 rows to hold some out; got 1 in tiny"):
        tiny_examples([("a", "b")]).split(0.5, 0)

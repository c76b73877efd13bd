from __future__ import annotations

import torch

from diablo_ds.data.masks import (
    EXAMPLES,
    NO_MASK,
    PADDING,
    MaskRule,
    additive,
    example_mask,
    padding_mask,
)

POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0]])


def test_padding_is_zero_and_tokens_are_one():
    mask = padding_mask(torch.tensor([1, 3]), 4)
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert mask.dtype == torch.int64


def test_a_token_looks_back_inside_its_own_example():
    expected = torch.block_diag(*(torch.ones(n, n) for n in (3, 2, 1))).tril().bool()
    assert torch.equal(example_mask(POSITIONS)[0, 0], expected)


def test_a_window_counts_the_token_itself():
    mask = example_mask(POSITIONS, window=2)[0, 0]
    assert mask[2].tolist() == [False, True, True, False, False, False]
    assert torch.equal(example_mask(POSITIONS, window=9), example_mask(POSITIONS))


def test_an_additive_mask_hides_what_the_other_hides():
    mask = example_mask(POSITIONS)
    scores = additive(mask, torch.bfloat16)
    assert scores.dtype == torch.bfloat16
    assert torch.equal(scores == 0, mask)
    assert (scores[~mask] == torch.finfo(torch.bfloat16).min).all()


def test_a_rule_makes_one_mask_or_one_for_each_type_of_layer():
    assert torch.equal(MaskRule(EXAMPLES).for_examples(POSITIONS), example_mask(POSITIONS))
    masks = MaskRule(EXAMPLES, {"full": 0, "sliding": 2}, torch.float32).for_examples(POSITIONS)
    assert masks.keys() == {"full", "sliding"}
    expected = additive(example_mask(POSITIONS, window=2), torch.float32)
    assert torch.equal(masks["sliding"], expected)


def test_bytes_of_a_rule_are_those_of_its_masks():
    for rule in (MaskRule(EXAMPLES), MaskRule(EXAMPLES, {"a": 0, "b": 2}, torch.float32)):
        made = rule.for_examples(POSITIONS)
        masks = list(made.values()) if isinstance(made, dict) else [made]
        assert rule.num_bytes(1, 6) == sum(mask.nbytes for mask in masks)
    assert MaskRule(PADDING).num_bytes(2, 6) == padding_mask(torch.tensor([3, 6]), 6).nbytes
    assert NO_MASK.num_bytes(2, 6) == 0

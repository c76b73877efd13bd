from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from diablo_ds.model.loss import (
    IGNORE_LABEL,
    causal_lm_loss,
    count_targets,
    loss_head_bytes,
    rows_per_chunk,
)


def test_equals_the_sum_over_shifted_targets():
    logits = torch.randn(2, 5, 7, dtype=torch.float64).float()
    labels = torch.randint(7, (2, 5))
    labels[0, :3] = IGNORE_LABEL
    expected = F.cross_entropy(
        logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1), reduction="sum"
    )
    assert_close(causal_lm_loss(logits, labels), expected)
    assert count_targets(labels) == 2 + 4


def test_no_target_gives_zero_and_a_zero_gradient():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    loss = causal_lm_loss(logits, torch.full((2, 5), IGNORE_LABEL))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_low_precision_logits_are_summed_in_fp32():
    logits, labels = torch.randn(1, 300, 7).bfloat16(), torch.randint(7, (1, 300))
    assert causal_lm_loss(logits, labels).dtype == torch.float32
    assert_close(causal_lm_loss(logits, labels), causal_lm_loss(logits.float(), labels))


def test_chunks_of_many_rows_are_whole_tiles_of_a_product():
    assert rows_per_chunk(128_256, "cuda") == 512
    assert rows_per_chunk(10**7, "cuda") == 6


def test_memory_does_not_grow_with_vocabulary_times_sequence():
    sizes = [loss_head_bytes(10**6, 64, v, torch.bfloat16, "cuda") for v in (32_000, 256_000)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from diablo_ds.loss import IGNORE_LABEL, causal_lm_loss, count_targets


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

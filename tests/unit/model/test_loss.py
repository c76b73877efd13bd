from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from diablo_ds.model.loss import (
    IGNORE_LABEL,
    LossHead,
    causal_lm_loss,
    count_targets,
    fusible_softmax_loss,
    in_place_softmax_loss,
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


def _head_and_input(dtype=torch.float32, bias=False):
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 11, bias=bias).to(dtype).requires_grad_(False)
    hidden = torch.randn(3, 40, 6).to(dtype).requires_grad_()
    labels = torch.randint(11, (3, 40))
    labels[0, :30] = IGNORE_LABEL
    return head, hidden, labels


def _chunked(head, hidden, labels, softmax_loss=None):
    head = LossHead(head)
    head.compute_softmax_by(softmax_loss)
    with head.computing_loss(labels):
        return head(hidden)


@pytest.mark.parametrize("softmax_loss", [in_place_softmax_loss, fusible_softmax_loss])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_chunked_loss_and_its_gradient_are_exact(monkeypatch, rows, bias, softmax_loss):
    monkeypatch.setattr("diablo_ds.model.loss.LOSS_CHUNK_BYTES", {"cpu": rows * 4 * 11})
    head, hidden, labels = _head_and_input(bias=bias)
    expected = causal_lm_loss(head(hidden), labels)
    (wanted,) = torch.autograd.grad(3 * expected, hidden)
    loss = _chunked(head, hidden, labels, softmax_loss)
    (grad,) = torch.autograd.grad(3 * loss, hidden)
    assert_close(loss, expected)
    assert_close(grad, wanted)


@pytest.mark.parametrize("softmax_loss", [in_place_softmax_loss, fusible_softmax_loss])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chunked_loss_in_low_precision_is_as_near_to_fp32_as_whole_logits(dtype, softmax_loss):
    head, hidden, labels = _head_and_input(dtype)
    (whole,) = torch.autograd.grad(causal_lm_loss(head(hidden), labels), hidden)
    exact_hidden = hidden.detach().float().requires_grad_()
    logits = F.linear(exact_hidden, head.weight.float())
    (exact,) = torch.autograd.grad(causal_lm_loss(logits, labels), exact_hidden)
    loss = _chunked(head, hidden, labels, softmax_loss)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    assert (grad.float() - exact).norm() <= 1.2 * (whole.float() - exact).norm()


def test_large_logits_neither_overflow_nor_vanish():
    head = torch.nn.Linear(1, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[200.0], [0.0], [-200.0]]))
    hidden = torch.ones(1, 2, 1, requires_grad=True)
    loss = _chunked(head, hidden, torch.tensor([[0, 2]]))
    assert_close(loss, torch.tensor(400.0))


def test_without_targets_or_without_gradients_the_chunked_loss_is_zero_or_has_no_graph():
    head, hidden, labels = _head_and_input()
    loss = _chunked(head, hidden, torch.full_like(labels, IGNORE_LABEL))
    loss.backward()
    assert loss == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    with torch.no_grad():
        assert not _chunked(head, hidden, labels).requires_grad


def test_a_head_without_labels_still_gives_logits():
    head, hidden, _ = _head_and_input()
    expected = head(hidden)
    assert torch.equal(LossHead(head)(hidden), expected)


def test_chunks_of_many_rows_are_whole_tiles_of_a_product():
    assert rows_per_chunk(128_256, "cuda") == 512
    assert rows_per_chunk(10**7, "cuda") == 6


def test_memory_does_not_grow_with_vocabulary_times_sequence():
    sizes = [loss_head_bytes(10**6, 64, v, torch.bfloat16, "cuda") for v in (32_000, 256_000)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)

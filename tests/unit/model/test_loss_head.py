"""The head that returns the loss: its numbers, and the models that can have it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from diablo_ds.data.batches import MicroBatch, collate
from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.loss import causal_lm_loss, fusible_softmax_loss, in_place_softmax_loss
from diablo_ds.model.loss_head import LossHead, install_loss_head, loss_of
from diablo_ds.model.varlen import register_varlen_attention
from tests.tiny import FAMILIES, build_model

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 264,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_model_is_that_of_its_full_logits(family):
    model = build_model(family)
    tokens = torch.randint(264, (2, 9))
    batch = MicroBatch(tokens, tokens, None, tokens.numel())
    expected = causal_lm_loss(model(input_ids=tokens).logits, tokens)
    assert_close(loss_of(model, batch), expected)
    meta_model = build_meta_model(model.config)
    parts = dict(meta_model.named_modules())
    assert install_loss_head(model, meta_model)
    assert dict(meta_model.named_modules()) == parts  # as it was
    assert_close(loss_of(model, batch), expected)
    assert model(input_ids=tokens).logits.shape == (2, 9, 264)  # logits again, without labels


def test_the_loss_of_packed_rows_is_passed_on_by_length():
    """Attention by length takes one row and its edges, and gives the loss that a mask gives."""
    examples = [[Example(list(range(1, n)), list(range(1, n))) for n in (9, 6)] for _ in range(2)]
    batch = collate(examples, pad_id=0, packing=True)
    model = build_model()
    model.config.use_cache = False  # with one, transformers does not look for packed examples
    expected = loss_of(model, batch)
    model.set_attn_implementation(register_varlen_attention())
    assert_close(loss_of(model, batch), expected)
    assert install_loss_head(model, build_meta_model(model.config))
    assert_close(loss_of(model, batch), expected)


def test_a_failed_forward_leaves_no_labels_behind():
    model = build_model()
    assert install_loss_head(model, build_meta_model(model.config))
    tokens = torch.randint(264, (2, 9))
    wrong = MicroBatch(tokens + 10**6, tokens, None, tokens.numel())
    with pytest.raises(IndexError):
        loss_of(model, wrong)
    assert model(input_ids=tokens).logits.shape == (2, 9, 264)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SHAPE, head_dim=8),  # caps its logits
        CohereConfig(**SHAPE),  # scales them
        GraniteConfig(**SHAPE, logits_scaling=2.0),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_changes_its_heads_output_keeps_full_logits(config):
    model = AutoModelForCausalLM.from_config(config)
    assert not install_loss_head(model, build_meta_model(config))
    assert not isinstance(model.get_output_embeddings(), LossHead)
    tokens = torch.randint(264, (2, 9))
    expected = causal_lm_loss(model(input_ids=tokens).logits, tokens)
    assert_close(loss_of(model, MicroBatch(tokens, tokens, None, tokens.numel())), expected)


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
def test_the_chunked_loss_in_low_precision_is_as_near_to_fp32_as_full_logits(dtype, softmax_loss):
    head, hidden, labels = _head_and_input(dtype)
    (full,) = torch.autograd.grad(causal_lm_loss(head(hidden), labels), hidden)
    exact_hidden = hidden.detach().float().requires_grad_()
    logits = F.linear(exact_hidden, head.weight.float())
    (exact,) = torch.autograd.grad(causal_lm_loss(logits, labels), exact_hidden)
    loss = _chunked(head, hidden, labels, softmax_loss)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    assert (grad.float() - exact).norm() <= 1.2 * (full.float() - exact).norm()


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

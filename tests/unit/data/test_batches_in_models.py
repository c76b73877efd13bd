"""Micro batches in real models: padding, packing and joined rows change no loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AttentionInterface

from diablo_ds.model.attention import attends_by_variable_length
from diablo_ds.model.loss import causal_lm_loss, count_targets
from diablo_ds.zero.loading import load_base
from tests.tiny import FAMILIES, save_model, tiny_examples
from tests.unit.data.sources import PAD, source_of


@pytest.mark.parametrize("family", FAMILIES)
def test_wider_micro_batches_have_the_same_losses_and_gradients(family, tmp_path):
    examples = tiny_examples([(f"{i}*{i}=", "ab c" * (1 + (5 * i) % 9)) for i in range(6)])
    model = load_base(save_model(tmp_path, family), "fp32").eval()
    results = []
    for multiple in (8, 64):
        batches = list(
            source_of(examples, micro_batch=3, max_length=96, pad_to_multiple_of=multiple).heldout()
        )
        model.zero_grad()
        losses = [causal_lm_loss(model(**b.model_inputs()).logits, b.labels) for b in batches]
        sum(losses).backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append((torch.stack(losses).detach(), grads))
        widths = [batch.input_ids.shape[1] for batch in batches]
        assert all(width == 64 for width in widths) == (multiple == 64)
    assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_gives_the_same_loss_and_gradients(family, tmp_path):
    """Attention and positions of a packed example are those it has alone."""
    pairs = [(f"{i}*{i}=", "ab c" * (1 + (5 * i) % 9)) for i in range(12)]
    examples = tiny_examples(pairs)
    model = load_base(save_model(tmp_path, family), "fp32").eval()
    results = []
    for packing in (False, True):
        source = source_of(examples, packing=packing, micro_batch=3, max_length=96)
        batches = list(source.heldout())
        assert packing == any(batch.position_ids is not None for batch in batches)
        num_targets = sum(int(count_targets(batch.labels)) for batch in batches)
        loss = sum(causal_lm_loss(model(**b.model_inputs()).logits, b.labels) for b in batches)
        model.zero_grad()
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append((num_targets, loss.detach(), grads))
    assert len(list(source_of(examples, packing=True, max_length=96).heldout())) < 6
    assert results[0][0] == results[1][0]
    assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-5)
    assert_close(results[1][2], results[0][2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_restarted_positions_packed_examples_would_see_each_other(tmp_path):
    """The test above can fail: plain causal attention over a packed row gives another loss."""
    examples = tiny_examples([(f"{i}*{i}=", "ab c" * 3) for i in range(6)])
    model = load_base(save_model(tmp_path), "fp32").eval()
    (batch, *_) = source_of(examples, packing=True, micro_batch=3, max_length=96).heldout()
    right = causal_lm_loss(model(**batch.model_inputs()).logits, batch.labels)
    wrong = causal_lm_loss(model(input_ids=batch.input_ids).logits, batch.labels)
    assert abs(float(right - wrong)) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_needs_no_mask(family, tmp_path):
    examples = tiny_examples([(f"{i}*{i}=", "ab c" * (1 + (5 * i) % 9)) for i in range(4)])
    model = load_base(save_model(tmp_path, family), "fp32").eval()
    (batch,) = source_of(examples, micro_batch=4, max_length=96).heldout()
    lengths = (batch.input_ids != PAD).sum(1, keepdim=True)
    assert lengths.min() < lengths.max()
    mask = (torch.arange(batch.input_ids.shape[1]) < lengths).long()
    results = []
    for inputs in (batch.model_inputs(), {"input_ids": batch.input_ids, "attention_mask": mask}):
        model.zero_grad()
        loss = causal_lm_loss(model(**inputs).logits, batch.labels)
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append((loss.detach(), grads))
    assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def _attention_by_length(
    module, query, key, value, mask, *, cu_seq_lens_q, max_length_q, **options
):
    """What a kernel of variable length computes: causal attention in each stretch of one row."""
    assert mask is None
    assert query.shape[0] == 1
    lengths = cu_seq_lens_q.diff().tolist()
    assert max(lengths) == max_length_q
    parts = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_joined_into_one_give_the_same_loss(family, tmp_path):
    examples = tiny_examples([(f"{i}*{i}=", "ab c" * (1 + (5 * i) % 9)) for i in range(12)])
    model = load_base(save_model(tmp_path, family), "fp32").eval()
    (batch, *_) = source_of(examples, packing=True, micro_batch=3, max_length=96).heldout()
    expected = causal_lm_loss(model(**batch.model_inputs()).logits, batch.labels)
    row = batch.as_one_row()
    assert row.input_ids.shape == (1, batch.input_ids.numel())
    assert_close(causal_lm_loss(model(**row.model_inputs()).logits, row.labels), expected)

    AttentionInterface.register("flash_attention_by_length", _attention_by_length)
    model.config._attn_implementation = "flash_attention_by_length"
    assert attends_by_variable_length(model)
    logits = model(**row.variable_length_inputs()).logits
    assert_close(causal_lm_loss(logits, row.labels), expected)

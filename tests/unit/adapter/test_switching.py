"""An adapter on a model for a while: what it computes, and that nothing is left of it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import diablo_ds
from diablo_ds.adapter.attach import attach
from diablo_ds.adapter.switching import added_deltas, can_merge, merged_deltas
from tests.tiny import build_model

WAYS = [merged_deltas, added_deltas]
IDS = torch.arange(40).view(2, 20)


def _tensors(model, num_blocks=4):
    generator = torch.Generator().manual_seed(0)
    deltas = diablo_ds.attach(model, num_blocks)
    tensors = {n: torch.randn(d.shape, generator=generator) / 8 for n, d in deltas.items()}
    diablo_ds.detach(model)
    return tensors


@torch.no_grad()
def _logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_layers_with_deltas_do_and_leaves_the_weights(way, family, dtype):
    model = build_model(family).eval().to(dtype)
    tensors = _tensors(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base = _logits(model)
    layers = dict.fromkeys((name.removesuffix(".delta") for name in tensors), 4)
    with way(model, tensors):
        found = _logits(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(_logits(model), base)
    for name, delta in attach(model, layers).items():
        delta.data.copy_(tensors[name])
    expected = _logits(model)
    assert not torch.allclose(base, expected, atol=0.05)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_put_back_on_an_error_too(way):
    model = build_model().eval()
    tensors, base = _tensors(model), _logits(model)
    with pytest.raises(RuntimeError, match="inside"), way(model, tensors):
        raise RuntimeError("inside")
    assert torch.equal(_logits(model), base)


def test_a_weight_of_two_layers_is_not_changed_for_one():
    model = build_model().eval()
    tensors = _tensors(model)
    assert can_merge(model, tensors)
    first, second = model.model.layers
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight
    assert not can_merge(model, tensors)

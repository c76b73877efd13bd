"""Attaching deltas, loading their values, leaving them out."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from diablo_ds.adapter.attach import diablo_layers, load_deltas, without_deltas
from diablo_ds.adapter.merging import merge
from diablo_ds.errors import UserError
from tests.tiny import FAMILIES, build_model
from tests.unit.adapter.models import attach_to


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets_of_each_family_attach_without_changing_the_output(family):
    model = build_model(family)
    ids = torch.randint(256, (2, 7))
    expected = model(ids).logits
    deltas = attach_to(model)
    per_layer = 3 if family == "gpt_neox" else 5
    assert len(deltas) == per_layer * model.config.num_hidden_layers
    assert_close(model(ids).logits, expected)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(deltas)


@pytest.mark.parametrize("delta_path", ["fused", "summed", "prefilled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_deltas_a_model_is_its_base_bit_by_bit(family, delta_path):
    model, ids = build_model(family), torch.randint(256, (2, 7))
    expected = model(ids).logits
    for delta in attach_to(model, delta_path=delta_path).values():
        torch.nn.init.normal_(delta, std=0.1)
    before = model(ids).logits
    assert not torch.equal(before, expected)
    with without_deltas(model):
        assert torch.equal(model(ids).logits, expected)
        assert not model(ids).logits.requires_grad
    assert torch.equal(model(ids).logits, before)


def test_the_switch_is_put_back_on_an_error_and_layer_by_layer():
    model = build_model()
    attach_to(model)
    first, *others = diablo_layers(model).values()
    first.is_enabled = False
    with pytest.raises(RuntimeError, match="inside"), without_deltas(model):
        raise RuntimeError("inside")
    assert not first.is_enabled
    assert all(layer.is_enabled for layer in others)


def test_merged_deltas_cannot_be_left_out():
    model = build_model()
    attach_to(model)
    merge(model)
    with (
        pytest.raises(UserError, match=r"must not be merged .*; got 10 .*; unmerge them first"),
        without_deltas(model),
    ):
        pass


def test_deltas_of_another_shape_or_name_are_refused_and_nothing_is_copied():
    model = build_model()
    deltas = attach_to(model)
    tensors = {name: torch.ones_like(delta) for name, delta in deltas.items()}
    last = list(tensors)[-1]
    with pytest.raises(UserError, match="must have the shape"):
        load_deltas(model, {**tensors, last: torch.ones(1, 2, 3)})
    with pytest.raises(UserError, match="1 missing"):
        load_deltas(model, {n: t for n, t in tensors.items() if n != last})
    assert all(delta.abs().sum() == 0 for delta in deltas.values())

"""Merging by PEFT: the base gets the sum, and gets its own bits back."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from diablo_ds.errors import UserError
from diablo_ds.peft.layer import DiaBloTunerLinear
from tests.peft.models import config, deltas, logits, tiny_peft_model
from tests.tiny import build_model


def layers(model: nn.Module) -> list[DiaBloTunerLinear]:
    return [m for m in model.modules() if isinstance(m, DiaBloTunerLinear)]


@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mistral"])
def test_a_merged_model_computes_what_the_adapter_did(family, safe_merge):
    model = tiny_peft_model(family)
    before = logits(model)
    merged = model.merge_and_unload(safe_merge=safe_merge, progressbar=False)
    assert not layers(merged)
    assert merged.state_dict().keys() == build_model(family).state_dict().keys()
    torch.testing.assert_close(logits(merged), before)


def test_unload_gives_the_base_back():
    base = build_model().eval()
    unloaded = tiny_peft_model().unload()
    for (name, weight), (other, expected) in zip(
        unloaded.state_dict().items(), base.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unmerging_restores_the_bits_of_the_base(dtype):
    model = tiny_peft_model()
    model.add_adapter("second", config(num_blocks=8))
    model.base_model.model.to(dtype)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging second"):
        model.merge_adapter(["second"])
    assert all(layer.merged_adapters == ["default", "second"] for layer in layers(model))
    changed = [n for n, w in model.state_dict().items() if not torch.equal(w, before[n])]
    assert sorted(changed) == sorted(n for n in before if n.endswith("base_layer.weight"))
    model.unmerge_adapter()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_sum_is_rounded_once():
    model = tiny_peft_model()
    layer = layers(model)[0]
    layer.base_layer.to(torch.bfloat16)
    exact = layer.base_layer.weight.double() + layer.get_delta_weight("default").double()
    layer.merge()
    assert torch.equal(layer.base_layer.weight, exact.to(torch.bfloat16))


def test_merging_is_right_for_a_weight_that_is_a_transposed_view():
    model = tiny_peft_model()
    layer = layers(model)[0]
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    layer.base_layer.weight.data = layer.base_layer.weight.data.t().contiguous().t()
    layer.merge()
    torch.testing.assert_close(layer.base_layer.weight, expected, rtol=0, atol=0)


def test_a_disabled_adapter_is_unmerged_first():
    model = tiny_peft_model()
    base = logits(build_model().eval())
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), base, rtol=0, atol=0)


@pytest.mark.parametrize(
    "act",
    [lambda m: m.merge_adapter(safe_merge=True), lambda m: m.merge_and_unload(safe_merge=True)],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_safe_merge_refuses_what_is_not_finite_and_changes_nothing(value, act):
    model = tiny_peft_model()
    list(deltas(model).values())[-1].data[0, 0, 0] = value
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(UserError, match=r"NaNs detected .* The adapter default"):
        act(model)
    assert all(
        torch.equal(weight, before[name])
        for name, weight in model.state_dict().items()
        if "diablo_delta" not in name
    )


def test_adapters_are_chosen_for_a_merge():
    model = tiny_peft_model()
    model.add_adapter("second", config())
    model.set_adapter("second")
    expected = logits(model)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model.merge_and_unload(adapter_names=["second"])), expected)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
def test_a_layer_of_lora_inside_is_merged_too():
    lora = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    model = get_peft_model(build_model().eval(), lora).base_model.model
    model = get_peft_model(model, config()).eval()
    before = logits(model)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(build_model().eval()), rtol=0, atol=0)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged), before)
    assert merged.state_dict().keys() == build_model().state_dict().keys()

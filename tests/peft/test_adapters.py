"""Several adapters in one model: chosen, summed, deleted, and mixed in one batch."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.errors import UserError
from diablo_ds.peft.layer import DiaBloTunerLinear
from diablo_ds.peft.mixed_batches import adapters_by_row
from tests.peft.models import config, deltas, logits, tiny_peft_model, tokens
from tests.tiny import build_model


def two_adapters(family: str = "llama", **changes) -> PeftModel:
    model = tiny_peft_model(family)
    model.add_adapter("second", config(**changes))
    return model.eval()


def alone(model: PeftModel, adapter: str) -> torch.Tensor:
    model.set_adapter(adapter)
    result = logits(model)
    model.set_adapter("default")
    return result


def test_the_active_adapter_is_the_one_that_was_set():
    model = two_adapters()
    model.set_adapter("second")
    assert all(p.requires_grad for p in deltas(model, "second").values())
    assert not any(p.requires_grad for p in deltas(model).values())
    single = tiny_peft_model()
    for mine, other in zip(deltas(single).values(), deltas(model, "second").values(), strict=True):
        mine.data.copy_(other)
    torch.testing.assert_close(logits(model), logits(single), rtol=0, atol=0)


def test_two_active_adapters_add_up():
    model = two_adapters(num_blocks=8)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), both)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -1.0), (-2.0, 0.0)])
def test_a_weighted_sum_is_exact(weights):
    model = two_adapters(target_modules=["q_proj", "o_proj"], num_blocks_pattern={"o_proj": 2})
    model.add_weighted_adapter(["default", "second"], list(weights), "sum")
    for layer in (m for m in model.modules() if isinstance(m, DiaBloTunerLinear)):
        expected = sum(
            weight * layer.get_delta_weight(name)
            for name, weight in zip(("default", "second"), weights, strict=True)
            if name in layer.diablo_delta
        )
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, rtol=0, atol=1e-7)
    assert model.active_adapters == ["default"]
    model.set_adapter("sum")
    assert all(p.requires_grad for p in deltas(model, "sum").values())


def test_a_weighted_sum_is_saved_with_its_own_geometry(tmp_path):
    model = two_adapters(target_modules=["q_proj", "o_proj"], num_blocks_pattern={"o_proj": 2})
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(build_model().eval(), tmp_path / "sum")
    torch.testing.assert_close(logits(loaded), alone(model, "sum"), rtol=0, atol=0)
    tensors, core = load_adapter(tmp_path / "sum")
    assert core.num_blocks["model.layers.0.self_attn.o_proj"] == 2
    assert len(tensors) == 12


REFUSED = {
    "other num_blocks": (
        {"adapters": ["default", "eight"]},
        "equal num_blocks.*layers.0.self_attn.q_proj, default has 4, eight has 8",
    ),
    "an unknown adapter": ({"adapters": ["default", "third"]}, "Adapter third does not exist"),
    "a name that is taken": ({"adapter_name": "second"}, "must be a new name.*'second'"),
    "a weight too few": ({"weights": [1.0]}, "a weight for each adapter"),
    "no adapter": ({"adapters": [], "weights": []}, "a weight for each adapter"),
    "another combination": ({"combination_type": "svd"}, "'linear'.*combination_type='svd'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_sum_that_has_no_meaning_is_refused_and_changes_nothing(kind):
    changes, message = REFUSED[kind]
    model = two_adapters()
    model.add_adapter("eight", config(num_blocks=8))
    before = list(model.state_dict())
    given = {"adapters": ["default", "second"], "weights": [0.5, 0.5], "adapter_name": "sum"}
    with pytest.raises(UserError, match=message):
        model.add_weighted_adapter(**given | changes)
    assert list(model.state_dict()) == before
    assert set(model.peft_config) == {"default", "second", "eight"}


def test_adapters_that_save_full_modules_are_not_summed():
    model = two_adapters("mistral", modules_to_save=["lm_head"], target_modules=["q_proj"])
    with pytest.raises(UserError, match=r"deltas alone.*second, which also saves lm_head"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "sum")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_each_row_of_a_mixed_batch_has_its_own_adapter(family):
    model = two_adapters(family, num_blocks=8)
    expected = {name: alone(model, name) for name in ("default", "second")}
    with model.disable_adapter():
        expected["__base__"] = logits(model)
    names = ["second", "__base__", "default"]
    mixed = logits(model, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], expected[name][row])
    torch.testing.assert_close(logits(model), expected["default"], rtol=0, atol=0)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_mixed_batch_generates_what_its_adapters_do(num_beams):
    model = two_adapters()
    how = {"max_new_tokens": 4, "do_sample": False, "num_beams": num_beams, "pad_token_id": 0}
    names = ["second", "default", "__base__"]
    mixed = model.generate(input_ids=tokens(), adapter_names=names, **how)
    for row, name in enumerate(names[:2]):
        model.set_adapter(name)
        single = model.generate(input_ids=tokens()[row : row + 1], **how)
        assert torch.equal(mixed[row], single[0])


def test_gradients_flow_to_the_adapters_of_a_mixed_batch():
    model = two_adapters()
    model.base_model.set_requires_grad(["default", "second"])
    model(
        input_ids=tokens(), adapter_names=["second", "second", "__base__"]
    ).logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in deltas(model).values())
    assert all(p.grad.any() for p in deltas(model, "second").values())


def test_a_mixed_batch_that_cannot_be_is_refused():
    model = two_adapters()
    with pytest.raises(UserError, match=r"non-existing adapter.*third"):
        logits(model, adapter_names=["third", "default", "default"])
    with pytest.raises(UserError, match=r"Length of `adapter_names`.*2 and 3"):
        logits(model, adapter_names=["default", "default"])
    with pytest.raises(UserError, match="must be a list"):
        logits(model, adapter_names="default")
    with pytest.raises(UserError, match="training mode"):
        logits(model.train(), adapter_names=["default"] * 3)
    model.eval().merge_adapter()
    with pytest.raises(UserError, match="merged adapters"):
        logits(model, adapter_names=["default"] * 3)
    model.unmerge_adapter()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_deleted_adapter_is_gone():
    model = two_adapters()
    expected = alone(model, "second")
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        model.delete_adapter("default")
    assert not deltas(model)
    assert not any("default" in m.diablo_dropout for m in model.modules() if hasattr(m, "base"))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)


def test_modules_to_save_are_trained_and_saved(tmp_path):
    model = tiny_peft_model("mistral", modules_to_save=["lm_head"])
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build_model("mistral").eval(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    head = loaded.base_model.model.lm_head.modules_to_save["default"].weight
    assert not torch.equal(head, build_model("mistral").lm_head.weight)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), logits(model))
    with pytest.raises(UserError, match="modules_to_save"):
        load_adapter(tmp_path)


def test_rows_cannot_choose_where_an_expert_sees_some_of_the_tokens():
    layer = DiaBloTunerLinear(torch.nn.Linear(4, 4), "one", 2, config())
    model = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([layer])}).eval()
    with (
        pytest.raises(UserError, match="got the expert experts"),
        adapters_by_row(model, ["one"], None),
    ):
        pass

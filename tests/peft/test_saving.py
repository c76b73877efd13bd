"""Saving and loading by PEFT, strictly."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from diablo_ds.errors import UserError
from diablo_ds.model.finding import fingerprint
from diablo_ds.peft import DiaBloConfig
from tests.peft.models import config, deltas, logits, tiny_peft_model
from tests.tiny import build_model, save_model

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_peft_model(num_blocks_pattern={"down_proj": 8})
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder: Path, edit) -> None:
    tensors = load_file(folder / TENSORS)
    edit(tensors)
    save_file(tensors, folder / TENSORS, {"format": "pt"})


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2"])
def test_a_saved_adapter_gives_the_same_logits(tmp_path, family, low_cpu_mem_usage):
    model = tiny_peft_model(family)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        build_model(family).eval(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_files_have_the_format_of_an_adapter_folder(folder):
    tensors = load_file(folder / TENSORS)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    name = "base_model.model.model.layers.1.mlp.down_proj.diablo_delta"
    assert tensors[name].shape == (8, 8, 4)
    assert len(tensors) == 10
    written = json.loads((folder / CONFIG).read_text())
    expected = {
        "peft_type": "DIABLO",
        "task_type": "CAUSAL_LM",
        "num_blocks": 4,
        "num_blocks_pattern": {"down_proj": 8},
        "target_modules": ["down_proj", "k_proj", "q_proj", "up_proj", "v_proj"],
        "dropout": 0.0,
        "inference_mode": True,
    }
    assert {key: written[key] for key in expected} == expected


def test_a_config_is_read_as_it_was_written(folder, tmp_path):
    read = PeftConfig.from_pretrained(folder)
    assert isinstance(read, DiaBloConfig)
    read.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CONFIG).read_text() == (folder / CONFIG).read_text()


def test_a_name_of_a_base_is_enough(tmp_path):
    base = save_model(tmp_path / "base")
    model = tiny_peft_model()
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded.eval()), logits(model), rtol=0, atol=0)


def test_transformers_itself_loads_the_folder(tmp_path, folder):
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "base"))
    model.load_adapter(str(folder))
    loaded = PeftModel.from_pretrained(build_model().eval(), folder)
    torch.testing.assert_close(logits(model.eval()), logits(loaded), rtol=0, atol=0)


def test_a_state_dict_is_set_and_read_back(folder):
    model = PeftModel.from_pretrained(build_model().eval(), folder)
    state = get_peft_model_state_dict(model)
    other = tiny_peft_model(num_blocks_pattern={"down_proj": 8}, seed=5)
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    torch.testing.assert_close(logits(other), logits(model), rtol=0, atol=0)


def test_a_copy_is_independent(folder):
    model = PeftModel.from_pretrained(build_model().eval(), folder)
    before = logits(model)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(logits(twin), before, rtol=0, atol=0)
    with torch.no_grad():
        for delta in deltas(twin).values():
            delta.mul_(2)
    assert not torch.equal(logits(twin), before)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


NAME = "base_model.model.model.layers.0.self_attn.q_proj.diablo_delta"
DAMAGE = {
    "missing": (lambda t: t.pop(NAME), "1 missing .*layers.0.self_attn.q_proj"),
    "unknown layer": (
        lambda t: t.update({NAME.replace("layers.0", "layers.7"): t[NAME].clone()}),
        "1 unknown .*layers.7.self_attn.q_proj",
    ),
    "unknown name": (lambda t: t.update({"rubbish": t[NAME].clone()}), "1 unknown .*rubbish"),
    "NaN": (lambda t: t[NAME][0, 0].fill_(float("nan")), "must be finite.*layers.0.self_attn"),
    "infinite": (lambda t: t[NAME][0, 0].fill_(float("inf")), "must be finite.*layers.0.self_attn"),
}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_tensors_are_refused_and_named(folder, kind, low_cpu_mem_usage):
    damage, message = DAMAGE[kind]
    change(folder, damage)
    with pytest.raises(UserError, match=message):
        PeftModel.from_pretrained(build_model(), folder, low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_delta_of_another_shape_is_refused_and_named(folder, low_cpu_mem_usage):
    change(folder, lambda t: t.update({NAME: t[NAME][:, :4].clone()}))
    with pytest.raises(RuntimeError, match=r"size mismatch for .*layers.0.self_attn.q_proj"):
        PeftModel.from_pretrained(build_model(), folder, low_cpu_mem_usage=low_cpu_mem_usage)


def test_another_base_is_refused_unless_the_config_has_no_fingerprint(tmp_path, folder):
    right = save_model(tmp_path / "right")
    other = tmp_path / "other"
    build_model(seed=3).save_pretrained(other)
    written = json.loads((folder / CONFIG).read_text())
    written |= {"base_fingerprint": fingerprint(right), "base_model_name_or_path": str(right)}
    (folder / CONFIG).write_text(json.dumps(written))

    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(right), folder)
    with pytest.raises(UserError, match=r"base model it was trained on.*base_fingerprint is None"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(other), folder)
    forced = PeftConfig.from_pretrained(folder)
    forced.base_fingerprint = None
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(other), folder, config=forced)


def test_what_a_trainer_measured_is_dropped_only_where_training_goes_on(folder):
    written = json.loads((folder / CONFIG).read_text())
    written |= {
        "step": 70,
        "heldout_loss": 1.5,
        "num_deltas": 10,
        "library_versions": {"torch": "2"},
    }
    (folder / CONFIG).write_text(json.dumps(written))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kept = PeftModel.from_pretrained(build_model(), folder).peft_config["default"]
        trained = PeftModel.from_pretrained(build_model(), folder, is_trainable=True)
    assert (kept.step, kept.heldout_loss, kept.num_deltas) == (70, 1.5, 10)
    dropped = trained.peft_config["default"]
    assert dropped.step is dropped.heldout_loss is dropped.library_versions is None
    assert all(delta.requires_grad for delta in deltas(trained).values())


def test_other_methods_are_untouched(tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(build_model().eval(), lora)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build_model().eval(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model.eval()), rtol=0, atol=0)
    with pytest.raises(ValueError, match="different peft types"):
        loaded.add_adapter("mine", config())

"""Folders between PEFT and the core package: each reads what the other wrote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from diablo_ds.adapter.attach import attach, load_deltas
from diablo_ds.adapter.layer_names import targets_of
from diablo_ds.adapter.storage import AdapterConfig, load_adapter, load_adapter_config, save_adapter
from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE
from diablo_ds.training.inspection import describe
from tests.peft.models import logits, tiny_peft_model
from tests.tiny import build_model

FORMS = {
    "names": {},
    "pattern of block counts": {"num_blocks_pattern": {"down_proj": 8, r"0\..*q_proj": 2}},
    "regular expression": {"target_modules": r".*\.[01]\..*(up|down)_proj"},
    "decoder layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "exclusion": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "names that the model lacks": {"target_modules": ["q_proj", "query_key_value"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_peft_saves_is_read_by_the_core(form, tmp_path: Path):
    model = tiny_peft_model(**FORMS[form])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of names without a module
        model.save_pretrained(tmp_path)
    tensors, config = load_adapter(tmp_path)
    plain = build_model().eval()
    attach(plain, config.num_blocks)
    load_deltas(plain, tensors)
    torch.testing.assert_close(logits(plain), logits(model))
    assert str(len(tensors)) in describe(tmp_path)


@pytest.mark.parametrize("layers", ["all", "one"])
def test_what_the_core_saves_is_loaded_by_peft_and_comes_back(layers, tmp_path: Path):
    plain = build_model().eval()
    linears = [name for name, m in plain.named_modules() if isinstance(m, torch.nn.Linear)]
    chosen = [n for n in linears if "proj" in n and (layers == "all" or ".1." in n)]
    counts = {name: 8 if "down" in name else 4 for name in chosen}
    targets = targets_of(counts, [name for name, _ in plain.named_modules()])
    deltas = attach(plain, counts)
    for delta in deltas.values():
        torch.nn.init.normal_(delta, std=0.1)
    config = AdapterConfig("", "", counts, targets=targets)
    save_adapter(tmp_path / "core", deltas, config)

    model = PeftModel.from_pretrained(build_model().eval(), tmp_path / "core")
    torch.testing.assert_close(logits(model), logits(plain))
    model.save_pretrained(tmp_path / "peft")
    tensors, config = load_adapter(tmp_path / "peft")
    assert config.num_blocks == counts
    assert tensors.keys() == deltas.keys()
    assert all(torch.equal(tensors[name], deltas[name]) for name in deltas)


def test_an_adapter_with_other_modules_is_left_to_peft(tmp_path: Path):
    tiny_peft_model("mistral", modules_to_save=["lm_head"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"with PEFT .*modules_to_save=\['lm_head'\]"):
        load_adapter(tmp_path)
    file = tmp_path / ADAPTER_CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "modules_to_save": None}))
    with pytest.raises(UserError, match=r"must be deltas.*lm_head.*with PEFT"):
        load_adapter_config(tmp_path)

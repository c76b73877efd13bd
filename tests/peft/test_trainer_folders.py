"""One format: what the trainer saves PEFT loads, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from diablo_ds.adapter.attach import attach, load_deltas, named_deltas
from diablo_ds.adapter.layer_names import targets_of
from diablo_ds.adapter.storage import AdapterConfig, load_adapter, save_adapter
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.files.layout import ADAPTER_TENSOR_FILE
from tests.peft.models import base, logits, tiny_peft_model


def trained(family: str, folder: Path) -> torch.nn.Module:
    """Save an adapter as the trainer does, and return its model."""
    model = base(family)
    modules = [name for name, _ in model.named_modules()]
    targets = select_targets(model, (), model_type=model.config.model_type)
    num_blocks = resolve_num_blocks(targets, "auto:20%")
    num_blocks |= {name: 2 for name in num_blocks if "layers.1" in name}
    attach(model, num_blocks, dropout=0.1)
    model.eval()
    with torch.no_grad():
        for delta in named_deltas(model).values():
            delta.normal_(std=0.1)
    config = AdapterConfig(
        base_model="",
        base_fingerprint="",
        num_blocks=num_blocks,
        dropout=0.1,
        step=7,
        heldout_loss=1.25,
        library_versions={"torch": "2.13.0"},
        targets=targets_of(num_blocks, modules),
    )
    save_adapter(folder, named_deltas(model), config)
    return model


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2", "opt"])
def test_peft_loads_what_the_trainer_saved(family, low_cpu_mem_usage, tmp_path):
    ours = trained(family, tmp_path)
    loaded = PeftModel.from_pretrained(base(family), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(logits(loaded), logits(ours), rtol=0, atol=0)
    config = loaded.peft_config["default"]
    assert (config.dropout, config.step, config.heldout_loss) == (0.1, 7, 1.25)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_the_trainer_loads_what_peft_saved(family, tmp_path):
    model = tiny_peft_model(family, num_blocks_pattern={r"layers\.1\..*": 8}, dropout=0.25)
    model.save_pretrained(tmp_path)
    tensors, config = load_adapter(tmp_path)
    assert config.dropout == 0.25
    assert set(config.num_blocks.values()) == {4, 8}
    ours = base(family)
    attach(ours, config.num_blocks)
    load_deltas(ours, tensors)
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=0)


def test_an_adapter_survives_both_programs_unchanged(tmp_path):
    trained("llama", tmp_path / "first")
    model = PeftModel.from_pretrained(base(), tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    first, second = (load_adapter(tmp_path / name) for name in ("first", "second"))
    assert first[1].num_blocks == second[1].num_blocks
    assert (second[1].step, second[1].heldout_loss) == (7, 1.25)
    files = [load_file(tmp_path / name / ADAPTER_TENSOR_FILE) for name in ("first", "second")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


def test_an_adapter_that_is_trained_further_is_read_by_the_trainer(tmp_path):
    trained("llama", tmp_path / "first")
    model = PeftModel.from_pretrained(base(), tmp_path / "first", is_trainable=True)
    model.save_pretrained(tmp_path / "second")
    tensors, config = load_adapter(tmp_path / "second")
    assert (config.step, config.heldout_loss, config.library_versions) == (None, None, {})
    assert len(tensors) == 10


def test_layers_chosen_by_number_are_read_by_the_trainer(tmp_path):
    model = tiny_peft_model(layers_to_transform=[1], exclude_modules=["down_proj"])
    model.save_pretrained(tmp_path)
    _, config = load_adapter(tmp_path)
    assert len(config.num_blocks) == 4
    assert all(".1." in name and "down_proj" not in name for name in config.num_blocks)

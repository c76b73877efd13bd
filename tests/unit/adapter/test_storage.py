"""Adapters on disk, and what they are checked against."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diablo_ds.adapter.attach import diablo_layers, load_deltas
from diablo_ds.adapter.layer_names import targets_of
from diablo_ds.adapter.storage import (
    AdapterConfig,
    check_adapter,
    check_base,
    check_covered,
    load_adapter,
    load_adapter_config,
    save_adapter,
)
from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE
from diablo_ds.ranks.log import logger
from diablo_ds.training.inspection import describe
from tests.tiny import build_model
from tests.unit.adapter.models import attach_to


def _config(model, **changes) -> AdapterConfig:
    num_blocks = {name: m.num_blocks for name, m in diablo_layers(model).items()}
    return dataclasses.replace(AdapterConfig("tiny", "abc", num_blocks), **changes)


def test_saved_and_loaded_adapter_gives_the_same_model(tmp_path):
    model = build_model()
    deltas = attach_to(model)
    for delta in deltas.values():
        torch.nn.init.normal_(delta)
    save_adapter(tmp_path / "a", deltas, _config(model))
    tensors, config = load_adapter(tmp_path / "a")
    other = build_model()
    attach_to(other)
    check_adapter(config, _config(other))
    load_deltas(other, tensors)
    ids = torch.randint(256, (2, 7))
    assert torch.equal(model(ids).logits, other(ids).logits)


def test_an_adapter_of_another_model_is_refused():
    model = build_model()
    attach_to(model)
    with pytest.raises(UserError, match="must be loaded on the base model it was trained on"):
        check_adapter(_config(model, base_fingerprint="def"), _config(model))


def test_an_adapter_of_other_num_blocks_is_refused():
    model, other = build_model(), build_model()
    attach_to(model, "4")
    attach_to(other, "8")
    with pytest.raises(UserError, match="num_blocks=4 in the adapter and 8 in the model"):
        check_adapter(_config(model), _config(other))


def test_an_adapter_of_another_target_set_is_refused_both_ways():
    model, other = build_model(), build_model()
    attach_to(model, targets=("q_proj",))
    attach_to(other, targets=("q_proj", "k_proj"))
    with pytest.raises(UserError, match="2 missing"):
        check_adapter(_config(model), _config(other))
    with pytest.raises(UserError, match="2 unknown"):
        check_adapter(_config(other), _config(model))


# --- folders ------------------------------------------------------------------------------------

LAYERS = tuple(f"model.layers.{number}.{name}" for number in range(2) for name in ("q", "up"))
KEY = "base_model.model.{}.diablo_delta".format
SMALL = AdapterConfig("m", "f" * 64, {name: 2 if name.endswith("up") else 4 for name in LAYERS})


@pytest.fixture
def folder(tmp_path):
    """An adapter of four layers, two of them with another block count."""
    deltas = {f"{name}.delta": torch.rand(n, 2, 3) for name, n in SMALL.num_blocks.items()}
    rule = targets_of(LAYERS, (*LAYERS, "model", "model.layers"))
    save_adapter(tmp_path / "a", deltas, dataclasses.replace(SMALL, targets=rule))
    return tmp_path / "a"


def _edit(folder, **changes):
    path = folder / ADAPTER_CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _drop(folder, *names):
    path = folder / ADAPTER_CONFIG_FILE
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k not in names}))


def _edit_tensors(folder, change):
    path = folder / ADAPTER_TENSOR_FILE
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_the_folder_is_as_peft_has_it(folder):
    values = json.loads((folder / ADAPTER_CONFIG_FILE).read_text())
    expected = {
        "peft_type": "DIABLO",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "m",
        "inference_mode": True,
        "target_modules": ["q", "up"],
        "num_blocks": 4,
        "num_blocks_pattern": {"up": 2},
        "num_deltas": 4,
        "base_fingerprint": SMALL.base_fingerprint,
    }
    assert {name: values[name] for name in expected} == expected
    stored = load_file(folder / ADAPTER_TENSOR_FILE)
    assert stored.keys() == {KEY(name) for name in LAYERS}
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())


def test_everything_that_is_known_of_an_adapter_comes_back(tmp_path):
    config = dataclasses.replace(
        SMALL,
        dropout=0.25,
        step=7,
        heldout_loss=1.5,
        library_versions={"torch": "2"},
        parent={"adapter": "older"},
        revision="v1",
    )
    deltas = {f"{name}.delta": torch.rand(n, 2, 3) for name, n in SMALL.num_blocks.items()}
    save_adapter(tmp_path / "a", deltas, config, beside={"more.json": [1]})
    tensors, loaded = load_adapter(tmp_path / "a")
    assert loaded == config == load_adapter_config(tmp_path / "a")
    assert all(torch.equal(tensors[name], deltas[name]) for name in deltas)
    assert json.loads((tmp_path / "a" / "more.json").read_text()) == [1]


def test_a_rule_that_was_made_for_other_layers_is_not_written(folder, tmp_path):
    tensors, config = load_adapter(folder)
    kept = LAYERS[0]
    fewer = dataclasses.replace(config, num_blocks={kept: 4})
    save_adapter(tmp_path / "b", {f"{kept}.delta": tensors[f"{kept}.delta"]}, fewer)
    values = json.loads((tmp_path / "b" / ADAPTER_CONFIG_FILE).read_text())
    assert values["target_modules"] == [kept]


def test_a_folder_that_peft_wrote_is_read(folder):
    _drop(folder, "base_fingerprint", "num_deltas", "step", "heldout_loss", "library_versions")
    _drop(folder, "parent")
    _edit(
        folder,
        auto_mapping={"base_model_class": "LlamaForCausalLM", "parent_library": "x"},
        peft_version="0.21.2",
        task_type=None,
        init_weights=True,
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        target_modules=["up", "q", "qkv"],  # PEFT takes names that a model lacks
        some_new_field=None,
    )
    _edit_tensors(folder, lambda t: t.update({key: value.half() for key, value in t.items()}))
    tensors, config = load_adapter(folder)
    assert config.num_blocks == SMALL.num_blocks
    assert config.base_fingerprint == ""
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(KEY(LAYERS[2])),
            r"num_deltas=4 .* got 3 .* missing: model\.layers\.1\.q$",
        ),
        (
            lambda t: [t.pop(KEY(name)) for name in LAYERS[::2]],
            "got 2 .*; target_modules that match none: q",
        ),
        (lambda t: t.update({KEY("model.other"): torch.ones(1)}), r"target_modules .*model\.other"),
        (lambda t: t.update({KEY("model.layers.2.q"): torch.ones(4, 1, 1)}), "4 .*; got 5"),
        (lambda t: t.update({"lm_head.weight": torch.ones(1)}), r"lm_head\.weight .*with PEFT"),
        (lambda t: t.update({KEY(LAYERS[0]): torch.ones(2, 2, 3)}), r"\[2, 2, 3\] for model.*=4"),
        (lambda t: t.update({KEY(LAYERS[0]): torch.ones(4, 6)}), r"\[4, 6\] for model"),
        (lambda t: t.update({KEY(LAYERS[0]): torch.ones(4, 0, 3)}), r"\[4, 0, 3\] for model"),
        (lambda t: t.update({KEY(LAYERS[0]): torch.ones(4, 2, 3).long()}), "got I64 for model"),
        (lambda t: t[KEY(LAYERS[0])].view(-1)[3:4].fill_(torch.nan), "NaN or infinity in model"),
        (lambda t: t[KEY(LAYERS[3])].view(-1)[3:4].fill_(-torch.inf), "NaN or infinity in model"),
    ],
)
def test_tensors_must_be_those_of_the_config(folder, change, message):
    _edit_tensors(folder, change)
    with pytest.raises(UserError, match=message):
        load_adapter(folder)
    if "NaN" not in message:  # a description reads no numbers
        with pytest.raises(UserError, match=message):
            describe(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type 'DIABLO'; got 'LORA'"),
        ({"task_type": "SEQ_CLS"}, "task_type must be 'CAUSAL_LM' or null"),
        ({"num_blocks": "4"}, "num_blocks must be an integer from 1"),
        ({"num_blocks": True}, "num_blocks must be an integer from 1"),
        ({"num_blocks": 8}, "num_blocks=8"),
        ({"num_blocks_pattern": [2]}, "num_blocks_pattern must be integers"),
        ({"num_blocks_pattern": {"up": 0}}, "num_blocks_pattern must be integers"),
        ({"num_blocks_pattern": {"(": 2}}, "num_blocks_pattern must hold regular expressions"),
        ({"num_blocks_pattern": {}}, "num_blocks=4"),
        ({"num_blocks_pattern": {"up": 2, "down": 8}}, r"num_blocks_pattern .*down"),
        (
            {"target_modules": ["q"]},
            r"target_modules match; got model\.layers\.0\.up and 1|up, mod",
        ),
        ({"target_modules": ["q", "up", "o"]}, "target_modules must match a delta; got o"),
        ({"num_deltas": 5}, "num_deltas=5"),
        ({"num_deltas": "4"}, "num_deltas must be an integer"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path must be text"),
        ({"base_fingerprint": 7}, "base_fingerprint must be text"),
        ({"dropout": "0"}, "dropout must be a number from 0"),
        ({"step": -1}, "step must be an integer from 0"),
        ({"heldout_loss": "low"}, "heldout_loss must be a finite number"),
        ({"library_versions": [1]}, "library_versions must be texts"),
        ({"parent": "older"}, "parent must be an object"),
        ({"rank": 8}, "fields of DiaBlo alone.*; got rank"),
        ({"modules_to_save": ["lm_head"]}, r"with PEFT .*modules_to_save=\['lm_head'\]"),
    ],
)
def test_a_config_of_another_form_is_refused(folder, changes, message):
    assert load_adapter(folder)[1] == SMALL
    _edit(folder, **changes)
    for read in (load_adapter, load_adapter_config, describe):
        with pytest.raises(UserError, match=message):
            read(folder)


def test_damaged_files_are_named(folder):
    tensor_file, config_file = folder / ADAPTER_TENSOR_FILE, folder / ADAPTER_CONFIG_FILE
    intact = tensor_file.read_bytes()
    tensor_file.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(UserError, match=r"intact safetensors file; got .*model\.safetensors"):
        load_adapter(folder)
    tensor_file.unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load_adapter(folder)
    tensor_file.write_bytes(intact)
    config_file.write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json, line 1"):
        load_adapter(folder)


def test_what_would_not_be_read_is_not_written(tmp_path):
    deltas = {f"{name}.delta": torch.rand(n, 2, 3) for name, n in SMALL.num_blocks.items()}
    with pytest.raises(UserError, match="1 unknown"):
        save_adapter(tmp_path / "a", {**deltas, "x.delta": torch.ones(1)}, SMALL)
    deltas = {name: torch.full_like(delta, torch.inf) for name, delta in deltas.items()}
    with pytest.raises(UserError, match="must be finite"):
        save_adapter(tmp_path / "a", deltas, SMALL)
    assert not (tmp_path / "a").exists()


# --- bases --------------------------------------------------------------------------------------


def test_another_base_is_refused_unless_forced(monkeypatch):
    check_base(SMALL, "other", "")  # unknown
    check_base(SMALL, "other", SMALL.base_fingerprint)
    with pytest.raises(UserError, match="must be loaded on the base model it was trained on"):
        check_base(SMALL, "other", "e" * 64)
    warnings = []
    monkeypatch.setattr(logger, "warning", warnings.append)
    check_base(SMALL, "other", "e" * 64, force=True)
    assert "fingerprint eeeeeeeeeeee" in warnings[0]


def test_a_layer_of_the_base_that_the_targets_match_must_have_a_delta(folder):
    config = load_adapter_config(folder)
    elsewhere = ("vision.layers.0.q", "lm_head", "model.layers.0.o")
    check_covered(config, LAYERS, (*LAYERS, *elsewhere))
    with pytest.raises(UserError, match=r"none for model\.layers\.2\.q"):
        check_covered(config, LAYERS, (*LAYERS, "model.layers.2.q"))

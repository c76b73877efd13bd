"""Adapters on disk, and what they are checked against."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from diablo_ds.adapter.attach import diablo_layers, load_deltas
from diablo_ds.adapter.storage import (
    AdapterConfig,
    check_adapter,
    load_adapter,
    save_adapter,
    write_adapter_files,
)
from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE
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


def test_damaged_adapter_files_are_named(tmp_path):
    model = build_model()
    save_adapter(tmp_path, attach_to(model), _config(model))
    tensor_file, config_file = tmp_path / ADAPTER_TENSOR_FILE, tmp_path / ADAPTER_CONFIG_FILE
    whole = tensor_file.read_bytes()
    tensor_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"intact safetensors file; got .*adapter\.safetensors"):
        load_adapter(tmp_path)
    tensor_file.unlink()
    with pytest.raises(UserError, match=r"adapter\.safetensors"):
        load_adapter(tmp_path)
    tensor_file.write_bytes(whole)
    config = json.loads(config_file.read_text())
    config["num_blocks"].popitem()
    config_file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="1 unknown"):
        load_adapter(tmp_path)
    config_file.write_text("{")
    with pytest.raises(UserError, match=r"adapter\.json, line 1"):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": [4]}, "num_blocks must be an integer from 1 for each layer"),
        ({"num_blocks": {"a": "4"}}, "num_blocks must be an integer from 1 for each layer"),
        ({"num_blocks": {"a": True}}, "num_blocks must be an integer from 1 for each layer"),
        ({"base_model": 7}, "base_model must be text"),
        ({"base_fingerprint": None}, "base_fingerprint must be text"),
        ({"dropout": "0"}, "dropout must be from 0 to 1"),
        ({"rank": 8}, r"must have the fields .*; got .*rank"),
        ({"format": [1]}, "must have format 1"),
    ],
)
def test_an_adapter_config_of_another_form_is_refused(tmp_path, changes, message):
    config = AdapterConfig("m", "f", {"a": 4})
    write_adapter_files(tmp_path, {"a.delta": torch.zeros(4, 2, 2)}, config)
    assert load_adapter(tmp_path)[1] == config
    path = tmp_path / ADAPTER_CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path)


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 4), (4,)])
def test_deltas_of_another_shape_than_their_config_says_are_refused(tmp_path, shape):
    config = AdapterConfig("m", "f", {"a": 4})
    write_adapter_files(tmp_path, {"a.delta": torch.zeros(shape)}, config)
    for read in (load_adapter, describe):
        with pytest.raises(UserError, match=r"num_blocks, in_block, out_block.* for a\.delta"):
            read(tmp_path)

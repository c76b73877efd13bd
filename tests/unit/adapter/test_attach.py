from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
import torch
from torch.testing import assert_close
from transformers import CONFIG_MAPPING

from diablo_ds.adapter import targets
from diablo_ds.adapter.attach import attach, diablo_layers, load_deltas, without_deltas
from diablo_ds.adapter.merging import merge, unmerge
from diablo_ds.adapter.storage import (
    AdapterConfig,
    check_adapter,
    load_adapter,
    save_adapter,
    write_adapter_files,
)
from diablo_ds.adapter.targets import layer_number, resolve_num_blocks, select_targets
from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE
from diablo_ds.model.architecture import build_meta_model, decoder_layer_classes
from diablo_ds.training.inspection import describe
from tests.tiny import FAMILIES, build_model


def _attach(model, num_blocks="4", targets=(), **options):
    chosen = select_targets(
        model, targets, model_type=model.config.model_type, layers=options.pop("layers", "")
    )
    return attach(model, resolve_num_blocks(chosen, num_blocks), **options)


def _config(model, **changes) -> AdapterConfig:
    num_blocks = {name: m.num_blocks for name, m in diablo_layers(model).items()}
    return dataclasses.replace(AdapterConfig("tiny", "abc", num_blocks), **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets_of_each_family_attach_without_changing_the_output(family):
    model = build_model(family)
    ids = torch.randint(256, (2, 7))
    expected = model(ids).logits
    deltas = _attach(model)
    per_layer = 3 if family == "gpt_neox" else 5
    assert len(deltas) == per_layer * model.config.num_hidden_layers
    assert_close(model(ids).logits, expected)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(deltas)


@pytest.mark.parametrize("model_type", targets.DEFAULT_TARGETS)
def test_default_targets_of_every_listed_type_lie_in_each_decoder_layer(model_type):
    config = CONFIG_MAPPING[model_type]()
    config.num_hidden_layers = 2
    model = build_meta_model(config)
    chosen = select_targets(model, (), model_type=model.config.model_type)
    assert decoder_layer_classes(model)
    per_layer = Counter(layer_number(name) for name in chosen)
    assert per_layer == dict.fromkeys((0, 1), len(targets.DEFAULT_TARGETS[model_type]))


@pytest.mark.parametrize("delta_path", ["fused", "summed", "prefilled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_deltas_a_model_is_its_base_bit_by_bit(family, delta_path):
    model, ids = build_model(family), torch.randint(256, (2, 7))
    expected = model(ids).logits
    for delta in _attach(model, delta_path=delta_path).values():
        torch.nn.init.normal_(delta, std=0.1)
    before = model(ids).logits
    assert not torch.equal(before, expected)
    with without_deltas(model):
        assert torch.equal(model(ids).logits, expected)
        assert not model(ids).logits.requires_grad
    assert torch.equal(model(ids).logits, before)


def test_the_switch_is_put_back_on_an_error_and_layer_by_layer():
    model = build_model()
    _attach(model)
    first, *others = diablo_layers(model).values()
    first.is_enabled = False
    with pytest.raises(RuntimeError, match="inside"), without_deltas(model):
        raise RuntimeError("inside")
    assert not first.is_enabled
    assert all(layer.is_enabled for layer in others)


def test_merged_deltas_cannot_be_left_out():
    model = build_model()
    _attach(model)
    merge(model)
    with (
        pytest.raises(UserError, match=r"must not be merged .*; got 10 .*; unmerge them first"),
        without_deltas(model),
    ):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_model_equals_unmerged(family):
    model = build_model(family)
    for delta in _attach(model).values():
        torch.nn.init.normal_(delta, std=0.1)
    ids = torch.randint(256, (2, 7))
    expected = model(ids).logits
    merge(model)
    assert_close(model(ids).logits, expected)
    unmerge(model)
    assert_close(model(ids).logits, expected)


@pytest.mark.parametrize(
    ("targets", "layers", "expected"),
    [
        (("q_proj",), "", ["0.self_attn.q_proj", "1.self_attn.q_proj"]),
        (("mlp.up_proj",), "1", ["1.mlp.up_proj"]),
        (
            ("model.layers.0.mlp.*_proj",),
            "",
            ["0.mlp.gate_proj", "0.mlp.up_proj", "0.mlp.down_proj"],
        ),
        ((r"re:.*\.[kv]_proj",), "0-0", ["0.self_attn.k_proj", "0.self_attn.v_proj"]),
        (("o_proj",), "0,1", ["0.self_attn.o_proj", "1.self_attn.o_proj"]),
    ],
)
def test_targets_by_name_pattern_and_layer(targets, layers, expected):
    chosen = select_targets(build_model(), targets, layers=layers)
    assert list(chosen) == [f"model.layers.{name}" for name in expected]


def test_a_name_is_matched_by_whole_parts():
    with pytest.raises(UserError, match="each target must match at least one linear layer"):
        select_targets(build_model(), ("proj",))


def test_a_target_that_matches_nothing_is_named_among_those_that_do():
    with pytest.raises(UserError, match=r"target='w1'; linear layers of this model: .*q_proj"):
        select_targets(build_model(), ("q_proj", "w1"))


def test_a_head_tied_to_the_embedding_is_no_target():
    with pytest.raises(UserError, match="target='lm_head'"):
        select_targets(build_model("llama"), ("lm_head",))
    assert list(select_targets(build_model("mistral"), ("lm_head",))) == ["lm_head"]


@pytest.mark.parametrize("layers", ["0-2", "7", "1-0", "a", "-1"])
def test_layer_ranges_outside_the_model_are_refused(layers):
    with pytest.raises(UserError, match=r"layers must be"):
        select_targets(build_model(), ("q_proj",), layers=layers)


def test_an_unknown_model_type_has_the_targets_of_a_family_with_its_names_or_needs_some():
    model = build_model()
    known = select_targets(model, (), model_type="llama")
    assert select_targets(model, (), model_type="other") == known
    model.model.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    with pytest.raises(UserError, match=r"model_type='other'; linear layers of this model: 0"):
        select_targets(model, (), model_type="other")


def test_bad_num_blocks_lists_layers_widths_and_repairs():
    with pytest.raises(UserError, match="num_blocks must divide both widths") as caught:
        _attach(build_model(), "32")
    message = str(caught.value)
    assert "model.layers.0.self_attn.k_proj and 3 more: in_features=32, out_features=16" in message
    assert "nearest that work: 16" in message
    assert "q_proj" not in message


@pytest.mark.parametrize("num_blocks", ["0", "-4", "x", "auto:0", "auto:2", "auto:", "auto:nan"])
def test_malformed_num_blocks_is_refused(num_blocks):
    with pytest.raises(UserError, match="num_blocks"):
        _attach(build_model(), num_blocks)


@pytest.mark.parametrize("num_blocks", ["auto:0.25", "auto:25%"])
def test_auto_chooses_a_legal_count_near_the_share(num_blocks):
    deltas = _attach(build_model(), num_blocks)
    assert {delta.shape[0] for delta in deltas.values()} == {4}


def test_auto_differs_by_layer_where_it_has_to():
    model = build_model(num_key_value_heads=1)  # k and v are 8 wide
    _attach(model, "auto:0.0625")
    counts = {n.rpartition(".")[2]: m.num_blocks for n, m in diablo_layers(model).items()}
    assert counts == {"q_proj": 16, "k_proj": 8, "v_proj": 8, "up_proj": 16, "down_proj": 16}


def test_saved_and_loaded_adapter_gives_the_same_model(tmp_path):
    model = build_model()
    deltas = _attach(model)
    for delta in deltas.values():
        torch.nn.init.normal_(delta)
    save_adapter(tmp_path / "a", deltas, _config(model))
    tensors, config = load_adapter(tmp_path / "a")
    other = build_model()
    _attach(other)
    check_adapter(config, _config(other))
    load_deltas(other, tensors)
    ids = torch.randint(256, (2, 7))
    assert torch.equal(model(ids).logits, other(ids).logits)


def test_an_adapter_of_another_model_is_refused():
    model = build_model()
    _attach(model)
    with pytest.raises(UserError, match="must be loaded on the base model it was trained on"):
        check_adapter(_config(model, base_fingerprint="def"), _config(model))


def test_an_adapter_of_other_num_blocks_is_refused():
    model, other = build_model(), build_model()
    _attach(model, "4")
    _attach(other, "8")
    with pytest.raises(UserError, match="num_blocks=4 in the adapter and 8 in the model"):
        check_adapter(_config(model), _config(other))


def test_an_adapter_of_another_target_set_is_refused_both_ways():
    model, other = build_model(), build_model()
    _attach(model, targets=("q_proj",))
    _attach(other, targets=("q_proj", "k_proj"))
    with pytest.raises(UserError, match="2 missing"):
        check_adapter(_config(model), _config(other))
    with pytest.raises(UserError, match="2 unknown"):
        check_adapter(_config(other), _config(model))


def test_deltas_of_another_shape_or_name_are_refused_and_nothing_is_copied():
    model = build_model()
    deltas = _attach(model)
    tensors = {name: torch.ones_like(delta) for name, delta in deltas.items()}
    last = list(tensors)[-1]
    with pytest.raises(UserError, match="must have the shape"):
        load_deltas(model, {**tensors, last: torch.ones(1, 2, 3)})
    with pytest.raises(UserError, match="1 missing"):
        load_deltas(model, {n: t for n, t in tensors.items() if n != last})
    assert all(delta.abs().sum() == 0 for delta in deltas.values())


def test_damaged_adapter_files_are_named(tmp_path):
    model = build_model()
    save_adapter(tmp_path, _attach(model), _config(model))
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

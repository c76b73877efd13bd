"""Which layers become targets, and their block counts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import CONFIG_MAPPING

from diablo_ds.adapter import targets
from diablo_ds.adapter.attach import diablo_layers
from diablo_ds.adapter.targets import layer_number, select_targets
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model, decoder_layer_classes
from tests.tiny import build_model
from tests.unit.adapter.models import attach_to


@pytest.mark.parametrize("model_type", targets.DEFAULT_TARGETS)
def test_default_targets_of_every_listed_type_lie_in_each_decoder_layer(model_type):
    config = CONFIG_MAPPING[model_type]()
    config.num_hidden_layers = 2
    model = build_meta_model(config)
    chosen = select_targets(model, (), model_type=model.config.model_type)
    assert decoder_layer_classes(model)
    per_layer = Counter(layer_number(name) for name in chosen)
    assert per_layer == dict.fromkeys((0, 1), len(targets.DEFAULT_TARGETS[model_type]))


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


def test_a_name_is_matched_by_complete_parts():
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
        attach_to(build_model(), "32")
    message = str(caught.value)
    assert "model.layers.0.self_attn.k_proj and 3 more: in_features=32, out_features=16" in message
    assert "nearest that work: 16" in message
    assert "q_proj" not in message


@pytest.mark.parametrize("num_blocks", ["0", "-4", "x", "auto:0", "auto:2", "auto:", "auto:nan"])
def test_malformed_num_blocks_is_refused(num_blocks):
    with pytest.raises(UserError, match="num_blocks"):
        attach_to(build_model(), num_blocks)


@pytest.mark.parametrize("num_blocks", ["auto:0.25", "auto:25%"])
def test_auto_chooses_a_legal_count_near_the_share(num_blocks):
    deltas = attach_to(build_model(), num_blocks)
    assert {delta.shape[0] for delta in deltas.values()} == {4}


def test_auto_differs_by_layer_where_it_has_to():
    model = build_model(num_key_value_heads=1)  # k and v are 8 wide
    attach_to(model, "auto:0.0625")
    counts = {n.rpartition(".")[2]: m.num_blocks for n, m in diablo_layers(model).items()}
    assert counts == {"q_proj": 16, "k_proj": 8, "v_proj": 8, "up_proj": 16, "down_proj": 16}

"""Dropout of the base's own: found where it acts, named, and switched off as a whole."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
)

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.base_dropout import find_dropout, switch_off_dropout
from diablo_ds.training.machine import Machine
from diablo_ds.training.resolution import resolve_run

SHAPE = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
WITH_DROPOUT: dict[str, tuple[PreTrainedConfig, dict[str, float]]] = {
    # A rate beside the functional call, one passed on to the attention, modules, and a config that
    # the meta device is not enough for.
    "opt": (
        OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
        {"model.decoder.layers.*": 0.1},
    ),
    "llama": (
        LlamaConfig(**SHAPE, intermediate_size=64, attention_dropout=0.2),
        {"model.layers.*.self_attn": 0.2},
    ),
    "gpt2": (
        GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            embd_pdrop=0.3,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=1,
        ),
        {
            "transformer.drop": 0.3,
            "transformer.h.*.attn.resid_dropout": 0.1,
            "transformer.h.*.mlp.dropout": 0.1,
        },
    ),
    "bloom": (
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, attention_dropout=0.1),
        {"transformer.h.*.self_attention.attention_dropout": 0.1},
    ),
    "mpt": (
        MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, resid_pdrop=0.1, emb_pdrop=0.0),
        {},
    ),
}


def _meta_model(name: str) -> torch.nn.Module:
    config = WITH_DROPOUT[name][0]
    return build_meta_model(type(config).from_dict(config.to_dict()))


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2"])
def test_dropout_is_named_where_it_acts(name):
    assert find_dropout(_meta_model(name)) == WITH_DROPOUT[name][1]


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_switched_off_a_training_forward_equals_an_evaluation(name):
    config = WITH_DROPOUT[name][0]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict())).train()
    tokens = torch.randint(64, (2, 16))
    with torch.no_grad():
        differ = not torch.equal(model(tokens).logits, model(tokens).logits)
        assert differ == bool(find_dropout(_meta_model(name)))
        switch_off_dropout(model)
        trained = model(tokens).logits
        assert torch.equal(trained, model(tokens).logits)
        assert torch.equal(trained, model.eval()(tokens).logits)


def _resolve(setting: bool | None, meta_model: torch.nn.Module) -> object:
    config = RunConfig(learning_rate=1e-3, base_dropout=setting)
    return resolve_run(config, [Machine("host", "cpu", bf16_factor=1.0)], meta_model)


def test_it_is_said_and_recorded_and_an_option_switches_it_off():
    kept = _resolve(None, _meta_model("opt"))
    assert kept.run_config.base_dropout is True
    assert "base dropout on: the base's config has 0.1 in model.decoder.layers.*;" in kept.text()
    assert kept.base_dropout == {"model.decoder.layers.*": 0.1}
    off = _resolve(False, _meta_model("opt"))
    assert off.run_config.base_dropout is False
    assert "base dropout off, as asked: the base's config has 0.1" in off.text()
    assert not off.base_dropout


@pytest.mark.parametrize("setting", [True, False])
def test_without_dropout_the_setting_is_an_error(setting):
    meta_model = build_meta_model(LlamaConfig(**SHAPE, intermediate_size=64))
    with pytest.raises(UserError, match="base_dropout needs a base with dropout of its own"):
        _resolve(setting, meta_model)
    none = _resolve(None, meta_model)
    assert none.run_config.base_dropout is None
    assert "base dropout" not in none.text()


def test_layers_dropped_at_random_do_not_go_with_stage_3_on_several_ranks():
    config = OPTConfig(
        **SHAPE,
        ffn_dim=64,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        dropout=0.0,
        layerdrop=0.2,
    )
    meta_model, policy = build_meta_model(config), {"zero_optimization": {"stage": 3}}
    host = Machine("host", "cpu", bf16_factor=1.0)
    assert find_dropout(meta_model) == {"model.decoder": 0.2}
    assert resolve_run(
        RunConfig(learning_rate=1e-3), [host], meta_model, policy=policy
    ).run_config.base_dropout
    with pytest.raises(UserError, match="drops entire layers at random needs ZeRO stage 0, 1 or 2"):
        resolve_run(RunConfig(learning_rate=1e-3), [host] * 2, meta_model, policy=policy)
    off = RunConfig(learning_rate=1e-3, base_dropout=False)
    assert resolve_run(off, [host] * 2, meta_model, policy=policy).run_config.base_dropout is False


def test_dropout_that_cannot_be_reached_is_an_error():
    meta_model = _meta_model("opt")
    layer = type(meta_model.model.decoder.layers[0])

    class Hidden(layer):  # type: ignore[misc,valid-type]
        def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
            hidden_states = torch.nn.functional.dropout(hidden_states, 0.3, self.training)
            return super().forward(hidden_states, *args, **kwargs)

    meta_model.model.decoder.layers[1].__class__ = Hidden
    with pytest.raises(UserError, match=r"cannot be reached: 0\.3 in model\.decoder"):
        _resolve(False, meta_model)

"""The proof on a tiny model says of a larger one what holds of its losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    FalconConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
)

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.examples import Examples, TokenTable
from diablo_ds.data.labels import Example
from diablo_ds.data.masks import EXAMPLES, NONE
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.loss import causal_lm_loss
from diablo_ds.model.separation import Separation, prove_separation
from diablo_ds.model.small_model import build_small_model, small_configs
from tests.tiny import LONG_ROPE

RUN = RunConfig(micro_batch=4, global_batch=4, max_length=64)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
OPT = OPTConfig(
    hidden_size=64,
    word_embed_proj_dim=64,
    ffn_dim=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    vocab_size=300,
    max_position_embeddings=128,
    pad_token_id=0,
)
FALCON = FalconConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=True, vocab_size=300
)
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
WINDOW = MistralConfig(**SHAPE, sliding_window=8, max_position_embeddings=128)
BY_POSITIONS = {"llama": LlamaConfig(**SHAPE), "mistral": WINDOW}
BY_MASK = {
    "opt": OPT,
    "mpt": MptConfig(d_model=64, n_heads=4, n_layers=2, vocab_size=300, max_seq_len=128),
    "gpt_oss": GptOssConfig(**SHAPE, num_local_experts=8, head_dim=16, sliding_window=8),
}
NOT = {
    "bloom": BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4),
    "mamba": MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2, state_size=8),
    "lfm2": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"]),
    "longrope": LONG_ROPE,
}


def _attention(config) -> str:
    return build_meta_model(config).config._attn_implementation or "eager"


def _prove(config, **changes) -> Separation:
    return prove_separation(config, replace(RUN, **changes), _attention(config), torch.float32)


def _loss(model, separation=None, **changes) -> torch.Tensor:
    """The summed loss of examples of very unequal length, through the real data path."""
    numbers = np.random.default_rng(0)
    ids = [numbers.integers(0, 300, n).tolist() for n in (60, 33, 20, 20, 11, 7, 40, 5)]
    table = TokenTable.from_examples([Example(i, i) for i in ids])
    examples = Examples(table, np.arange(len(table)), table.lengths(), "test")
    run = replace(RUN, **changes)
    kept = separation or Separation()
    dealer = Dealer(run, 0, 0, 1, kept.mask, kept.equal_lengths)
    batches = list(BatchSource(examples, run, dealer).heldout())
    with torch.no_grad():
        return sum(causal_lm_loss(model(**b.model_inputs()).logits, b.labels) for b in batches)


def _strong(config):
    """A model of this very size in which tokens change each other's losses clearly."""
    model = AutoModelForCausalLM.from_config(config).float().eval()
    model.config.use_cache = False
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


def _without_text(separation: Separation) -> Separation:
    return replace(separation, text="")


@pytest.mark.parametrize("kind", BY_POSITIONS)
def test_positions_keep_packed_examples_apart(kind):
    separation = _prove(BY_POSITIONS[kind], packing=True)
    assert _without_text(separation) == Separation()
    assert "by an attention mask, which sdpa gets from their positions" in separation.text
    model = _strong(BY_POSITIONS[kind])
    assert_close(_loss(model, packing=True), _loss(model, micro_batch=1), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", BY_MASK)
def test_a_mask_keeps_packed_examples_apart_where_positions_do_not(kind):
    separation = _prove(BY_MASK[kind], packing=True)
    assert separation.mask.kind == EXAMPLES
    assert "block-diagonal" in separation.text
    assert "MB for a micro batch of 4 x 64 tokens" in separation.text
    model = _strong(BY_MASK[kind])
    alone = _loss(model, micro_batch=1)
    assert_close(_loss(model, separation, packing=True), alone, rtol=1e-5, atol=1e-3)
    assert abs(float(_loss(model, packing=True) - alone)) > 0.1  # the mask is needed


@pytest.mark.parametrize("kind", NOT)
def test_packing_is_refused_where_nothing_keeps_examples_apart(kind):
    with pytest.raises(UserError, match=r"must not change losses; got up to \d.* nats.*no-packing"):
        _prove(NOT[kind], packing=True)
    model = _strong(NOT[kind])
    assert abs(float(_loss(model, packing=True) - _loss(model, micro_batch=1))) > 0.1
    separation = _prove(NOT[kind])
    padded, alone = _loss(model, separation), _loss(model, replace_equal(separation))
    assert_close(padded, alone, rtol=1e-5, atol=1e-3)


def replace_equal(separation: Separation) -> Separation:
    """Every example by itself, without padding."""
    return replace(separation, equal_lengths=True)


def test_a_bias_that_loses_digits_far_along_a_row_is_seen():
    with pytest.raises(UserError, match="packing must not change losses"):
        _prove(FALCON, packing=True, max_length=512)
    assert _prove(FALCON, max_length=512) == Separation()


def test_where_padding_changes_losses_only_equal_lengths_share_a_micro_batch():
    separation = _prove(LONG_ROPE)
    assert separation.equal_lengths
    assert "equal length" in separation.text
    model = _strong(LONG_ROPE)
    alone = _loss(model, replace_equal(Separation()), micro_batch=1)
    assert_close(_loss(model, separation), alone, rtol=1e-5, atol=1e-3)
    assert abs(float(_loss(model) - alone)) > 0.1
    # Rows as long as those it was trained on change nothing.
    assert _prove(LONG_ROPE, max_length=32) == Separation()
    assert _without_text(_prove(LONG_ROPE, max_length=32, packing=True)) == Separation()


def test_positions_that_adapt_to_the_longest_row_so_far_are_refused():
    config = LlamaConfig(**SHAPE, max_position_embeddings=32, rope_parameters=DYNAMIC)
    for packing in (False, True):
        with pytest.raises(UserError, match=r"seen before; got up to .* use --max-length 32"):
            _prove(config, packing=packing)
        separation = _prove(config, packing=packing, max_length=32)
        assert _without_text(separation) == Separation()


def test_a_model_that_sees_later_tokens_is_refused():
    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    with pytest.raises(UserError, match="model must be causal; got model type 'bert'"):
        _prove(config)


def test_packing_needs_a_proof(monkeypatch):
    monkeypatch.setattr("diablo_ds.model.small_model.MOST_PARAMETERS", 1)
    with pytest.raises(UserError, match=r"packing needs a proof.*got none.*use --no-packing"):
        _prove(BY_POSITIONS["llama"], packing=True)
    unpacked = _prove(BY_POSITIONS["llama"])
    assert unpacked.mask.kind == NONE
    assert "was not tried" in unpacked.text


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_attention_of_variable_length_is_proven_by_what_it_computes(kind):
    config = (BY_POSITIONS | BY_MASK)[kind]
    run = replace(RUN, packing=True)
    assert prove_separation(config, run, "flash_attention_2", torch.bfloat16) == Separation()
    with pytest.raises(UserError, match="packing must not change losses"):
        prove_separation(NOT["lfm2"], run, "flash_attention_2", torch.bfloat16)


def test_a_small_model_has_every_kind_of_layer_and_small_widths():
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32_000,
    )
    small = next(small_configs(config, max_length=512, row_length=32))
    assert (small.hidden_size, small.intermediate_size, small.head_dim) == (256, 688, 8)
    assert (small.num_attention_heads, small.num_key_value_heads) == (32, 8)
    assert small.num_hidden_layers == 2
    build_small_model(small, "sdpa")
    kinds = ["conv"] * 3 + ["full_attention"] + ["conv"] * 8
    config = Lfm2Config(**{**SHAPE, "num_hidden_layers": 12}, layer_types=kinds)
    small = next(small_configs(config, max_length=512, row_length=32))
    assert small.layer_types == kinds[:4]

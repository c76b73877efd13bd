"""What a model's head returns, logits as they are or changed after it; which attention it gets."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from diablo_ds.errors import UserError
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.attention import choose_attention
from diablo_ds.model.loss import LossHead, causal_lm_loss
from diablo_ds.model.loss_head import install_loss_head
from tests.tiny import FAMILIES, build_model

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 264,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_computes_the_loss_of_the_whole_model(family):
    model = build_model(family)
    input_ids = torch.randint(264, (2, 9))
    expected = causal_lm_loss(model(input_ids=input_ids).logits, input_ids)
    shapes = build_meta_model(model.config)
    before = dict(shapes.named_parameters())
    assert install_loss_head(model, shapes)
    assert dict(shapes.named_parameters()) == before, "the model on the meta device changed"
    head = model.get_output_embeddings()
    with head.computing_loss(input_ids):
        assert_close(model(input_ids=input_ids).logits, expected)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SHAPE, head_dim=8),  # caps its logits
        CohereConfig(**SHAPE),  # scales them
        GraniteConfig(**SHAPE, logits_scaling=2.0),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_changes_its_heads_output_keeps_whole_logits(config):
    model = AutoModelForCausalLM.from_config(config)
    assert not install_loss_head(model, build_meta_model(config))
    assert not isinstance(model.get_output_embeddings(), LossHead)


def test_attention_that_cannot_run_is_refused():
    shapes = build_meta_model(FAMILIES["llama"])
    assert choose_attention("auto", shapes, "bf16", "cpu", ()) == "sdpa"
    assert choose_attention("eager", shapes, "bf16", "cpu", ()) == "eager"
    with pytest.raises(UserError, match="needs a GPU and half precision; got precision='bf16'"):
        choose_attention("flash_attention_2", shapes, "bf16", "cpu", ())
    with pytest.raises(UserError, match="needs a GPU and half precision; got precision='fp32'"):
        choose_attention("flash_attention_2", shapes, "fp32", "cuda", ())


def test_flash_attention_needs_its_package():
    shapes = build_meta_model(FAMILIES["llama"])
    assert choose_attention("auto", shapes, "bf16", "cuda", ()) == "sdpa"
    with pytest.raises(UserError, match="needs its package; got none installed"):
        choose_attention("flash_attention_2", shapes, "bf16", "cuda", ())

"""Attention of variable length: what it computes, for which models it is taken, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import (
    Gemma2Config,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import collate
from diablo_ds.data.labels import Example
from diablo_ds.data.masks import example_mask
from diablo_ds.errors import UserError
from diablo_ds.model import varlen
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.attention import attends_by_variable_length, choose_attention, takes_lengths
from diablo_ds.model.base import Base, keep_apart
from diablo_ds.model.loss import causal_lm_loss
from diablo_ds.model.separation import NO_MASK, prove_separation
from diablo_ds.model.varlen import VARLEN, UnfitAttentionError, has_varlen_kernel, varlen_attention
from diablo_ds.training.machine import Machine
from diablo_ds.training.resolution import resolve_run
from diablo_ds.zero.loading import load_base
from tests.tiny import FAMILIES, save_model

RUN = RunConfig(micro_batch=4, global_batch=4, max_length=64, packing=True, precision="bf16")
GPU = Machine("a", "cuda", attentions_by_length=(VARLEN,))
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
WINDOW = MistralConfig(**SHAPE, sliding_window=8, max_position_embeddings=128)
FITTING = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": WINDOW,
    "qwen3": Qwen3Config(**SHAPE, head_dim=32),
}
CAPPED = Gemma2Config(**SHAPE, head_dim=16, sliding_window=8, attn_logit_softcapping=2.0)
SINKS = GptOssConfig(**SHAPE, num_local_experts=8, head_dim=16, sliding_window=8)
DROPOUT = LlamaConfig(**SHAPE, attention_dropout=0.1)
CONVOLUTION = Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"])


def _states(widths=(16, 16), heads=(4, 2), lengths=(5, 9, 1)):
    """Random query, key, value in one row, its edges, and positions in each stretch."""
    total = sum(lengths)
    shapes = [(heads[0], widths[0]), (heads[1], widths[0]), (heads[1], widths[1])]
    states = [torch.randn(1, n, total, d, requires_grad=True) for n, d in shapes]
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return states, edges, positions


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize(("widths", "heads"), [((16, 16), (4, 2)), ((12, 6), (3, 3))])
def test_it_equals_attention_with_a_dense_mask(window, scaling, widths, heads):
    states, edges, positions = _states(widths, heads)
    y, _ = varlen_attention(
        None, *states, None, scaling=scaling, sliding_window=window, cu_seq_lens_q=edges,
        max_length_q=9,
    )  # fmt: skip
    mask = example_mask(positions, window=window or 0)
    options = {"attn_mask": mask, "scale": scaling, "enable_gqa": True}
    expected = F.scaled_dot_product_attention(*states, **options).transpose(1, 2)
    assert y.shape == (1, 15, heads[0], widths[1])
    assert_close(y, expected)
    grad = torch.randn_like(y)
    gradients = torch.autograd.grad(y, states, grad)
    assert_close(gradients, torch.autograd.grad(expected, states, grad))


def test_rows_without_lengths_are_one_stretch_each():
    states = [torch.randn(3, heads, 7, 16) for heads in (4, 2, 2)]
    y, _ = varlen_attention(None, *states, None)
    expected = F.scaled_dot_product_attention(*states, is_causal=True, enable_gqa=True)
    assert_close(y, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(4)}, "position_bias"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"is_causal": False}, "is_causal=False"),
        ({"attention_mask": torch.zeros(1, 1, 15, 15)}, "an attention mask"),
    ],
)
def test_what_the_kernel_lacks_is_refused(options, found):
    states, edges, _ = _states()
    mask = options.pop("attention_mask", None)
    with pytest.raises(UnfitAttentionError, match=f"got {found}; use --attention sdpa"):
        varlen_attention(None, *states, mask, cu_seq_lens_q=edges, max_length_q=9, **options)
    varlen_attention(None, *states, None, softcap=None, s_aux=None, dropout=0.0, is_causal=True)


def test_a_compiler_sees_one_graph_for_all_lengths(monkeypatch):
    """A compiled decoder layer may not break; here up to the kernel's call, which needs a GPU."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lambda *values: (torch.zeros(1),)

    monkeypatch.setattr(varlen, "_in_parts", varlen._by_kernel)

    @torch.compile(fullgraph=True, backend=backend)
    def attend(query, key, value, edges, longest):
        options = {"sliding_window": 3, "dropout": 0.0, "position_ids": None}
        return varlen_attention(
            None, query, key, value, None, cu_seq_lens_q=edges, max_length_q=longest, **options
        )

    for lengths in ((5, 9, 1), (5, 5, 3, 2), (2, 4, 9), (1, 14)):
        states, edges, _ = _states(lengths=lengths)
        attend(*states, edges, max(lengths))
    assert len(graphs) <= 3
    assert "torch_attn._varlen_attn" in graphs[-1].code


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_joined_into_one_give_the_same_loss_and_gradients(family, tmp_path):
    """As a run loads it: the same registration, and all but the kernel itself."""
    folder = save_model(tmp_path, family)
    numbers = np.random.default_rng(0)
    ids = [numbers.integers(0, 256, n).tolist() for n in (30, 17, 9, 26, 12, 3)]
    examples = [Example(row, row) for row in ids]
    batch = collate([examples[:3], examples[3:]], pad_id=256, packing=True)
    results = []
    for attention in ("sdpa", VARLEN):
        model = load_base(folder, "fp32", attention=attention)
        assert attends_by_variable_length(model) == (attention == VARLEN)
        row = batch.as_one_row() if attention == VARLEN else batch
        inputs = row.variable_length_inputs() if attention == VARLEN else row.model_inputs()
        loss = causal_lm_loss(model(**inputs).logits, row.labels)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()]))
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FITTING)
def test_models_whose_attention_it_computes_take_it(kind):
    separation = prove_separation(FITTING[kind], RUN, VARLEN, torch.bfloat16)
    assert (separation.mask, separation.text) == (NO_MASK, "")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CAPPED, "got softcap"),
        (SINKS, "got s_aux"),
        (DROPOUT, "got dropout=0.1"),
        (CONVOLUTION, "packing must not change losses"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_others_are_refused_by_name_and_get_another_attention_otherwise(config, reason):
    with pytest.raises(UserError, match=reason):
        prove_separation(config, RUN, VARLEN, torch.bfloat16)
    if config is CONVOLUTION:  # nothing keeps its examples apart
        return
    meta_model = build_meta_model(config)
    run = replace(RUN, attention=VARLEN)
    apart = keep_apart(Base(None, config, meta_model), run, asked="auto")
    assert apart.attention == meta_model.config._attn_implementation
    assert reason in apart.reason
    assert "MB for a micro batch of 4 x 64 tokens" in apart.separation.text
    with pytest.raises(UserError, match=reason):
        keep_apart(Base(None, config, meta_model), run, asked=VARLEN)


def test_dropout_that_is_switched_off_is_no_obstacle():
    run = replace(RUN, base_dropout=False)
    assert not prove_separation(DROPOUT, run, VARLEN, torch.bfloat16).text


def test_an_attention_that_ignores_what_a_model_asks_for_is_found_out(monkeypatch):
    """A window that the kernel would leave out changes losses of the tiny model."""

    def without_window(*args, sliding_window=None, **options):
        return varlen_attention(*args, **options)

    monkeypatch.setattr("diablo_ds.model.varlen.varlen_attention", without_window)
    assert not prove_separation(FITTING["llama"], RUN, VARLEN, torch.bfloat16).text
    with pytest.raises(UserError, match=r"must compute what the model's own does; got .* nats"):
        prove_separation(WINDOW, RUN, VARLEN, torch.bfloat16)


def test_packed_rows_on_a_gpu_take_it_where_no_package_is_installed():
    meta_model = build_meta_model(FAMILIES["llama"])

    def attention(machine=GPU, **settings):
        resolution = resolve_run(RunConfig(learning_rate=1e-3, **settings), [machine], meta_model)
        return resolution.run_config.attention

    assert attention(packing=True) == VARLEN
    assert attention() == "sdpa"
    assert attention(packing=True, precision="fp32") == "sdpa"
    assert attention(replace(GPU, attentions_by_length=()), packing=True) == "sdpa"
    both = replace(GPU, attentions_by_length=("flash_attention_2", VARLEN))
    assert attention(both, packing=True) == attention(both) == "flash_attention_2"
    assert attention(packing=True, attention="sdpa") == "sdpa"
    assert attention(attention=VARLEN) == VARLEN
    assert takes_lengths(VARLEN)


def test_it_is_refused_where_it_cannot_run():
    meta_model = build_meta_model(FAMILIES["llama"])
    with pytest.raises(UserError, match=r"varlen needs PyTorch 2.11 or later and a GPU"):
        choose_attention(VARLEN, meta_model, "bf16", "cuda", ())
    with pytest.raises(UserError, match="varlen needs a GPU and half precision"):
        choose_attention(VARLEN, meta_model, "bf16", "cpu", ())
    wide = build_meta_model(LlamaConfig(**SHAPE, head_dim=512))
    assert choose_attention("auto", wide, "bf16", "cuda", (VARLEN,), packing=True) == "sdpa"
    with pytest.raises(UserError, match="attention must be one that the model supports"):
        choose_attention(VARLEN, wide, "bf16", "cuda", (VARLEN,), packing=True)
    own = SimpleNamespace(config=meta_model.config, _supports_flash_attn=True)  # looks nothing up
    assert choose_attention("auto", own, "bf16", "cuda", (VARLEN,), packing=True) == "sdpa"
    assert has_varlen_kernel() <= torch.cuda.is_available()

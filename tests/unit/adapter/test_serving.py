"""A mixed batch, row by row, against the model with the row's adapter alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, OPTConfig

from diablo_ds.adapter.attach import load_deltas, named_deltas
from diablo_ds.adapter.serving import Adapters
from diablo_ds.errors import UserError
from tests.tiny import build_model
from tests.unit.adapter.models import attach_to

KINDS = {
    "math": {"num_blocks": "4"},
    "code": {"num_blocks": "8"},
    "short": {"num_blocks": "4", "targets": ("up_proj", "down_proj"), "layers": "1"},
}
CHOSEN = ["code", None, "math", "short", "math"]


def _tuned(kind, seed):
    """A model with one adapter of random deltas, and these."""
    model = build_model("llama").eval()
    attach_to(model, **kind)
    torch.manual_seed(seed)
    deltas = {name: 0.1 * torch.randn_like(delta) for name, delta in named_deltas(model).items()}
    load_deltas(model, deltas)
    return model, deltas


@pytest.fixture(scope="module")
def models():
    """The base, and by adapter the model with it alone and its deltas."""
    tuned = {name: _tuned(kind, seed) for seed, (name, kind) in enumerate(KINDS.items())}
    base = build_model("llama").eval()
    return (
        base,
        {None: base} | {n: m for n, (m, _) in tuned.items()},
        {n: d for n, (_, d) in tuned.items()},
    )


def test_each_row_is_the_model_with_its_adapter_alone(models):
    base, alone, deltas = models
    adapters = Adapters(base, deltas)
    ids = torch.randint(256, (len(CHOSEN), 9))
    with torch.no_grad():
        before = base(ids).logits
        with adapters.chosen(CHOSEN):
            mixed = base(ids).logits
        for row, name in enumerate(CHOSEN):
            assert_close(
                mixed[row], alone[name](ids[row : row + 1]).logits[0], atol=1e-5, rtol=1e-5
            )
        assert not torch.allclose(mixed[0], before[0], atol=1e-2)
        assert torch.equal(base(ids).logits, before)


def test_generate_continues_each_row_as_its_model_does(models):
    base, alone, deltas = models
    adapters = Adapters(base, deltas)
    ids = torch.randint(256, (len(CHOSEN), 5))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 263}
    with adapters.chosen(CHOSEN):
        mixed = base.generate(ids, **options)
    for row, name in enumerate(CHOSEN):
        single = alone[name].generate(ids[row : row + 1], **options)[0]
        assert torch.equal(mixed[row][: len(single)], single)
    with adapters.chosen([name for name in CHOSEN for _ in range(2)]):
        beams = base.generate(ids, num_beams=2, **options)
    single = alone["math"].generate(ids[2:3], num_beams=2, **options)[0]
    assert torch.equal(beams[2][: len(single)], single)


def test_layers_that_see_all_tokens_as_rows():
    """OPT's feed-forward layers."""
    config = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=264
    )
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).eval()
    alone = copy.deepcopy(base)
    attach_to(alone)
    deltas = {name: 0.1 * torch.randn_like(delta) for name, delta in named_deltas(alone).items()}
    load_deltas(alone, deltas)
    ids = torch.randint(256, (3, 5))
    with torch.no_grad(), Adapters(base, {"a": deltas}).chosen([None, "a", None]):
        mixed = base(ids).logits
    with torch.no_grad():
        assert_close(mixed[1], alone(ids[1:2]).logits[0], atol=1e-5, rtol=1e-5)
        assert_close(mixed[::2], base(ids[::2]).logits, atol=1e-5, rtol=1e-5)


def test_an_expert_of_several_is_refused():
    model = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    with pytest.raises(UserError, match=r"got the expert experts\.0"):
        Adapters(model, {"a": {"experts.0.delta": torch.zeros(2, 2, 2)}})


def test_gradients_reach_what_comes_before(models):
    base, alone, deltas = models
    x = torch.randn(2, 4, 32, requires_grad=True)
    with Adapters(base, deltas).chosen(["code", None]):
        base(inputs_embeds=x).logits.sum().backward()
    mixed, x.grad = x.grad, None
    for row, name in enumerate(("code", None)):
        alone[name](inputs_embeds=x[row : row + 1]).logits.sum().backward()
    assert_close(mixed, x.grad, atol=1e-4, rtol=1e-4)


def test_a_base_in_bf16_gets_its_adapters_in_bf16(models):
    _, _, deltas = models
    base = build_model("llama").eval().bfloat16()
    with torch.no_grad(), Adapters(base, deltas).chosen(["math", None]):
        assert base(torch.randint(256, (2, 4))).logits.dtype == torch.bfloat16


def test_what_is_wrong_is_refused_and_leaves_the_base_as_it_was(models):
    base, alone, deltas = models
    adapters = Adapters(base, deltas)
    ids = torch.randint(256, (2, 4))
    with (
        pytest.raises(UserError, match=r"one of math, code, short or None; got \['maths'\]"),
        adapters.chosen(["maths", None]),
    ):
        pass
    with (
        pytest.raises(UserError, match="3 names and a batch of 2 rows"),
        adapters.chosen(["math", None, "code"]),
    ):
        base(ids)
    with (
        adapters.chosen(["math", None]),
        pytest.raises(UserError, match="a block within another"),
        adapters.chosen(["math", None]),
    ):
        pass
    assert not any(module._forward_hooks for module in base.modules())
    key, delta = next(iter(deltas["math"].items()))
    for wrong, rule in (
        ({"model.layers.7.mlp.up_proj.delta": delta}, "layers.7.* in adapter 'a'"),
        ({"model.norm.delta": delta}, "got 'model.norm.delta'.*, a LlamaRMSNorm"),
        ({key.removesuffix(".delta"): delta}, 'must be "<layer>.delta"'),
        ({key: delta[1:]}, "blocks that fill the layer"),
        ({key: delta[0]}, "blocks that fill the layer"),
        ({key: delta / 0}, "must be finite; got NaN or infinity in model.layers"),
    ):
        with pytest.raises(UserError, match=rule):
            Adapters(base, {"a": wrong})
    with pytest.raises(UserError, match="a DiaBloLinear"):
        Adapters(alone["math"], {"a": {key: delta}})

"""A layer's product: that of the trainer, in every dtype and mode; and what cannot have a delta."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from diablo_ds.adapter.attach import attach, load_deltas, named_deltas
from diablo_ds.adapter.base import _BASES, FrozenBase
from diablo_ds.errors import UserError
from diablo_ds.peft import DiaBloConfig, DiaBloTunerLinear
from tests.peft.models import base, config, deltas, logits, tiny_peft_model, tokens
from tests.tiny import build_model


class Two(nn.Module):
    """Two layers under names of no family."""

    def __init__(self, **changes) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def dense(layer: DiaBloTunerLinear, x: torch.Tensor, *names: str) -> torch.Tensor:
    weight = layer.base_layer.weight + sum(layer.get_delta_weight(name) for name in names)
    return nn.functional.linear(x, weight, layer.base_layer.bias)


def two(**changes) -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(
        Two(), config(task_type=None, target_modules=["first", "second"], **changes)
    )


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_gradients_are_those_of_the_trainers_model(family, dtype):
    model = get_peft_model(base(family).to(dtype), config(dropout=0.0))
    assert {delta.dtype for delta in deltas(model).values()} == {torch.float32}
    ours = base(family).to(dtype)
    counts = {
        name.removeprefix("base_model.model."): layer.diablo_delta["default"].shape[0]
        for name, layer in model.named_modules()
        if isinstance(layer, DiaBloTunerLinear)
    }
    attach(ours, counts)
    load_deltas(
        ours,
        {
            name.removeprefix("base_model.model.").replace("diablo_delta.default", "delta"): delta
            for name, delta in deltas(model).items()
        },
    )
    torch.testing.assert_close(logits(model), logits(ours), rtol=0, atol=0)
    for each in (model, ours):
        each(input_ids=tokens(), labels=tokens()).loss.backward()
    for mine, trainers in zip(deltas(model).values(), named_deltas(ours).values(), strict=True):
        assert torch.equal(mine.grad, trainers.grad.float())


@pytest.mark.parametrize("apart", ["hook", "bias"])
def test_a_base_that_must_be_called_gives_the_same_bits(apart):
    model, x = two(num_blocks=2), torch.randn(3, 5, 8)
    expected = model(x)
    layer = model.base_model.model.first
    assert layer._can_be_fused(x)
    if apart == "hook":
        layer.base_layer.register_forward_hook(lambda *_: None)
    else:
        layer.base_layer.bias.requires_grad_(True)
    assert not layer._can_be_fused(x)
    result = model(x)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    if apart == "bias":
        result.sum().backward()
        assert layer.base_layer.bias.grad.any()


def test_gradients_where_the_base_is_called_are_exact():
    layer = two(num_blocks=2).base_model.model.first.double()
    layer.base_layer.register_forward_hook(lambda *_: None)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.diablo_delta["default"])
    assert torch.autograd.gradcheck(lambda x, _: layer(x), inputs)


def test_dropout_acts_on_the_input_of_the_adapter_alone():
    layer = two(num_blocks=2, dropout=0.5).base_model.model.first.train()
    x = torch.ones(4000, 8)
    with torch.no_grad():
        mean = layer(x).mean(0)
        torch.testing.assert_close(mean, dense(layer, x[0], "default"), rtol=0.1, atol=0.1)
        assert layer(x).std(0).min() > 0
        torch.testing.assert_close(layer.eval()(x), dense(layer, x, "default"))
        layer.diablo_delta["default"].zero_()
        torch.testing.assert_close(layer.train()(x), layer.base_layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deltas_are_fp32_beside_a_base_in_half_precision(dtype, autocast_adapter_dtype):
    model = get_peft_model(
        build_model().to(dtype).eval(), config(), autocast_adapter_dtype=autocast_adapter_dtype
    )
    expected = torch.float32 if autocast_adapter_dtype else dtype
    assert {delta.dtype for delta in deltas(model).values()} == {expected}
    assert logits(model).dtype == dtype
    model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all(delta.grad.dtype == expected for delta in deltas(model).values())


def test_autocast_computes_in_its_dtype():
    model = tiny_peft_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model.base_model.model.model.layers[0].self_attn.q_proj(torch.randn(2, 32))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_gives_the_same_gradients(use_reentrant):
    gradients = []
    for recompute in (False, True):
        model = tiny_peft_model()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model.train()(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append([delta.grad for delta in deltas(model).values()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


def test_a_new_adapter_changes_nothing():
    model = tiny_peft_model(init_weights=True)
    torch.testing.assert_close(logits(model), logits(build_model().eval()), rtol=0, atol=0)
    assert all(delta.requires_grad for delta in deltas(model).values())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(deltas(model))


def names(model: nn.Module) -> set[str]:
    return {n.removeprefix("base_model.model.").partition(".diablo")[0] for n in deltas(model)}


def test_targets_are_chosen_by_peft_s_rules():
    every = names(tiny_peft_model())
    assert len(every) == 10
    chosen = names(tiny_peft_model(layers_to_transform=[1]))
    assert chosen == {name for name in every if ".1." in name}
    chosen = names(tiny_peft_model(exclude_modules=["down_proj"]))
    assert chosen == {name for name in every if "down_proj" not in name}
    assert names(tiny_peft_model(target_modules=r".*\.0\..*q_proj")) == {
        "model.layers.0.self_attn.q_proj"
    }
    assert len(names(tiny_peft_model(target_modules="all-linear"))) == 14


def test_block_counts_by_pattern_and_by_share():
    pattern = {r"layers\.1\..*q_proj": 2, "q_proj": 8, r"down_proj": 16}
    counts = {n: len(d) for n, d in deltas(tiny_peft_model(num_blocks_pattern=pattern)).items()}
    for name, count in counts.items():
        layer = name.removeprefix("base_model.model.").partition(".diablo")[0]
        assert count == pattern.get(get_pattern_key(pattern, layer), 4)
    shared = tiny_peft_model(num_blocks="auto:25%")
    assert {len(delta) for delta in deltas(shared).values()} == {4}
    assert shared.peft_config["default"].num_blocks == 4


WRONG = {
    "num_blocks=5": ({"num_blocks": 5}, "num_blocks must divide both widths.*nearest that work: 4"),
    "num_blocks=0": ({"num_blocks": 0}, "integer from 1; got num_blocks=0"),
    "num_blocks=true": ({"num_blocks": True}, "integer from 1; got num_blocks=True"),
    "a word": ({"num_blocks": "many"}, "got num_blocks='many'"),
    "no share": ({"num_blocks": "auto:x"}, "needs a share"),
    "a pattern of 0": ({"num_blocks_pattern": {"q_proj": 0}}, "got q_proj=0"),
    "an unused pattern": ({"num_blocks_pattern": {"o_proj": 2}}, "must match a target.*o_proj"),
    "dropout": ({"dropout": 1.0}, "dropout must be a number in"),
    "dropout in words": ({"dropout": "half"}, "dropout must be a number in.*'half'"),
    "a broken pattern": ({"num_blocks_pattern": {"(": 2}}, "num_blocks_pattern must hold regular"),
    "a list for a pattern": ({"num_blocks_pattern": [2]}, "must be numbers by regular expression"),
    "a broken target": ({"target_modules": "("}, "target_modules must hold regular expressions"),
    "layers and a regex": (
        {"target_modules": ".*q_proj", "layers_to_transform": [0]},
        "cannot be used when target_modules is a str",
    ),
    "a pattern alone": ({"layers_pattern": "layers"}, "must come with layers_to_transform"),
    "an embedding": ({"target_modules": ["embed_tokens"]}, "embed_tokens .Embedding. is not supp"),
    "a norm": ({"target_modules": ["q_proj", "norm"]}, "norm .*RMSNorm. is not supported"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_what_cannot_be_is_refused_before_a_layer_is_changed(kind):
    changes, message = WRONG[kind]
    model = build_model()
    before = list(model.state_dict())
    with pytest.raises(UserError, match=r"(?s)" + message):
        get_peft_model(model, config(**changes))
    assert list(model.state_dict()) == before
    assert not any(isinstance(module, DiaBloTunerLinear) for module in model.modules())


def test_a_second_adapter_that_cannot_be_leaves_the_first_alone():
    model = tiny_peft_model()
    before, expected = list(model.state_dict()), logits(model)
    with pytest.raises(UserError, match="must divide"):
        model.add_adapter("second", config(num_blocks=5))
    assert list(model.state_dict()) == before
    assert set(model.peft_config) == {"default"}
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)


def test_layers_of_gpt2_are_refused_by_their_class():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16))
    with pytest.raises(UserError, match=r"c_attn .Conv1D. is not supported.*must be linear"):
        get_peft_model(model, DiaBloConfig(num_blocks=2, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype):
    class Quantised(nn.Linear):
        pass

    model = Two()
    model.second = Quantised(12, 4, bias=False)
    model.second.weight = nn.Parameter(model.second.weight.to(dtype), requires_grad=False)
    with pytest.raises(UserError, match=r"second .Quantised. is not supported: .*float dtype"):
        get_peft_model(model, config(task_type=None, target_modules=["second"], num_blocks=2))


def test_a_layer_whose_forward_is_not_called_is_refused():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(UserError, match=r"out_proj of torch.nn.MultiheadAttention"):
        get_peft_model(model, config(task_type=None, target_modules=["out_proj"], num_blocks=2))


def test_a_base_that_is_announced_can_have_deltas(monkeypatch):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 12, 4
            self.weight = nn.Parameter(torch.randint(-9, 9, (4, 12)), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.weight.to(x.dtype) * 0.1).t()

    monkeypatch.setitem(_BASES, Scaled, FrozenBase)
    model = Two()
    model.second = Scaled()
    peft_model = get_peft_model(
        model, config(task_type=None, target_modules=["second"], num_blocks=2)
    )
    layer, x = peft_model.base_model.model.second, torch.randn(3, 12)
    expected = layer.base_layer(x) + x @ layer.get_delta_weight("default").t()
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(UserError, match="merge needs a base whose weight is a dense matrix"):
        peft_model.merge_adapter()


def test_a_compiled_model_computes_the_same():
    model = two(num_blocks=2)
    x = torch.randn(3, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=False)
    torch.testing.assert_close(compiled(x), model(x))

"""The door for bases without a dense weight of floats, by a small layer of 8-bit integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from diablo_ds.adapter import base
from diablo_ds.adapter.attach import attach, diablo_layers, without_deltas
from diablo_ds.adapter.base import FrozenBase, base_of, register_base
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.adapter.merging import merge
from diablo_ds.adapter.targets import resolve_num_blocks, select_targets
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.compilation import compile_layers
from tests.tiny import build_model

TARGETS = ("q_proj", "down_proj")


class Int8Linear(nn.Module):
    """A weight of 8-bit integers, with a scale per output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        rounded = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("scale", scale)  # [out_features, 1]

    def forward(self, input: Tensor) -> Tensor:
        return input @ (self.weight * self.scale).t()


class Int8Base(FrozenBase):
    """How it multiplies."""

    def multiply(self, layer: Any, x: Tensor) -> Tensor:
        return x @ (layer.weight * layer.scale).t()


@pytest.fixture(autouse=True)
def _announced(monkeypatch):
    monkeypatch.setattr(base, "_BASES", dict(base._BASES))
    register_base(Int8Linear, Int8Base)


def _quantised() -> nn.Module:
    """A tiny Llama whose layers of `TARGETS` are quantised."""
    model = build_model()
    model.config.use_cache = False
    for name in select_targets(model, TARGETS):
        parent_name, _, child_name = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, child_name, Int8Linear(getattr(parent, child_name)))
    return model.requires_grad_(False)


def _dense() -> nn.Module:
    """The same model with the integers written out as floats."""
    model, quantised = build_model(), _quantised()
    model.config.use_cache = False
    for name, module in quantised.named_modules():
        if isinstance(module, Int8Linear):
            model.get_submodule(name).weight.data = module.weight * module.scale
    return model


def _with_deltas(model: nn.Module, **options: Any) -> dict[str, nn.Parameter]:
    deltas = attach(model, resolve_num_blocks(select_targets(model, TARGETS), "4"), **options)
    torch.manual_seed(1)
    for delta in deltas.values():
        nn.init.normal_(delta, std=0.1)
    return deltas


def _results(model: Any, deltas: dict[str, nn.Parameter]) -> list[Tensor]:
    torch.manual_seed(2)
    tokens = torch.randint(0, 256, (2, 12))
    loss = model(input_ids=tokens).logits.log_softmax(-1)[..., 3].sum()
    return [loss.detach(), *torch.autograd.grad(loss, list(deltas.values()))]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_deltas_on_integers_train_with_the_gradients_of_the_dense_model(dropout):
    dense, quantised = _dense(), _quantised()
    names = set(quantised.state_dict())
    of_dense = _with_deltas(dense, dropout=dropout)
    deltas = _with_deltas(quantised, dropout=dropout)
    assert list(deltas) == list(of_dense)
    assert set(quantised.state_dict()) == names | set(deltas)  # the base keeps its names
    layer = diablo_layers(quantised)["model.layers.0.self_attn.q_proj"]
    assert layer.weight.dtype == torch.int8
    assert {n for n, p in quantised.named_parameters() if p.requires_grad} == set(deltas)
    results = _results(quantised, deltas)
    assert_close(results, _results(dense, of_dense))
    assert all(gradient.norm() > 0 for gradient in results[1:])


def test_the_integers_alone_are_what_is_left_without_deltas():
    model, tokens = _quantised(), torch.randint(0, 256, (2, 12))
    expected = model(input_ids=tokens).logits
    _with_deltas(model)
    assert not torch.equal(model(input_ids=tokens).logits, expected)
    with without_deltas(model):
        assert torch.equal(model(input_ids=tokens).logits, expected)


def test_layers_of_integers_are_compiled():
    torch._dynamo.reset()
    model = _quantised()
    deltas = _with_deltas(model)
    model.enable_input_require_grads()
    expected = _results(model, deltas)
    compile_layers(model, backend="aot_eager")
    assert_close(_results(model, deltas), expected, rtol=1e-4, atol=1e-5)
    assert all(layer.runs_compiled for layer in decoder_layers(model))


def test_what_a_base_without_a_dense_weight_cannot_do_is_refused():
    layer = Int8Linear(nn.Linear(8, 8))
    with pytest.raises(UserError, match="'summed' needs a base whose weight is a dense matrix"):
        DiaBloLinear(layer, num_blocks=2, delta_path="summed")
    model = nn.Sequential(DiaBloLinear(layer, num_blocks=2))
    with pytest.raises(UserError, match=r"merge needs a base .*; got Int8Base"):
        merge(model)


def test_only_announced_classes_are_targets():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), Int8Linear(nn.Linear(4, 4)))
    assert list(select_targets(model, ("re:.*",))) == ["0", "2"]
    with pytest.raises(UserError, match=r"must be linear; got Conv1d; .*register_base"):
        base_of(model[1])
    integers = nn.Linear(4, 4).requires_grad_(False).to(torch.float32)
    integers.weight.data = integers.weight.data.to(torch.int8)
    with pytest.raises(UserError, match=r"must be of a float dtype; got Linear with torch\.int8"):
        base_of(integers)

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.adapter.paths import DELTA_PATHS, resolve_delta_path
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.errors import UserError


def _layer(**options) -> DiaBloLinear:
    layer = DiaBloLinear(nn.Linear(12, 8, dtype=torch.float64), num_blocks=4, **options)
    nn.init.normal_(layer.delta)
    return layer


def test_a_new_layer_computes_what_its_base_does():
    base = nn.Linear(12, 8)
    layer = DiaBloLinear(base, num_blocks=4)
    x = torch.randn(3, 12)
    assert_close(layer(x), base(x))
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert set(dict(layer.named_parameters())) == {"weight", "bias", "delta"}


def test_only_the_delta_is_trained_without_any_framework():
    layer = DiaBloLinear(nn.Linear(12, 8), num_blocks=4)
    before = layer.weight.clone()
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    layer(torch.randn(5, 12)).square().sum().backward()
    optimizer.step()
    assert layer.weight.grad is None
    assert torch.equal(layer.weight, before)
    assert layer.delta.abs().sum() > 0


def test_merged_equals_unmerged_and_back():
    layer, x = _layer(), torch.randn(3, 12, dtype=torch.float64)
    expected, weight = layer(x), layer.weight.clone()
    layer.merge()
    layer.merge()  # a second one adds nothing
    assert_close(layer(x), expected)
    layer.unmerge()
    assert_close(layer.weight.detach(), weight)
    assert_close(layer(x), expected)


def test_dropout_acts_on_the_adapter_alone_and_only_in_training():
    layer, x = _layer(dropout=0.5), torch.randn(400, 12, dtype=torch.float64)
    base = nn.functional.linear(x, layer.weight, layer.bias)
    delta_part = layer.eval()(x) - base
    layer.train()
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, 0.5)
    torch.manual_seed(1)
    dense = torch.block_diag(*layer.delta)
    assert_close(layer(x) - base, dropped @ dense)
    assert_close(delta_part, x @ dense)


def test_the_delta_takes_the_dtype_of_the_base():
    layer = DiaBloLinear(nn.Linear(12, 8, dtype=torch.bfloat16), num_blocks=4)
    assert layer.delta.dtype == torch.bfloat16


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(UserError, match="dropout must be in"):
        DiaBloLinear(nn.Linear(12, 8), num_blocks=4, dropout=dropout)


def test_a_block_count_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="nearest that work: 4"):
        DiaBloLinear(nn.Linear(12, 8), num_blocks=5)


def test_auto_is_summed_in_fp32_alone():
    assert resolve_delta_path("auto", torch.float32, 0.0) == "summed"
    assert resolve_delta_path("auto", torch.float32, 0.1) == "fused"
    assert resolve_delta_path("auto", torch.bfloat16, 0.0) == "fused"
    assert resolve_delta_path("auto", torch.bfloat16, 0.0, "cuda") == "prefilled"
    assert resolve_delta_path("auto", torch.float32, 0.0, "cuda") == "summed"
    assert resolve_delta_path("summed", torch.bfloat16, 0.0) == "summed"


def test_summed_needs_no_dropout_and_a_known_name():
    with pytest.raises(UserError, match=r"needs dropout=0.*got dropout=0\.1"):
        DiaBloLinear(nn.Linear(4, 4), num_blocks=2, dropout=0.1, delta_path="summed")
    with pytest.raises(UserError, match=r"one of fused, summed, .*; got delta_path='other'"):
        DiaBloLinear(nn.Linear(4, 4), num_blocks=2, delta_path="other")


@pytest.mark.parametrize("path", ["summed", "prefilled"])
def test_paths_give_the_same_output_and_gradients(path):
    results = []
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    weight, values = torch.randn(12, 8).double(), torch.randn(4, 2, 3).double()
    for delta_path in ("fused", path):
        base = nn.Linear(8, 12, dtype=torch.float64)
        layer = DiaBloLinear(base, num_blocks=4, delta_path=delta_path)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.zero_()
            layer.delta.copy_(values)
        y = layer(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.delta))))
    assert_close(results[0], results[1])


@pytest.mark.parametrize("path", ["fused", "prefilled"])
def test_a_path_with_dropout_trains_on_inputs_that_are_not_contiguous(path):
    layer = DiaBloLinear(nn.Linear(12, 8), num_blocks=4, dropout=0.5, delta_path=path)
    x = torch.randn(12, 3, 5).permute(2, 1, 0).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert layer.delta.grad.abs().sum() > 0


def test_the_run_config_takes_every_path():
    (declared,) = (s for s in settings_of(RunConfig) if s.name == "delta_path")
    assert declared.choices == ("auto", *DELTA_PATHS)

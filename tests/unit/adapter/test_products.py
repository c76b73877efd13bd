"""The product of base and delta: every path against dense matrices, fp64 and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from diablo_ds.adapter import products
from diablo_ds.adapter.autograd import block_linear, diablo_linear
from diablo_ds.adapter.blocks import delta_shape, diagonal_blocks
from diablo_ds.adapter.paths import DELTA_PATHS, TRITON_PATHS
from diablo_ds.errors import UserError
from tests.unit.adapter.block_cases import CASES, check, dense_delta

TORCH_PATHS = [path for path in DELTA_PATHS if path not in TRITON_PATHS]


def _dense_linear(x, weight, bias, delta):
    """The reference: one product with the dense sum of weight and delta."""
    return F.linear(x, weight + dense_delta(delta), bias)


WIDTHS = [(12, 8, 4), (8, 12, 2), (16, 16, 16), (6, 9, 1)]


@pytest.mark.parametrize(("in_features", "out_features", "num_blocks"), WIDTHS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("leading", [(5,), (2, 3), ()])
@pytest.mark.parametrize("path", TORCH_PATHS)
def test_forward_equals_dense(in_features, out_features, num_blocks, bias, leading, path):
    x = torch.randn(*leading, in_features, dtype=torch.float64)
    weight = torch.randn(out_features, in_features, dtype=torch.float64)
    b = torch.randn(out_features, dtype=torch.float64) if bias else None
    shape = delta_shape(num_blocks, in_features, out_features)
    delta = torch.randn(shape, dtype=torch.float64)
    assert_close(
        diablo_linear(x, weight, b, delta, path=path),
        _dense_linear(x, weight, b, delta),
    )


@pytest.mark.parametrize(("in_features", "out_features", "num_blocks"), WIDTHS)
@pytest.mark.parametrize("path", TORCH_PATHS)
def test_delta_gradient_is_the_diagonal_of_the_dense_gradient(
    in_features, out_features, num_blocks, path
):
    x = torch.randn(2, 3, in_features, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out_features, in_features, dtype=torch.float64)
    delta = torch.randn(delta_shape(num_blocks, in_features, out_features), dtype=torch.float64)
    grad_y = torch.randn(2, 3, out_features, dtype=torch.float64)

    # Full fine-tuning of W + D, by autograd alone.
    full = (weight + dense_delta(delta)).requires_grad_()
    dense_x = x.detach().clone().requires_grad_()
    (dense_x @ full.T).backward(grad_y)

    delta.requires_grad_()
    before = weight.clone()
    diablo_linear(x, weight, None, delta, path=path).backward(grad_y)
    assert torch.equal(weight, before)
    assert_close(delta.grad, diagonal_blocks(full.grad, num_blocks))
    assert_close(x.grad, dense_x.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", TORCH_PATHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_path_equals_fp64(case, path, dtype):
    if path == "summed" and case.adapter:
        with pytest.raises(UserError, match="must have one input"):
            check(case, path, dtype)
    else:
        check(case, path, dtype)


@pytest.mark.parametrize("bias", [False, True])
def test_prefilled_writes_the_output_in_place(bias):
    """No copy of the output's size: it is all that is allocated."""
    x, weight = torch.randn(64, 32), torch.randn(1024, 32)
    delta = torch.randn(4, 8, 256)
    b = torch.randn(1024) if bias else None
    with torch.profiler.profile(profile_memory=True) as trace:
        y = products.product(x, None, weight, b, delta, "prefilled")
    events = trace.key_averages()
    allocated = sum(event.self_cpu_memory_usage for event in events if event.key[:4] == "aten")
    assert y.nbytes <= allocated < 1.5 * y.nbytes


@pytest.mark.parametrize("path", ["fused", "prefilled"])
@pytest.mark.parametrize("separate_input", [False, True])
def test_gradcheck(separate_input, path):
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(12, 8, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    delta = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    x_adapter = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, delta, x_adapter) if separate_input else (x, delta)
    assert torch.autograd.gradcheck(
        lambda x, delta, *xa: diablo_linear(x, weight, bias, delta, *xa, path=path), inputs
    )


def test_a_summed_weight_is_put_back_bit_by_bit_even_after_an_error():
    weight, delta = torch.randn(6, 9).bfloat16(), torch.randn(3, 3, 2).bfloat16()
    before, version = weight.clone(), weight._version

    def fail_inside():
        with products.summed_weight(weight, delta) as summed:
            assert torch.equal(summed, before + dense_delta(delta))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert torch.equal(weight, before)
    assert weight._version == version  # or autograd would refuse the saved weight


def test_a_layer_may_be_used_again_between_its_forward_and_backward():
    x, weight = torch.randn(4, 6), torch.randn(9, 6)
    delta = torch.randn(3, 2, 3, requires_grad=True)
    first = diablo_linear(x, weight, None, delta, path="summed")
    second = diablo_linear(2 * x, weight, None, delta, path="summed")
    (first.sum() + second.sum()).backward()
    expected = delta.grad.clone()
    delta.grad = None
    diablo_linear(3 * x, weight, None, delta).sum().backward()
    assert_close(delta.grad, expected)


def test_a_summed_product_has_one_input():
    x, weight, delta = torch.randn(4, 6), torch.randn(9, 6), torch.randn(3, 2, 3)
    with pytest.raises(UserError, match="one input; got path='summed'"):
        diablo_linear(x, weight, None, delta, x.clone(), path="summed")


@pytest.mark.parametrize("block", [8, 32])
def test_the_delta_gradient_in_bf16_has_the_precision_of_its_inputs(block):
    x, weight = torch.randn(50, 4 * block).bfloat16(), torch.randn(4 * block, 4 * block).bfloat16()
    delta = torch.zeros(4, block, block).bfloat16().requires_grad_()
    grad_y = torch.randn(50, 4 * block).bfloat16()
    diablo_linear(x, weight, None, delta).backward(grad_y)
    expected = torch.einsum(
        "tni,tno->nio", x.float().view(50, 4, block), grad_y.float().view(50, 4, block)
    )
    assert_close(delta.grad, expected.bfloat16(), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 1.0])
def test_in_bf16_all_formulations_err_by_the_rounding_of_their_output(share):
    torch.manual_seed(0)
    x = torch.randn(64, 256, dtype=torch.bfloat16)
    weight = torch.randn(256, 256, dtype=torch.bfloat16) / 16
    delta = share / 16 * torch.randn(16, 16, 16, dtype=torch.bfloat16)
    exact = _dense_linear(x.double(), weight.double(), None, delta.double())
    errors = {
        path: float((diablo_linear(x, weight, None, delta, path=path) - exact).norm())
        for path in TORCH_PATHS
    }
    # bf16 has steps of 2^-8: 0.0017 on average, and up to the root of 2 times that when done twice.
    assert errors["summed"] < 0.002 * exact.norm()
    assert errors["fused"] < 0.0027 * exact.norm()
    assert errors["prefilled"] < 0.0027 * exact.norm()


def test_inputs_that_are_not_contiguous():
    x = torch.randn(8, 3, 2, dtype=torch.float64).permute(2, 1, 0)
    weight, delta = torch.randn(8, 8, dtype=torch.float64), torch.randn(2, 4, 4).double()
    expected = _dense_linear(x, weight, None, delta)
    assert_close(diablo_linear(x, weight, None, delta), expected)
    # A sum's gradient is an expanded scalar, without memory of its own.
    delta.requires_grad_()
    diablo_linear(x, weight, None, delta).sum().backward()
    expected = torch.einsum("tni,o->nio", x.reshape(-1, 2, 4), torch.ones(4).double())
    assert_close(delta.grad, expected)


def test_autocast_casts_all_operands():
    x, weight, delta = torch.randn(3, 8), torch.randn(8, 8), torch.randn(2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = diablo_linear(x, weight, None, delta)
    assert y.dtype == torch.bfloat16
    expected = diablo_linear(x.bfloat16(), weight.bfloat16(), None, delta.bfloat16())
    assert torch.equal(y, expected)


@pytest.mark.parametrize("leading", [(5,), (2, 3), (), (0,)])
def test_the_deltas_part_alone_is_that_of_the_product(leading):
    x = torch.randn(*leading, 12, dtype=torch.float64, requires_grad=True)
    delta = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(8, 12, dtype=torch.float64)
    y, expected = block_linear(x, delta), diablo_linear(x, zero, None, delta)
    grad_y = torch.randn_like(y)
    assert_close(y, expected)
    assert_close(
        torch.autograd.grad(y, (x, delta), grad_y),
        torch.autograd.grad(expected, (x, delta), grad_y),
    )

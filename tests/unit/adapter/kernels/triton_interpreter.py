"""The Triton kernels in Triton's interpreter; a process of its own, started by a test.

TRITON_INTERPRET must be set before triton is imported, and holds for the whole process.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from diablo_ds.adapter.block_products import delta_gradient
from diablo_ds.adapter.kernels import triton_blocks, triton_tiles
from diablo_ds.adapter.paths import SUMMED_PATHS, TRITON_PATHS
from diablo_ds.adapter.products import summed_weight
from tests.unit.adapter.block_cases import CASES, Case, check, dense_delta

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_numpy(tensor, *scope):
    """Let a tensor of one element bound a loop: numpy 2.4 makes no int of an array any more."""
    _patch_tensor(tensor, *scope)
    set_attribute = scope[0].set_attr if scope else setattr  # no scope before Triton 3.6
    set_attribute(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_tensor_for_numpy


COMBINATIONS = [
    *((case, torch.bfloat16) for case in CASES),
    *((case, torch.float32) for case in CASES if case.in_block < 128),  # slow
    *((case, torch.float16) for case in CASES[2:4]),
]


@pytest.mark.parametrize("path", TRITON_PATHS)
@pytest.mark.parametrize(("case", "dtype"), COMBINATIONS, ids=str)
def test_forward_and_gradients_equal_fp64(case, dtype, path):
    if path not in SUMMED_PATHS or not case.adapter:
        check(case, path, dtype, repeat=dtype == torch.float16)


def _integers(*shape: int) -> torch.Tensor:
    """Return numbers whose sums are exact, in whatever order they are added."""
    return torch.randint(-4, 5, shape).float()


@pytest.mark.parametrize("tile", triton_tiles.PRODUCT_TILES, ids=str)
@pytest.mark.parametrize("block", [(9, 24), (64, 224)], ids=str)
def test_a_product_writes_its_rows_and_nothing_else(tile, block, monkeypatch):
    monkeypatch.setattr(triton_blocks, "FP32_TILES", (tile,))
    num_blocks, tokens = 2, 130
    x, delta = _integers(tokens, num_blocks * block[0]), _integers(num_blocks, *block)
    around = torch.full((tokens + 2, num_blocks * block[1] + 14), 7.0)
    y = around[1:-1, 6:-8]
    product = x @ torch.block_diag(*delta)
    bias = _integers(y.shape[1])
    triton_blocks.block_product(x, delta, y, bias)
    assert torch.equal(y, product + bias)
    triton_blocks.block_product(x, delta, y, accumulate=True)
    assert torch.equal(y, 2 * product + bias)
    y.fill_(7.0)
    assert (around == 7).all()


@pytest.mark.parametrize("tile", triton_tiles.GRADIENT_TILES, ids=str)
@pytest.mark.parametrize("num_splits", [1, 3, 40])
def test_the_delta_gradient_is_the_same_for_any_tile_and_split(tile, num_splits, monkeypatch):
    monkeypatch.setattr(triton_blocks, "FP32_TILES", (tile,))
    x, grad_y = _integers(300, 2 * 72), _integers(300, 2 * 136)
    expected = delta_gradient(x, grad_y, torch.zeros(2, 72, 136), "fused")
    found = triton_blocks.delta_gradient(x, grad_y, 2, num_splits=num_splits)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(2, 72, 136), (3, 9, 24), (1, 16, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_summed_weight_has_the_bits_of_pytorchs_sum_and_gets_its_own_back(shape, dtype):
    delta = torch.randn(shape, dtype=dtype)
    weight = torch.randn(shape[0] * shape[2], shape[0] * shape[1], dtype=dtype)
    before = weight.clone()
    with summed_weight(weight, delta, "triton_summed") as summed:
        assert torch.equal(summed, before + dense_delta(delta))
    assert torch.equal(weight, before)


def test_offsets_beyond_two_to_the_31(tmp_path):
    stride, tokens = 1 << 23, 300
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(tokens * stride,))
    wide = torch.from_numpy(file).view(tokens, stride)
    x, delta = _integers(tokens, 18).half(), _integers(2, 9, 16).half()
    y = wide[:, :32]
    triton_blocks.block_product(x, delta, y)
    expected = x @ torch.block_diag(*delta)
    assert torch.equal(y, expected)
    gradient = triton_blocks.delta_gradient(x, y, 2, num_splits=1)
    assert torch.equal(gradient, triton_blocks.delta_gradient(x, expected, 2, num_splits=1))
    y.zero_()
    triton_blocks.block_product(y, delta.transpose(1, 2), x)
    assert not x.any()


# Every two of the three together, not all three.
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("block", [(9, 24), (64, 100), (200, 40)], ids=str)
def test_both_gradients_in_one_launch_equal_two(block, accumulate):
    dtype = torch.float16 if accumulate == (block == (64, 100)) else torch.float32
    tokens, num_blocks = 600, 2
    x, grad_y = (_integers(tokens, num_blocks * width).to(dtype) for width in block)
    delta = _integers(num_blocks, *block).to(dtype)
    around = torch.full((tokens + 2, x.shape[1] + 14), 7.0, dtype=dtype)
    grad_x = around[1:-1, 6:-8]
    expected = grad_y @ torch.block_diag(*delta).T + (7 if accumulate else 0)
    gradient = triton_blocks.block_gradients(x, grad_y, delta, grad_x, accumulate=accumulate)
    assert torch.equal(grad_x, expected)
    assert torch.equal(gradient, triton_blocks.delta_gradient(x, grad_y, num_blocks))
    grad_x.fill_(7.0)
    assert (around == 7).all()


def test_two_launches_are_one_of_the_choices_for_both_gradients(monkeypatch):
    x, grad_y, delta = _integers(600, 18).half(), _integers(600, 48).half(), _integers(2, 9, 24)
    results = []
    for index in (0, -1):
        monkeypatch.setattr(triton_blocks, "fastest", lambda _, tiles, *rest, i=index: tiles[i])
        grad_x = torch.zeros_like(x)
        gradient = triton_blocks.block_gradients(x, grad_y, delta.half(), grad_x)
        results.append((grad_x, gradient))
    assert all(map(torch.equal, *results))


def test_the_number_of_splits_is_set_by_the_shape():
    assert triton_tiles.count_splits(8192, 128, 64 * 128) == 2
    assert triton_tiles.count_splits(8192, 512, 64 * 128) == 1
    assert triton_tiles.count_splits(8192, 64, 64 * 256) == 2
    assert triton_tiles.count_splits(8192, 2, 256) == 32
    assert triton_tiles.count_splits(100, 2, 256) == 1


def test_several_splits_equal_fp64():
    many = Case(2, 9, 16, leading=(600,))
    for path in ("triton_summed", "triton_prefilled"):
        for dtype in (torch.float32, torch.bfloat16):
            check(many, path, dtype)

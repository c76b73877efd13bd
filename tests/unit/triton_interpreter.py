"""The Triton kernels in Triton's interpreter; a process of its own, started by a test.

TRITON_INTERPRET must be set before triton is imported, and holds for the whole process.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from diablo_ds import blocks, triton_blocks
from tests.unit.block_cases import CASES, Case, check

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_numpy(tensor, scope):
    """Let a tensor of one element bound a loop: numpy 2.4 makes no int of an array any more."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_tensor_for_numpy


COMBINATIONS = [
    *((case, torch.bfloat16) for case in CASES),
    *((case, torch.float32) for case in CASES if case.in_block < 128),  # slow
    *((case, torch.float16) for case in CASES[:4]),
]


@pytest.mark.parametrize("path", blocks.TRITON_PATHS)
@pytest.mark.parametrize(("case", "dtype"), COMBINATIONS, ids=str)
def test_forward_and_gradients_equal_fp64(case, dtype, path):
    if path not in blocks.MERGED_PATHS or not case.adapter:
        check(case, path, dtype, repeat=dtype == torch.float16)


def _integers(*shape: int) -> torch.Tensor:
    """Return numbers whose sums are exact, in whatever order they are added."""
    return torch.randint(-4, 5, shape).float()


@pytest.mark.parametrize("tile", triton_blocks._PRODUCT_TILES, ids=str)
@pytest.mark.parametrize("block", [(9, 24), (64, 224)], ids=str)
def test_a_product_writes_its_rows_and_nothing_else(tile, block, monkeypatch):
    monkeypatch.setattr(triton_blocks, "_FP32_TILES", (tile,))
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


@pytest.mark.parametrize("tile", triton_blocks._GRADIENT_TILES, ids=str)
@pytest.mark.parametrize("num_splits", [1, 3, 40])
def test_the_delta_gradient_is_the_same_for_any_tile_and_split(tile, num_splits, monkeypatch):
    monkeypatch.setattr(triton_blocks, "_FP32_TILES", (tile,))
    x, grad_y = _integers(300, 2 * 72), _integers(300, 2 * 136)
    expected = blocks._delta_gradient(x, grad_y, torch.zeros(2, 72, 136))
    found = triton_blocks.delta_gradient(x, grad_y, 2, num_splits=num_splits)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(2, 72, 136), (3, 9, 24), (1, 16, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_merged_weight_has_the_bits_of_pytorchs_sum_and_gets_its_own_back(shape, dtype):
    delta = torch.randn(shape, dtype=dtype)
    weight = torch.randn(shape[0] * shape[2], shape[0] * shape[1], dtype=dtype)
    before = weight.clone()
    with blocks.merged_weight(weight, delta, "triton_merged") as whole:
        assert torch.equal(whole, before + blocks.dense_delta(delta))
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


def test_the_number_of_splits_is_set_by_the_shape():
    assert triton_blocks.count_splits(8192, 64, 64, 224) == 2
    assert triton_blocks.count_splits(8192, 64, 128, 448) == 1
    assert triton_blocks.count_splits(8192, 2, 9, 9) == 32
    assert triton_blocks.count_splits(100, 2, 9, 9) == 1


def test_cases_cover_several_splits():
    many = Case(2, 9, 16, leading=(600,))
    assert triton_blocks.count_splits(600, *many[:3]) > 1
    for dtype in (torch.float32, torch.bfloat16):
        check(many, "triton", dtype)

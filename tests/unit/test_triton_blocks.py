"""Triton's kernels: right in its interpreter, compiled for a GPU without one, refused elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diablo_ds import blocks, layers, triton_blocks
from tests.unit.block_cases import CASES, check

ROOT = Path(__file__).parents[2]

# Compiled for an H100: one kernel a line; tensor cores, then what none should use: atomics, stack.
COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diablo_ds import triton_kernels

POINTERS = ("x", "delta", "bias", "y", "grad_y", "grad_x", "grad_delta", "weight", "saved")

def build(kernel, dtype, num_warps, **constants):
    signature = {name: "i32" for name in kernel.arg_names}
    signature |= {name: f"*{dtype}" for name in POINTERS}
    signature |= dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names) if signature[name] != "constexpr"
        },
    )
    options = {"num_warps": num_warps, "num_stages": 2}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    words = ("wgmma", "atom.global", "red.global", "ld.local")
    print(kernel.__name__, dtype, *(w for w in words if re.search(rf"\\b{w}", ptx)))

for dtype, rows, step in (("bf16", 128, 64), ("fp32", 64, 16)):
    shape = dict(in_unit=16, out_unit=16, rows=rows, columns=rows, step=step, in_fp32=False)
    for accumulate in (True, False):
        build(
            triton_kernels.block_product, dtype, 8,
            accumulate=accumulate, has_bias=not accumulate, delta_stride_out=1, **shape
        )
    shape["rows"] = 64
    build(triton_kernels.delta_gradient, dtype, 4, **shape)
    if dtype == "bf16":
        build(
            triton_kernels.block_gradients, dtype, 8,
            accumulate=True, delta_stride_out=1, **(shape | {"columns": 256})
        )
    shape = dict(in_unit=16, out_unit=16, rows=64, columns=64)
    build(triton_kernels.add_to_diagonal, dtype, 4, delta_stride_out=1, **shape)
"""


def test_the_kernels_are_right_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/unit/triton_interpreter.py"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="triton's compiler is for Linux")
def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "block_product bf16 wgmma",
        "block_product bf16 wgmma",
        "delta_gradient bf16 wgmma",
        "block_gradients bf16 wgmma",
        "add_to_diagonal bf16",
        "block_product fp32",
        "block_product fp32",
        "delta_gradient fp32",
        "add_to_diagonal fp32",
    ]


@pytest.mark.parametrize("path", blocks.TRITON_PATHS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="refused where there is no GPU")
def test_without_a_gpu_a_path_of_tritons_is_refused(path):
    layer = layers.DiaBloLinear(8, 8, num_blocks=2, delta_path=path)
    with pytest.raises(ValueError, match="needs a GPU and the package triton; got device cpu"):
        layer(torch.randn(3, 8))
    assert not triton_blocks.is_available()


def test_triton_is_imported_by_a_launch_alone():
    code = "import diablo_ds.layers, benchmarks.layer, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "triton" not in done.stdout.split()
    assert "diablo_ds.triton_kernels" not in done.stdout.split()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="runs the kernels on a GPU")
@pytest.mark.parametrize("dtype", triton_blocks.DTYPES, ids=str)
@pytest.mark.parametrize("path", blocks.PATHS)
def test_every_path_equals_fp64_on_a_gpu(path, dtype):
    for case in CASES:
        if path not in blocks.MERGED_PATHS or not case.adapter:
            check(case, path, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures tiles on a GPU")
@pytest.mark.parametrize("block", [(64, 224), (224, 64), (9, 24)], ids=str)
def test_all_tiles_give_the_same_bits(block, monkeypatch):
    x = torch.randn(2000, 4 * block[0], device="cuda", dtype=torch.bfloat16)
    grad_y = torch.randn(2000, 4 * block[1], device="cuda", dtype=torch.bfloat16)
    delta = torch.randn(4, *block, device="cuda", dtype=torch.bfloat16)
    found = []
    for index in range(4):
        monkeypatch.setattr(
            triton_blocks, "fastest", lambda _, tiles, *rest, i=index: tiles[i % len(tiles)]
        )
        y = triton_blocks.block_product(x, delta, torch.empty_like(grad_y))
        triton_blocks.block_product(x, delta, y, accumulate=True)
        grad_x = torch.empty_like(x)
        gradient = triton_blocks.block_gradients(x, grad_y, delta, grad_x)
        found.append((y, triton_blocks.delta_gradient(x, grad_y, 4), grad_x, gradient))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))

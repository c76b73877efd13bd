"""Triton's kernels: right in its interpreter, compiled for a GPU without one, refused elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import block_kernels
from benchmarks.layer import Shape
from diablo_ds.adapter.kernels import triton_blocks, triton_support
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.adapter.paths import DELTA_PATHS, SUMMED_PATHS, TRITON_PATHS
from diablo_ds.config.continuation import differing_fields
from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from tests.unit.adapter.block_cases import CASES, check

ROOT = Path(__file__).parents[4]


needs_triton = pytest.mark.skipif(
    not triton_support.has_package(), reason="triton is not to be had on this system"
)


@pytest.mark.slow
@needs_triton
def test_the_kernels_are_right_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/unit/adapter/kernels/triton_interpreter.py"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.slow
@needs_triton
def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.adapter.kernels.triton_compiler"],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {
        *(f"block_product torch.bfloat16 {threads} wgmma" for threads in (128, 256)),
        *(f"delta_gradient torch.bfloat16 {threads} wgmma" for threads in (128, 256)),
        "block_gradients torch.bfloat16 256 wgmma",
        "add_to_diagonal torch.bfloat16 128",
        "block_product torch.float32 128",
        "delta_gradient torch.float32 128",
        "add_to_diagonal torch.float32 128",
    }


@pytest.mark.parametrize("path", TRITON_PATHS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="refused where there is no GPU")
def test_without_a_gpu_a_path_of_tritons_is_refused(path):
    product = DiaBloLinear(torch.nn.Linear(8, 8), num_blocks=2, delta_path=path)
    instead = triton_support.WITHOUT_TRITON[path]
    with pytest.raises(UserError, match=f"needs a GPU and .*; got device cpu, .*; use '{instead}'"):
        product(torch.randn(3, 8))
    assert differing_fields(RunConfig(delta_path=path), RunConfig(delta_path=instead)) == []
    assert not triton_support.is_available()


@pytest.mark.slow
def test_triton_is_imported_by_a_launch_alone():
    code = "import diablo_ds.adapter.layer, benchmarks.layer, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "triton" not in done.stdout.split()
    assert "diablo_ds.adapter.kernels.triton_kernels" not in done.stdout.split()


def test_the_parts_of_the_block_product_can_be_measured():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures = block_kernels.measure(Shape(32, 64, 4), torch.float32, 16, device)
    assert {"PyTorch: write y", "PyTorch: write dx, dD", "PyTorch: sum and restore"} <= set(figures)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="runs the kernels on a GPU")
@pytest.mark.parametrize("dtype", triton_support.DTYPES, ids=str)
@pytest.mark.parametrize("path", DELTA_PATHS)
def test_every_path_equals_fp64_on_a_gpu(path, dtype):
    for case in CASES:
        if path not in SUMMED_PATHS or not case.adapter:
            check(case, path, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures tiles on a GPU")
@pytest.mark.parametrize("block", [(64, 224), (224, 64), (9, 24)], ids=str)
def test_all_tiles_give_the_same_bits(block, monkeypatch):
    x = torch.randn(2000, 4 * block[0], device="cuda", dtype=torch.bfloat16)
    grad_y = torch.randn(2000, 4 * block[1], device="cuda", dtype=torch.bfloat16)
    delta = torch.randn(4, *block, device="cuda", dtype=torch.bfloat16)
    found = []
    for index in range(2):
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

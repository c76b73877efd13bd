"""Compiles what the launches of the Triton kernels ask for, for an H100 that is not there.

    python -m tests.unit.adapter.kernels.triton_compiler

One line a kernel: its name, dtype and threads, whether it uses tensor cores, and what none should
use: atomics, and registers that are spilled to memory.
"""

from __future__ import annotations

import re
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from diablo_ds.adapter.kernels import triton_blocks

_WORDS = ("wgmma", "atom.global", "red.global", "ld.local")


class _Target:
    """What Triton asks a driver for before a kernel is compiled."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def _compile_only(kernel, grid):
    def launch(*arguments, **options):
        compiled = kernel.run(*arguments, grid=grid, warmup=True, **options)
        ptx = compiled.asm["ptx"]
        found = [word for word in _WORDS if re.search(rf"\b{word}", ptx)]
        threads = 32 * options.get("num_warps", 4)
        sys.stdout.write(" ".join([kernel.__name__, f"{arguments[0].dtype} {threads}", *found]))
        sys.stdout.write("\n")

    return launch


def _all_tiles(key, tiles, x, launch):
    """Stand in for the choice of the fastest tile: compile all."""
    for tile in dict.fromkeys(tiles):
        launch(tile)
    return tiles[0]


def main() -> None:
    driver.set_active(_Target())
    JITFunction.__getitem__ = _compile_only
    triton_blocks.fastest = _all_tiles
    num_blocks, in_block, out_block, tokens = 4, 64, 224, 512
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.empty(tokens, num_blocks * in_block, dtype=dtype)
        y = torch.empty(tokens, num_blocks * out_block, dtype=dtype)
        delta = torch.empty(num_blocks, in_block, out_block, dtype=dtype)
        triton_blocks.block_product(x, delta, y, y[0])
        triton_blocks.block_product(x, delta, y, accumulate=True)
        triton_blocks.block_gradients(x, y, delta, torch.empty_like(x))
        triton_blocks.add_to_diagonal(torch.empty(y.shape[1], x.shape[1], dtype=dtype), delta)


if __name__ == "__main__":
    main()

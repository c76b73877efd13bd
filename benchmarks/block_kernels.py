"""The parts of the block product alone, beside PyTorch's batched products.

    python -m benchmarks.block_kernels --tokens 8192

One JSON line per shape: milliseconds of each part, and the bytes it moves at least over that time,
in GB/s, to be compared with a copy's. The weight's own product is not part of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch

from benchmarks.gpu.ceilings import milliseconds
from benchmarks.layer import DTYPES, Shape
from diablo_ds.adapter import block_products
from diablo_ds.adapter.blocks import delta_shape
from diablo_ds.adapter.kernels import triton_support
from diablo_ds.adapter.products import summed_weight

SHAPES = (
    Shape(4096, 4096, 64),
    Shape(4096, 1024, 64),
    Shape(4096, 14336, 64),
    Shape(14336, 4096, 64),
    Shape(8192, 28672, 64),
)


def measure(shape: Shape, dtype: torch.dtype, tokens: int, device: str) -> dict[str, Any]:
    """Return milliseconds and GB/s of each part, by name."""
    x, y, weight = (
        torch.randn(sizes, device=device).to(dtype)
        for sizes in (
            (tokens, shape.in_features),
            (tokens, shape.out_features),
            (shape.out_features, shape.in_features),
        )
    )
    delta = torch.zeros(
        delta_shape(shape.num_blocks, shape.in_features, shape.out_features),
        device=device,
        dtype=dtype,
    )
    grad_x, transposed = torch.empty_like(x), delta.transpose(1, 2)
    figures: dict[str, Any] = {}

    def add(name: str, num_bytes: int, part: Callable[[], object]) -> None:
        ms = milliseconds(part)
        figures[name] = {"ms": round(ms, 4), "gb_per_s": round(num_bytes / ms / 1e6, 1)}

    paths = {"PyTorch": "fused"}
    if torch.device(device).type == "cuda" and triton_support.is_available():
        paths["Triton"] = "triton"
    for who, path in paths.items():
        write, gradient = block_products.write_block_product, block_products.delta_gradient
        accumulate, both = block_products.add_block_product, block_products.block_gradients
        add(f"{who}: write y", x.nbytes + y.nbytes, partial(write, x, delta, y, path))
        add(f"{who}: add to y", x.nbytes + 2 * y.nbytes, partial(accumulate, x, delta, y, path))
        add(f"{who}: write dx", x.nbytes + y.nbytes, partial(write, y, transposed, grad_x, path))
        add(f"{who}: dD", x.nbytes + y.nbytes, partial(gradient, x, y, delta, path))
        gradients = partial(both, x, y, delta, grad_x, path, True, accumulate=False)
        add(f"{who}: write dx, dD", 2 * x.nbytes + y.nbytes, gradients)
        summed = "triton_summed" if path == "triton" else "summed"
        add(f"{who}: sum and restore", 6 * delta.nbytes, partial(_sum, weight, delta, summed))
    return figures


def _sum(weight: torch.Tensor, delta: torch.Tensor, path: str) -> None:
    with summed_weight(weight, delta, path):
        pass


@click.command(context_settings={"show_default": True})
@click.option("--tokens", default=8192, help="Rows of the input.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--dtype", default="bf16", type=click.Choice(tuple(DTYPES)))
def main(tokens: int, device: str, dtype: str) -> None:
    """Measure the parts of the block product on one device."""
    for shape in SHAPES:
        figures = measure(shape, DTYPES[dtype], tokens, device)
        click.echo(json.dumps({**shape._asdict(), "tokens": tokens, "dtype": dtype, **figures}))


if __name__ == "__main__":
    main()

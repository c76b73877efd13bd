"""One layer at real widths beside the frozen one; AdamW's kinds; what FP8 would give."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.ceilings import milliseconds
from benchmarks.gpu.models import device
from benchmarks.gpu.records import Case
from benchmarks.layer import Shape, candidates
from benchmarks.optimizer import updates

_WIDTHS = {
    "8B": ((4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096)),
    "70B": ((8192, 8192), (8192, 1024), (8192, 28672), (28672, 8192)),
}
_NUM_BLOCKS = (64, 32, 128)
_REPEATS = 8


def cases(scale: str) -> Iterator[Case]:
    """Yield every shape, the optimizers, and the FP8 products."""
    if scale == "tiny":
        shapes, tokens = [Shape(64, 128, 4)], 32
    else:
        shapes = [
            Shape(*widths, num_blocks)
            for num_blocks in _NUM_BLOCKS
            for model in _WIDTHS.values()
            for widths in model
        ]
        tokens = 8192
    for shape in shapes:
        yield Case(str(shape), partial(_layer, shape, tokens))
    yield Case("AdamW", partial(_optimizers, 71_303_168 if scale == "full" else 4096))
    if torch.cuda.is_available():
        for widths in _WIDTHS["8B"][2:]:
            yield Case(f"FP8, {widths[0]} -> {widths[1]}", partial(_fp8, *widths, tokens))


def _layer(shape: Shape, tokens: int) -> dict[str, Any]:
    """Return milliseconds of forward, and of forward and backward, by candidate."""
    torch.manual_seed(0)
    base = nn.Linear(
        shape.in_features, shape.out_features, bias=False, device=device(), dtype=torch.bfloat16
    ).requires_grad_(False)
    x = torch.randn(1, tokens, shape.in_features, device=device(), dtype=torch.bfloat16)
    x.requires_grad_()
    grad = torch.randn(1, tokens, shape.out_features, device=device(), dtype=torch.bfloat16)
    figures: dict[str, Any] = {"tokens": tokens, "lora_rank": shape.lora_rank}
    for name, layer in candidates(base, shape).items():
        if name == "einsum":
            continue
        for parameter in layer.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=1e-3)

        def step(layer: nn.Module = layer) -> None:
            x.grad = None
            layer(x).backward(grad)
            for parameter in layer.parameters():
                parameter.grad = None

        figures[f"{name} forward ms"] = milliseconds(partial(layer, x), _REPEATS)
        figures[f"{name} ms"] = milliseconds(step, _REPEATS)
    gc.collect()
    return figures


def _optimizers(num_parameters: int) -> dict[str, Any]:
    """Return milliseconds of an update of one flat fp32 tensor by PyTorch's AdamW, by kind."""
    kinds = updates(num_parameters, device().type, with_deepspeed=False)
    times = {f"{kind} ms": milliseconds(update, _REPEATS) for kind, update in kinds.items()}
    return {"parameters": num_parameters, **times}


def _fp8(in_features: int, out_features: int, tokens: int) -> dict[str, Any]:
    """Return rate and error of the frozen products with row-wise scaled FP8 operands.

    ``y = x W^T`` and ``dx = dy W``; the casts are not timed.
    """
    torch.manual_seed(0)
    x = torch.randn(tokens, in_features, device=device(), dtype=torch.bfloat16)
    weight = torch.randn(out_features, in_features, device=device(), dtype=torch.bfloat16)
    weight *= in_features**-0.5
    grad = torch.randn(tokens, out_features, device=device(), dtype=torch.bfloat16)
    flops = 2 * tokens * in_features * out_features
    figures: dict[str, Any] = {}
    for name, a, b in (("y", x, weight.t()), ("dx", grad, weight)):
        left, left_scale = _row_scaled(a)
        right, right_scale = _row_scaled(b.t())
        product = _fp8_product(left, left_scale, right, right_scale)
        exact = a[:512].double() @ b.double()
        for kind, value in (("fp8", product()[:512]), ("bf16", (a @ b)[:512])):
            figures[f"{kind} {name} error"] = float((value.double() - exact).norm() / exact.norm())
        figures[f"fp8 {name} tflops"] = flops / milliseconds(product, _REPEATS) / 1e9
        bf16_ms = milliseconds(partial(torch.matmul, a, b), _REPEATS)
        figures[f"bf16 {name} tflops"] = flops / bf16_ms / 1e9
        del exact
    return figures


def _row_scaled(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``[rows, columns]`` in float8 (e4m3), contiguous, and its scales ``[rows, 1]``."""
    limit = torch.finfo(torch.float8_e4m3fn).max
    scale = matrix.abs().amax(dim=1, keepdim=True).float() / limit
    return (matrix / scale).to(torch.float8_e4m3fn).contiguous(), scale


def _fp8_product(
    left: torch.Tensor, left_scale: torch.Tensor, right: torch.Tensor, right_scale: torch.Tensor
) -> Callable[[], torch.Tensor]:
    def product() -> torch.Tensor:
        result: torch.Tensor = torch._scaled_mm(
            left,
            right.t(),
            scale_a=left_scale,
            scale_b=right_scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return result

    return product

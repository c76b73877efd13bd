"""The block product against fp64: what every path must get right, on any device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from diablo_ds.adapter.autograd import diablo_linear

# The norm of the error over that of what is exact. In bf16 and fp16 two roundings, and where
# Triton's interpreter rounds towards zero, twice as much.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}


class Case(NamedTuple):
    """A layer's block shape and what it is given."""

    num_blocks: int
    in_block: int
    out_block: int
    leading: tuple[int, ...] = (2, 35)
    bias: bool = False
    adapter: bool = False  # an input of its own, as after a dropout
    strided: bool = False  # neither inputs nor the output's gradient are contiguous

    def __str__(self) -> str:
        parts = [f"{self.num_blocks}x{self.in_block}x{self.out_block}"]
        if self.leading != (2, 35):
            parts.append("x".join(map(str, self.leading)) or "vector")
        parts += [name for name in ("bias", "adapter", "strided") if getattr(self, name)]
        return "-".join(parts)


WIDTHS = [(2, 64, 224), (2, 128, 448), (3, 224, 64), (4, 9, 9), (3, 9, 24), (2, 16, 16), (5, 7, 1)]
CASES = [
    *(Case(*widths) for widths in WIDTHS),
    Case(1, 12, 20, bias=True),
    Case(4, 9, 24, bias=True, adapter=True),
    Case(2, 64, 16, bias=True, strided=True),
    Case(3, 24, 9, adapter=True, strided=True),
    Case(2, 1, 5),
    Case(4, 16, 8, leading=()),
    Case(4, 16, 8, leading=(1,), bias=True),
    Case(2, 16, 24, leading=(0,), bias=True),
    Case(2, 16, 24, leading=(2, 0), adapter=True),
    Case(2, 32, 16, leading=(3, 100)),
]


def dense_delta(delta: torch.Tensor) -> torch.Tensor:
    """A delta as a matrix ``[out_features, in_features]``, zero outside the diagonal blocks."""
    return torch.block_diag(*delta.transpose(1, 2))


def results(
    case: Case, path: str, dtype: torch.dtype, device: str = "cpu"
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the output and the gradients of x, x_adapter and delta; then the same in fp64."""
    torch.manual_seed(0)
    in_features, out_features = (case.num_blocks * width for width in case[1:3])

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(shape)).to(device, dtype)

    def draw_rows(width: int) -> torch.Tensor:
        if not case.strided:
            return draw(*case.leading, width)
        return draw(width, *reversed(case.leading)).permute(*range(len(case.leading), -1, -1))

    x, grad_y = draw_rows(in_features).requires_grad_(), draw_rows(out_features)
    x_adapter = draw_rows(in_features).requires_grad_() if case.adapter else None
    weight = draw(out_features, in_features, scale=in_features**-0.5)
    bias = draw(out_features) if case.bias else None
    delta = draw(*case[:3], scale=case.in_block**-0.5).requires_grad_()
    inputs = [x, delta] if x_adapter is None else [x, x_adapter, delta]

    before = weight.clone()
    y = diablo_linear(x, weight, bias, delta, x_adapter, path=path)
    found = [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]
    assert torch.equal(weight, before)

    exact = [tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
    x64, delta64, adapter64 = exact[0], exact[-1], exact[len(exact) - 2 if case.adapter else 0]
    dense = dense_delta(delta64)
    y64 = F.linear(x64, weight.cpu().double(), None if bias is None else bias.cpu().double())
    y64 = y64 + F.linear(adapter64, dense)
    return found, [y64.detach(), *torch.autograd.grad(y64, exact, grad_y.cpu().double())]


def check(
    case: Case, path: str, dtype: torch.dtype, device: str = "cpu", *, repeat: bool = True
) -> None:
    """Assert that a path is right for a case, and, if it is to be repeated, gives the same bits."""
    found, exact = results(case, path, dtype, device)
    for index, (one, other) in enumerate(zip(found, exact, strict=True)):
        assert one.shape == other.shape, (case, index)
        error = float((one.cpu().double() - other).norm())
        assert error <= TOLERANCE[dtype] * float(other.norm()), (case, index, error)
    if repeat:
        again, _ = results(case, path, dtype, device)
        assert all(map(torch.equal, found, again)), case

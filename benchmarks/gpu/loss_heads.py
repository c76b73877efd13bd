"""The loss over a long vocabulary: ours, by chunk size and compiled, beside liger-kernel's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import levers
from benchmarks.gpu.ceilings import milliseconds
from benchmarks.gpu.models import device
from benchmarks.gpu.records import Case
from benchmarks.ranks import peak_memory, reset_peak_memory
from diablo_ds.model.loss import fusible_softmax_loss, linear_cross_entropy

_CHUNKS_MIB = (64, 256, 1024)
_REPEATS = 8
_CHECKED_ROWS = 128
"""Rows of the gradient that are compared with fp64."""

Loss = Callable[[], tuple[Tensor, Tensor]]
"""Returns the summed loss and its gradient by the hidden states."""


def cases(scale: str) -> Iterator[Case]:
    """Yield the losses of 8,192 tokens over the vocabulary of Llama 3, at the width of its 8B."""
    sizes = (8192, 4096, 128_256) if scale == "full" else (64, 32, 256)
    for compiled in (False, True) if scale == "full" else (False,):
        for chunk in _CHUNKS_MIB:
            name = f"chunks of {chunk} MiB" + (", compiled" if compiled else "")
            yield Case(name, partial(_measure, sizes, partial(_own, chunk, compiled)), 90.0)
    if torch.cuda.is_available():
        yield Case("liger", partial(_measure, sizes, _liger), 90.0, alone=True)


def _measure(
    sizes: tuple[int, int, int], make: Callable[[Tensor, Tensor, Tensor], Loss]
) -> dict[str, Any]:
    """Return milliseconds of loss and gradient, what they hold, and their error."""
    num_tokens, hidden_size, vocab_size = sizes
    torch.manual_seed(0)
    like: dict[str, Any] = {"device": device(), "dtype": torch.bfloat16}
    hidden = torch.randn(num_tokens, hidden_size, **like)
    weight = torch.randn(vocab_size, hidden_size, **like) * hidden_size**-0.5
    targets = torch.randint(vocab_size, (num_tokens,), device=device())
    compute = make(hidden, weight, targets)
    loss, grad = compute()
    before = peak_memory() if not torch.cuda.is_available() else torch.cuda.memory_allocated()
    reset_peak_memory()
    figures: dict[str, Any] = {"ms": milliseconds(compute, _REPEATS)}
    figures["held_bytes"] = max(0, peak_memory() - before)
    some = slice(0, _CHECKED_ROWS)
    logits = hidden[some].double() @ weight.double().t()
    exact = logits.softmax(1)
    exact[torch.arange(len(exact)), targets[some]] -= 1
    exact = exact @ weight.double()
    figures["gradient_error"] = float((grad[some].double() - exact).norm() / exact.norm())
    figures["mean_loss"] = float(loss) / num_tokens
    return figures


def _own(chunk_mib: int, compiled: bool, hidden: Tensor, weight: Tensor, targets: Tensor) -> Loss:
    softmax_loss = torch.compile(fusible_softmax_loss, dynamic=True) if compiled else None

    def compute() -> tuple[Tensor, Tensor]:
        with levers.loss_chunk(chunk_mib * 2**20):
            loss, grad = linear_cross_entropy(
                hidden, targets, weight, None, with_grad=True, softmax_loss=softmax_loss
            )
        assert grad is not None
        return loss, grad

    return compute


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Loss:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    hidden.requires_grad_()

    def compute() -> tuple[Tensor, Tensor]:
        loss = liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="sum")
        (grad,) = torch.autograd.grad(loss, [hidden])
        return loss, grad

    return compute

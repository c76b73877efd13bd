"""Gradients of deltas: fp32 tensors from the start, to which every micro batch adds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def start_from_zero(deltas: Iterable[nn.Parameter]) -> None:
    """Give each delta an fp32 gradient of zeros, ``[num_blocks, in_block, out_block]``.

    PyTorch then adds in place and in fp32. So a delta that no micro batch of this rank uses has a
    gradient too, and every rank reduces the same tensors.
    """
    deltas = list(deltas)
    # Under ZeRO-3 a delta may be partitioned now; its own shape is then [0].
    shapes = [getattr(delta, "ds_shape", delta.shape) for delta in deltas]
    sizes = [shape.numel() for shape in shapes]
    flat = torch.zeros(sum(sizes), dtype=torch.float32, device=deltas[0].device)  # by one kernel
    for delta, shape, grad in zip(deltas, shapes, flat.split(sizes), strict=True):
        set_gradient(delta, grad.view(shape))


def set_gradient(delta: nn.Parameter, grad: Tensor) -> None:
    """Set a delta's gradient to one of another dtype, which PyTorch refuses to be assigned.

    Args:
        delta: the delta, in the model's dtype; may be partitioned.
        grad: its gradient, ``[num_blocks, in_block, out_block]`` in fp32.
    """
    delta.grad = delta.data
    delta.grad.data = grad


@contextlib.contextmanager
def hidden_gradients(deltas: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let deltas have no gradient for a while: compilers refuse one of another dtype."""
    hidden = [(delta, delta.grad) for delta in deltas if delta.grad is not None]
    for delta, _ in hidden:
        delta.grad = None
    try:
        yield
    finally:
        for delta, grad in hidden:
            set_gradient(delta, grad.data)

"""Causal language-model loss, as a sum over target tokens, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diablo_ds.data.batches import to_device
from diablo_ds.data.labels import IGNORE_LABEL

LOSS_CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
"""fp32 logits held at once by `linear_cross_entropy`, by device type: on a GPU a chunk of few rows
would wait for the head's weight to be read; on a CPU larger chunks are no faster."""
_ROWS_TILE = 128
"""Rows of a chunk are a multiple of it: matrix products of other heights waste a tile's rest."""
_FP16_GAIN = 1024.0
"""Keeps small probabilities from vanishing in fp16; divided out in fp32."""


def count_targets(labels: Tensor) -> Tensor:
    """Count the target tokens of ``labels``.

    Args:
        labels: ``[batch, seq]``, int64; position t holds the token at t, not the next one.

    Returns:
        ``[]``, int64. The first position of a row is never a target: nothing precedes it.
    """
    return (labels[:, 1:] != IGNORE_LABEL).sum()


def causal_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropy of the next token over all target tokens.

    The sum, not the mean: the caller divides once by the number of targets in the global batch,
    so that ranks and micro batches with unequal numbers of targets are weighted rightly.

    Args:
        logits: ``[batch, seq, vocab]``; only rows that predict a target are cast to fp32.
        labels: ``[batch, seq]``, int64; `IGNORE_LABEL` where there is no loss. On the CPU, so that
            finding the targets does not wait for another device.

    Returns:
        ``[]``, fp32; 0, with a gradient of zeros, where there is no target.
    """
    places, targets = to_device(find_targets(labels), logits.device)
    rows = logits.flatten(0, 1).index_select(0, places).float()  # [num_targets, vocab]
    return F.cross_entropy(rows, targets, reduction="sum")


def find_targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the rows of ``labels``, one after another, predict a target, and the targets.

    Args:
        labels: ``[batch, seq]``, int64; position t holds the token at t, not the next one.

    Returns:
        Places in ``batch * seq`` and tokens, both ``[num_targets]``, int64.
    """
    predicted = torch.full_like(labels, IGNORE_LABEL)  # at position t: the label at t + 1
    predicted[:, :-1] = labels[:, 1:]
    predicted = predicted.flatten()
    (places,) = torch.nonzero(predicted != IGNORE_LABEL, as_tuple=True)
    return places, predicted[places]


def rows_per_chunk(vocab_size: int, device_type: str) -> int:
    """Return how many target tokens' logits are held at once."""
    held_bytes = LOSS_CHUNK_BYTES["cpu" if device_type == "cpu" else "cuda"]
    rows = max(1, held_bytes // (4 * vocab_size))
    return rows - rows % _ROWS_TILE if rows > _ROWS_TILE else rows


SoftmaxLoss = Callable[[Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]
"""`in_place_softmax_loss`, or another function that computes the same."""


def in_place_softmax_loss(
    logits: Tensor, target: Tensor, gain: float, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of rows of logits, and differentiate it, operation by operation.

    Args:
        logits: ``[rows, vocab]``; its values are lost.
        target: ``[rows, 1]``, int64.
        gain: factor of the gradient.
        with_grad: whether the gradient is needed.

    Returns:
        The sum, ``[]`` in fp32; and its gradient by the logits, ``[rows, vocab]`` in their dtype,
        or, where it is not needed, anything.
    """
    values = logits.float()
    values.sub_(values.amax(dim=1, keepdim=True))
    target_logit = values.gather(1, target)  # [rows, 1]
    powers = values.exp_()  # in place, as logsumexp and softmax are not
    total = powers.sum(dim=1, keepdim=True)  # [rows, 1]
    loss = (total.log() - target_logit).sum()
    if with_grad:
        powers.mul_(gain / total).scatter_add_(1, target, torch.full_like(total, -gain))
    return loss, powers if logits.dtype == powers.dtype else logits.copy_(powers)


def fusible_softmax_loss(
    logits: Tensor, target: Tensor, gain: float, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """Compute what `in_place_softmax_loss` does, as a compiler fuses it into few passes."""
    values = logits.float()
    largest = values.amax(dim=1, keepdim=True)  # [rows, 1]
    total = (values - largest).exp().sum(dim=1, keepdim=True)  # [rows, 1]
    loss = (total.log() + largest - values.gather(1, target)).sum()
    if not with_grad:
        return loss, logits
    is_target = torch.arange(logits.shape[1], device=logits.device) == target  # [rows, vocab]
    grad = (values - largest).exp() * (gain / total) - gain * is_target
    return loss, grad.to(logits.dtype)


@torch.no_grad()
def linear_cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    with_grad: bool,
    softmax_loss: SoftmaxLoss | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sum the cross-entropy of ``softmax(hidden W^T + b)`` chunk by chunk, and differentiate it.

    The head is frozen, so one pass does both: while a chunk's logits are there, so is their
    gradient ``softmax - onehot``, and with it that of ``hidden``. Logits are computed in the dtype
    of ``weight`` and reduced in fp32, as by `causal_lm_loss`.

    Args:
        hidden: ``[num_targets, hidden_size]``.
        targets: ``[num_targets]``, int64.
        weight: ``[vocab, hidden_size]``, frozen.
        bias: ``[vocab]`` or None, frozen.
        with_grad: whether to return the gradient.
        softmax_loss: what computes it from a chunk's logits; `in_place_softmax_loss` by default.

    Returns:
        The loss, ``[]`` in fp32; and its gradient by ``hidden``, in the dtype of ``hidden``, or
        None. In fp16 the gradient is larger by a factor, see `grad_gain`.
    """
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    grad = torch.empty_like(hidden) if with_grad else None
    softmax_loss = softmax_loss or in_place_softmax_loss
    step = rows_per_chunk(weight.shape[0], hidden.device.type)
    for start in range(0, hidden.shape[0], step):
        chunk = hidden[start : start + step]  # [rows, hidden_size]
        target = targets[start : start + step, None]  # [rows, 1]
        # The original linear: DeepSpeed replaces F.linear by one that needs autograd.
        logits = torch.ops.aten.linear(chunk, weight, bias)  # [rows, vocab]
        chunk_loss, grad_logits = softmax_loss(logits, target, grad_gain(hidden.dtype), with_grad)
        loss += chunk_loss
        if grad is not None:
            torch.mm(grad_logits, weight, out=grad[start : start + step])
    return loss, grad


def grad_gain(dtype: torch.dtype) -> float:
    """Return the factor of the gradient that `linear_cross_entropy` returns."""
    return _FP16_GAIN if dtype == torch.float16 else 1.0


def loss_head_bytes(
    num_rows: int, hidden_size: int, vocab_size: int, dtype: torch.dtype, device_type: str
) -> int:
    """Return the most bytes that `linear_cross_entropy` holds besides its inputs.

    A chunk's fp32 logits and, where they are not fp32 themselves, the same in ``dtype``; and the
    gradient by ``hidden``.
    """
    rows = min(num_rows, rows_per_chunk(vocab_size, device_type))
    chunk = rows * vocab_size * (4 + (0 if dtype == torch.float32 else dtype.itemsize))
    return chunk + num_rows * hidden_size * dtype.itemsize

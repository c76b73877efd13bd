"""Causal language-model loss, as a sum over target tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from diablo_ds.labels import IGNORE_LABEL


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
        labels: ``[batch, seq]``, int64; `IGNORE_LABEL` where there is no loss.

    Returns:
        ``[]``, fp32; 0, with a gradient of zeros, where there is no target.
    """
    targets = labels[:, 1:]
    mask = targets != IGNORE_LABEL
    rows = logits[:, :-1][mask].float()  # [num_targets, vocab]
    return F.cross_entropy(rows, targets[mask], reduction="sum")

"""One optimizer step and one evaluation, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from diablo_ds.data.batches import MicroBatch
from diablo_ds.errors import NonFiniteError
from diablo_ds.model.loss import count_targets
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.stopping import Borders
from diablo_ds.zero.engine import Engine


class StepResult(NamedTuple):
    """What one optimizer step did, the same on every rank."""

    loss: float
    """Mean loss per target token of the global batch, in nats, before the update."""
    grad_norm: float
    """Norm over all delta gradients, before clipping."""
    num_tokens: int
    """Tokens put through the model over all ranks, without padding."""


def train_step(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    learning_rate: float,
    borders: Borders | None = None,
) -> StepResult:
    """Update the deltas once.

    The loss is summed over target tokens and divided once, by their number in the global batch;
    DeepSpeed averages gradients over ranks, which the factor world size undoes.

    Collective: every rank must call this with the same number of micro batches.

    Args:
        engine: the model and its deltas.
        micro_batches: this rank's part of the global batch.
        learning_rate: of this step.
        borders: where all ranks may stop together.

    Raises:
        StopAgreed: ahead of a micro batch; the unfinished gradients are dropped.
        NonFiniteError: if the gradient norm is not finite, and then nothing was updated; or if the
            loss on some rank is not.
    """
    device = engine.device
    num_targets = sum(int(count_targets(batch.labels)) for batch in micro_batches)
    num_tokens = sum(batch.num_tokens for batch in micro_batches)
    counts = distributed.gather_floats([num_targets, num_tokens, len(micro_batches)], device)
    of_targets, of_tokens, of_batches = zip(*counts, strict=True)
    if len(set(of_batches)) > 1:
        raise RuntimeError(f"all ranks must have as many micro batches; got {of_batches}")
    global_targets, global_tokens = int(sum(of_targets)), int(sum(of_tokens))
    scale = distributed.world_size() / max(1, global_targets)

    loss_sum = torch.zeros((), device=device)
    with engine.one_reduction():
        for batch in _between(borders, micro_batches):
            heart.beat("forward")
            loss = engine.loss(batch)
            heart.beat("backward")
            engine.backward(loss * scale)
            loss_sum += loss.detach()
    heart.beat("update")
    # Read only now: until here nothing has waited for the device, which still computes gradients
    # while the update is being launched.
    grad_norm = engine.step(learning_rate)
    loss_sums = [row[0] for row in distributed.gather_floats([float(loss_sum)], device)]
    _check_finite("loss", loss_sums)
    if engine.loss_scale is None:  # there DeepSpeed skips the update and lowers the loss scale
        _check_finite("gradient norm", [grad_norm])
    return StepResult(sum(loss_sums) / max(1, global_targets), grad_norm, global_tokens)


def _between(borders: Borders | None, micro_batches: Iterable[MicroBatch]) -> Iterable[MicroBatch]:
    return micro_batches if borders is None else borders.between(micro_batches)


def _check_finite(what: str, values: Sequence[float]) -> None:
    for rank, value in enumerate(values):
        if not math.isfinite(value):
            where = f" on rank {rank}" if len(values) > 1 else ""
            raise NonFiniteError(f"{what} must be finite; got {what}={value}{where}")


@torch.no_grad()
def evaluate(
    engine: Engine, micro_batches: Iterable[MicroBatch], borders: Borders | None = None
) -> float:
    """Return the mean loss per target token over all ranks, in nats.

    Collective: every rank must call this with the same number of micro batches.

    Raises:
        StopAgreed: ahead of a micro batch.
    """
    device = engine.device
    loss_sum, num_targets = torch.zeros((), device=device), 0
    with engine.evaluating():
        for batch in _between(borders, micro_batches):
            heart.beat("evaluation")
            num_targets += int(count_targets(batch.labels))
            loss_sum += engine.loss(batch)
    rows = distributed.gather_floats([float(loss_sum), num_targets], device)
    total_loss, total_targets = (sum(column) for column in zip(*rows, strict=True))
    return float(total_loss / max(1.0, total_targets))

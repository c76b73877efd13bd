"""One optimizer step and one evaluation, over all ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.profiler import record_function

from diablo_ds.data.batches import MicroBatch
from diablo_ds.errors import NonFiniteError
from diablo_ds.model.loss import count_targets
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.stopping import Boundaries
from diablo_ds.zero.engine import Engine
from diablo_ds.zero.phases import BACKWARD, FORWARD, UPDATE


class Counts(NamedTuple):
    """How much a step trains on, on one rank or in its global batch."""

    targets: int = 0
    """Target tokens."""
    tokens: int = 0
    """Tokens without padding."""
    micro_batches: int = 0
    """Per rank."""
    squared_lengths: int = 0
    """Squares of the examples' lengths in tokens, summed."""


class StepResult(NamedTuple):
    """What one optimizer step did, the same on every rank."""

    loss: float
    """Mean loss per target token of the global batch, in nats, before the update."""
    grad_norm: float
    """Norm over all delta gradients, before clipping."""
    num_tokens: int
    """Tokens put through the model over all ranks, without padding."""
    messages: list[list[float]]
    """What each rank told the others."""


def count(micro_batches: Iterable[MicroBatch]) -> Counts:
    """Return the counts of one rank's micro batches, which are on the CPU."""
    batches = list(micro_batches)
    targets = sum(int(count_targets(batch.labels)) for batch in batches)
    tokens = sum(batch.num_tokens for batch in batches)
    squared_lengths = sum(batch.squared_lengths for batch in batches)
    return Counts(targets, tokens, len(batches), squared_lengths)


def total(rows: Sequence[Sequence[float]]) -> Counts:
    """Return the counts of a global batch.

    Args:
        rows: the `Counts` of each rank.

    Raises:
        RuntimeError: if the ranks have different numbers of micro batches.
    """
    columns = [list(map(int, column)) for column in zip(*rows, strict=True)]
    targets, tokens, micro_batches, squared_lengths = columns
    if len(set(micro_batches)) > 1:
        raise RuntimeError(f"all ranks must have equally many micro batches; got {micro_batches}")
    return Counts(sum(targets), sum(tokens), micro_batches[0], sum(squared_lengths))


def train_step(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    learning_rate: float,
    *,
    totals: Counts | None = None,
    boundaries: Boundaries | None = None,
    message: Callable[[], Sequence[float]] = tuple,
) -> StepResult:
    """Update the deltas once.

    The loss is summed over target tokens and divided once, by their number in the global batch;
    DeepSpeed averages gradients over ranks, which the factor world size undoes.

    Beyond what DeepSpeed does, a step takes one collective and waits for the device once, for the
    numbers that it reports. Collective: every rank must call this with the same number of micro
    batches.

    Args:
        engine: the model and its deltas.
        micro_batches: this rank's part of the global batch.
        learning_rate: of this step.
        totals: the counts of the global batch; by default the ranks exchange theirs first.
        boundaries: where all ranks may stop together.
        message: returns what else this rank tells the others, equally many numbers on each; called
            while the device still works on the gradients.

    Raises:
        StopAgreed: between two micro batches; the unfinished gradients are dropped.
        NonFiniteError: if the loss of some rank or the gradient norm is not finite; no rank has
            updated anything then.
    """
    if totals is None:
        totals = total(distributed.gather_floats(count(micro_batches), engine.device))
    num_targets = max(1, totals.targets)
    scale = distributed.world_size() / num_targets

    loss_sum = torch.zeros((), device=engine.device)
    with engine.one_reduction():
        for batch in micro_batches if boundaries is None else boundaries.between(micro_batches):
            with _phase(FORWARD):
                loss = engine.loss(batch)
            with _phase(BACKWARD):
                engine.backward(loss * scale)
            loss_sum += loss.detach()
        engine.skip_unless_finite(loss_sum)
    own_message = message()
    with _phase(UPDATE):
        outcome = engine.step(learning_rate, loss_sum, own_message)
    _check_finite(outcome.loss_sums)
    # In fp16 DeepSpeed lowers the loss scale instead, and training continues.
    if engine.loss_scale is None and not math.isfinite(outcome.grad_norm):
        raise NonFiniteError(f"gradient norm must be finite; got gradient norm={outcome.grad_norm}")
    loss_mean = sum(outcome.loss_sums) / num_targets
    return StepResult(loss_mean, outcome.grad_norm, totals.tokens, outcome.messages)


@contextlib.contextmanager
def _phase(name: str) -> Iterator[None]:
    """Name a part of the step, in a trace and where a rank that hangs is looked at."""
    heart.beat(name)
    with record_function(name):
        yield


def _check_finite(losses: Sequence[float]) -> None:
    for rank, loss in enumerate(losses):
        if not math.isfinite(loss):
            where = f" on rank {rank}" if len(losses) > 1 else ""
            raise NonFiniteError(f"loss must be finite; got loss={loss}{where}")


@torch.no_grad()
def evaluate(
    engine: Engine, micro_batches: Iterable[MicroBatch], boundaries: Boundaries | None = None
) -> float:
    """Return the mean loss per target token over all ranks, in nats.

    Collective: every rank must call this with the same number of micro batches.

    Raises:
        StopAgreed: ahead of a micro batch.
    """
    if boundaries is not None:
        micro_batches = boundaries.between(micro_batches, ask_first=True)
    loss_sum, num_targets = torch.zeros((), device=engine.device), 0
    with engine.evaluating():
        for batch in micro_batches:
            heart.beat("evaluation")
            num_targets += int(count_targets(batch.labels))
            loss_sum += engine.loss(batch)
    rows = distributed.gather_floats([float(loss_sum), num_targets], engine.device)
    total_loss, total_targets = (sum(column) for column in zip(*rows, strict=True))
    return float(total_loss / max(1.0, total_targets))

"""A trial: the largest micro step of a run, taken once before the first step.

What a plan chose may not fit after all: other processes, the allocator's gaps and what a model's
code keeps are not all known to it. The trial shows what such a micro step takes. Where that is too
much, more decoder layers are recomputed, by as much as the plan says that they save, until it fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from diablo_ds.data.batches import MicroBatch
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import decoder_layers
from diablo_ds.model.recomputation import Recomputation, recompute_layers
from diablo_ds.planning.hardware import GB
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.log import logger
from diablo_ds.training.memory_choice import PlannedMemory
from diablo_ds.zero.engine import Engine

GAP_SHARE = 0.02
"""Share of a device's memory that is left to the gaps between what is allocated."""
NEXT_SHARE = 0.05
"""Share of it that the next choice needs less where a rank ran out: by how much is not known."""
PASSES_TO_RECORD = 3
"""Micro steps after which ZeRO-3 gathers ahead: DeepSpeed records what in the first two."""


def fit_by_trial(
    engine: Engine,
    batch: MicroBatch,
    choices: Sequence[PlannedMemory],
    limit_bytes: float = math.inf,
) -> Recomputation:
    """Return the first choice whose micro step fits the memory of every rank, and set it.

    Collective: every rank must call this. Deltas and their moments stay as they are.

    Args:
        engine: has taken no step; recomputes the first choice.
        batch: a micro batch as large as any of this rank's, see `TrainingBatches.largest`.
        choices: what may be recomputed, the one that needs most memory first; the same on all
            ranks.
        limit_bytes: what a rank may take of its device.

    Raises:
        UserError: if none fits; under ZeRO-3 also where a rank runs out of memory, since the others
            then wait for it.
    """
    left, num_layers = list(choices), len(decoder_layers(engine.module))
    while True:
        heart.beat("trying a micro step")
        (chosen, planned), *left = left
        trial = _try(engine, batch, limit_bytes)
        what = f"a micro batch of {_shape(batch)} with {chosen.text(num_layers)}"
        if trial.fits:
            logger.info(f"Trial: {what} {trial.text}, planned {planned / GB:.1f} GB")
            return chosen
        wanted = planned - trial.excess
        left = [choice for choice in left if choice.num_bytes <= wanted] or left[-1:]
        if not left:
            raise UserError(
                f"the largest micro batch must fit into memory; got {what}, which {trial.text}; "
                "use a smaller micro_batch or max_length, ZeRO stage 3 or more ranks"
            )
        logger.warning(f"Trial: {what} {trial.text}; {left[0].recomputation.text(num_layers)} now")
        recompute_layers(engine.module, left[0].recomputation, reentrant=False)


class _Trial(NamedTuple):
    """What a micro step took on the rank that lacks most."""

    taken: float
    """In bytes; infinite where there was no more."""
    limit: float
    """In bytes."""

    @property
    def fits(self) -> bool:
        return self.taken <= self.limit

    @property
    def excess(self) -> float:
        """Bytes to save."""
        missing = self.taken - self.limit
        return missing if math.isfinite(missing) else NEXT_SHARE * self.limit

    @property
    def text(self) -> str:
        """What it did, as the predicate of a sentence."""
        limit = f"{self.limit / GB:.1f} GB"
        if math.isinf(self.taken):
            return f"needs more than the {limit} that can be had"
        return f"takes {self.taken / GB:.1f} GB of {limit}"


def _try(engine: Engine, batch: MicroBatch, limit_bytes: float) -> _Trial:
    limit = min(limit_bytes, (1 - GAP_SHARE) * engine.memory.limit)
    passes = PASSES_TO_RECORD if engine.stage == 3 else 1
    with engine.memory.measuring() as peak:
        lasted = all(engine.try_micro_step(batch) for _ in range(passes))
        taken = peak() + engine.bytes_to_come if lasted else math.inf
    if not lasted and engine.stage == 3:
        raise UserError(
            f"a micro step must fit into memory; got none for one of {_shape(batch)}; use "
            "--recompute or a smaller --micro-batch"
        )
    rows = distributed.gather_floats([taken, limit], engine.device)
    return max((_Trial(*row) for row in rows), key=lambda trial: trial.taken - trial.limit)


def _shape(batch: MicroBatch) -> str:
    rows, width = batch.input_ids.shape
    return f"{rows} x {width:,} tokens"

"""Micro batches of examples, as a run takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batch_source import BatchSource
from diablo_ds.data.batches import Dealer
from diablo_ds.data.examples import Examples

PAD = 256
CONFIG = RunConfig(micro_batch=2, global_batch=4, max_length=64, num_epochs=3, seed=3)


def source_of(
    examples: Examples, rank: int = 0, world_size: int = 1, **changes: Any
) -> BatchSource:
    """The micro batches of a rank by `CONFIG`, with changes to it."""
    config = replace(CONFIG, **changes)
    return BatchSource(examples, config, Dealer(config, PAD, rank, world_size))

"""What a run needs of its training data, whatever they are read from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Self

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import MicroBatch


class TrainingBatches(Protocol):
    """Where a run's micro batches come from: examples with random access, or a stream."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps after which a run on these batches ends, counted from its start."""
        ...

    def step(self, step: int) -> Iterator[MicroBatch]:
        """Yield this rank's micro batches of a step of the run, counted from 0."""
        ...

    def starting_at(self, step: int, run_config: RunConfig, lag: int = 0) -> Self:
        """Return the same data, with a first pass that begins after ``step`` steps of the run.

        Args:
            step: steps that the run has taken on other data.
            run_config: the run config, with the passes or steps that are left.
            lag: as `lag_after` returned it.
        """
        ...

    def lag_after(self, step: int) -> int:
        """Return the sequences by which the data are behind ``step`` full global batches.

        The last step of a run may have fewer sequences. Where such a run is extended, no sequence
        is skipped: the next step begins with the one after.
        """
        ...

    def examples_after(self, step: int) -> int:
        """Return the sequences that the run has seen after a step."""
        ...

    def epochs_after(self, step: int) -> float | None:
        """Return the passes over the data after a step; None where their end is not known."""
        ...

    def largest(self) -> MicroBatch:
        """Return a micro batch of filler that is as large as any of the run's on one rank."""
        ...

    def describe(self) -> str:
        """Return what there is to train on, as a line of text."""
        ...

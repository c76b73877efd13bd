"""Examples with random access to the micro batches of a step; pure functions of the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import Dealer, MicroBatch
from diablo_ds.data.examples import Examples
from diablo_ds.data.packing import Ints, Order, grouped_by_length, pack, packed, pass_seed, shuffled


@dataclass(frozen=True)
class BatchSource:
    """The micro batches of one rank, from examples with random access.

    The order depends only on the run config's seed and the epoch, so that a run can continue at any
    step without reading what came before, and a step is the same set of examples at any world size.
    """

    examples: Examples
    run_config: RunConfig
    dealer: Dealer
    start_step: int = 0
    """Step of the run with which the first pass begins."""
    lag: int = 0
    """Sequences that an earlier last step of the run had fewer than a global batch."""
    _orders: dict[int, Order] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The order of the pass in use, by its seed."""

    def __len__(self) -> int:
        """Return the number of sequences per pass: examples, or packed sequences of several."""
        return int(self._slots.max()) + 1 if self.run_config.packing else len(self.examples)

    def step(self, step: int) -> Iterator[MicroBatch]:
        """Yield this rank's micro batches of a step of the run, counted from 0.

        A global batch is ``run_config.global_batch`` sequences; the run's last may be smaller.
        """
        first = self._position(step)
        end = min(first + self.run_config.global_batch, self._num_sequences)
        return self._deal([self._sequence(position) for position in range(first, end)])

    @property
    def num_steps(self) -> int:
        """Optimizer steps after which a run on these batches ends, counted from its start."""
        return self.start_step + self.run_config.num_steps(len(self), self.lag)

    def starting_at(self, step: int, run_config: RunConfig, lag: int = 0) -> Self:
        """Return the same examples, with a first pass that begins after ``step`` steps."""
        return replace(self, run_config=run_config, start_step=step, lag=lag)

    def lag_after(self, step: int) -> int:
        """Return the lag of a run that continues after ``step`` steps, see `TrainingBatches`."""
        missing = self._position(step) - self._num_sequences
        return self.lag + (missing if 0 < missing < self.run_config.global_batch else 0)

    def examples_after(self, step: int) -> int:
        """Return the sequences that the run has seen after a step."""
        return step * self.run_config.global_batch - self.lag_after(step)

    def epochs_after(self, step: int) -> float | None:
        """Return the passes over these examples after a step, counted from their first one."""
        return min(self._position(step), self._num_sequences) / len(self)

    def _position(self, step: int) -> int:
        """Return the sequences, counting repeats, that come before a step."""
        return (step - self.start_step) * self.run_config.global_batch - self.lag

    @property
    def _num_sequences(self) -> int:
        """How many the run sees, counting repeats."""
        return self.run_config.num_sequences(len(self), self.lag)

    def heldout(self) -> Iterator[MicroBatch]:
        """Yield this rank's micro batches of one pass over all examples."""
        order = self._order(self.run_config.seed)
        return self._deal([order.sequence(index) for index in range(len(order))])

    @property
    def num_heldout_batches(self) -> int:
        """Micro batches that `heldout` yields."""
        order = self._order(self.run_config.seed)
        return self.dealer.count(self._sizes([order.sequence(i) for i in range(len(order))]))

    def largest(self) -> MicroBatch:
        """Return a micro batch of filler that is as large as any of the run's on one rank."""
        packing, longest = self.run_config.packing, int(self.examples.lengths.max())
        return self.dealer.largest(self.run_config.max_length if packing else longest)

    def describe(self) -> str:
        """Return counts as a line of text."""
        text = self.examples.describe()
        if self.run_config.packing:
            num_tokens = int(self.examples.lengths.sum())
            full = num_tokens / (len(self) * self.run_config.max_length)
            text += (
                f"; packed into {len(self):,} sequences of {self.run_config.max_length} tokens, "
                f"{full:.1%} full"
            )
        return text

    def _sizes(self, sequences: Sequence[Ints]) -> list[int]:
        return [int(self.examples.lengths[members].sum()) for members in sequences]

    def _deal(self, sequences: Sequence[Ints]) -> Iterator[MicroBatch]:
        return self.dealer.deal(
            self._sizes(sequences),
            lambda index: [self.examples[int(member)] for member in sequences[index]],
        )

    def _sequence(self, position: int) -> Ints:
        epoch, index = divmod(position, len(self))
        seed = pass_seed(self.run_config.seed, epoch, self.run_config.data_order)
        return self._order(seed).sequence(index)

    @cached_property
    def _slots(self) -> Ints:
        """The packed sequence of each example, the longest example first."""
        return pack(-np.sort(-self.examples.lengths), self.run_config.max_length)

    def _order(self, seed: int) -> Order:
        """Return the order of a pass; that of the last one asked for is kept."""
        if seed not in self._orders:
            self._orders.clear()
            self._orders[seed] = self._make_order(seed)
        return self._orders[seed]

    def _make_order(self, seed: int) -> Order:
        lengths, global_batch = self.examples.lengths, self.run_config.global_batch
        if self.run_config.packing:
            return packed(lengths, self._slots, global_batch, seed)
        if self.run_config.group_by_length:
            return grouped_by_length(lengths, global_batch, seed)
        return shuffled(len(lengths), seed)

"""What the ranks tell one another once per step, along with the loss that they report.

Each rank tells whether it was asked to stop, whether something failed on it alone, such as a write
to a full disk, and how many targets it has in the *next* step: the loss is divided by their number
in the global batch, and a step's micro batches are built while the device still works on the step
before. So a step needs no exchange of its own ahead of it; only the first one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diablo_ds.data.batches import MicroBatch
from diablo_ds.data.training_batches import TrainingBatches
from diablo_ds.errors import UserError
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.stopping import Boundaries, StopAgreed
from diablo_ds.training.step import Counts, count, total


class Exchange:
    """The micro batches of one step, and what the ranks tell one another about it and the next.

    Args:
        source: of micro batches; asked for one step after the other.
        boundaries: where all ranks may stop together.
        num_steps: steps of the run.
        failure: returns what failed on this rank alone; None for nothing.
    """

    def __init__(
        self,
        source: TrainingBatches,
        boundaries: Boundaries,
        *,
        num_steps: int,
        failure: Callable[[], Exception | None],
    ) -> None:
        self.micro_batches: Sequence[MicroBatch] = ()
        """This rank's, of the step to take."""
        self.totals = Counts()
        """Of the global batch of the step to take."""
        self._source, self._boundaries, self._num_steps = source, boundaries, num_steps
        self._own_failure = failure
        self._step = 0
        self._next: Sequence[MicroBatch] = ()
        self._error: Exception | None = None
        self._is_stopping = self._has_failed = False

    def open(self, step: int) -> None:
        """Prepare the first step that this process takes. Collective: every rank must call this."""
        self._step = step - 1
        self.receive(distributed.gather_floats(self.message(), self._boundaries.device))

    def message(self) -> list[float]:
        """Build the micro batches of the next step, and return what to tell the other ranks."""
        self._next = []
        heart.beat("reading data")
        if self._step + 1 < self._num_steps:
            try:
                self._next = list(self._source.step(self._step + 1))
            except (UserError, OSError) as error:
                self._error = error
        has_failed = self._failure() is not None
        return [*self._boundaries.message(), float(has_failed), *count(self._next)]

    def receive(self, messages: Sequence[Sequence[float]]) -> None:
        """Take in the message of every rank: the next step is then the one to take."""
        self._is_stopping = self._boundaries.receive([message[:2] for message in messages])
        self._has_failed = any(message[2] for message in messages)
        if not self._has_failed:  # a rank that failed may have no micro batches
            self.totals = total([message[3:] for message in messages])
        self.micro_batches, self._step = self._next, self._step + 1

    def check(self) -> None:
        """End the run, on all ranks together, where a rank failed or was asked to stop.

        Collective: every rank must call this, after a step's checkpoint was written.

        Raises:
            UserError, OSError: what failed on some rank.
            StopAgreed: if some rank was asked to stop.
        """
        if self._has_failed:
            distributed.raise_first_error(self._failure())
        if self._is_stopping:
            raise StopAgreed

    def _failure(self) -> Exception | None:
        return self._error or self._own_failure()

"""What the ranks tell one another once per step, along with the loss that they report.

Each rank tells whether it was asked to stop, whether something failed on it alone, such as a write
to a full disk, and how many targets it has in the *next* step: the loss is divided by their number
in the global batch, and a thread builds a step's micro batches while the step before is taken. So a
step needs no exchange of its own ahead of it; only the first one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diablo_ds.data.batches import MicroBatch
from diablo_ds.data.training_batches import TrainingBatches
from diablo_ds.errors import UserError
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.stopping import Boundaries, StopAgreed
from diablo_ds.training.reading_ahead import ReadingAhead
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
        self.wait_s = 0.0
        """How long the slowest rank waited for micro batches, in seconds, since it was set to 0."""
        self._ahead = ReadingAhead(source, boundaries.device)
        self._boundaries, self._num_steps = boundaries, num_steps
        self._own_failure = failure
        self._step = 0
        self._next: Sequence[MicroBatch] = ()
        self._error: Exception | None = None
        self._is_stopping = self._has_failed = False

    def open(self, step: int) -> None:
        """Prepare the first step that this process takes. Collective: every rank must call this."""
        self._step = step - 1
        self.receive(distributed.gather_floats(self.message(), self._boundaries.device))

    def read_ahead(self) -> None:
        """Let a thread build the micro batches of the next step; `message` waits for them."""
        if self._step + 1 < self._num_steps:
            self._ahead.begin(self._step + 1)

    def message(self) -> list[float]:
        """Wait for the micro batches of the next step, and return what to tell the other ranks.

        Raises:
            Exception: what building them raised, unless `check` will: a UserError or an OSError.
        """
        self._next, wait_s = [], 0.0
        heart.beat("reading data")
        self.read_ahead()
        if self._step + 1 < self._num_steps:
            try:
                self._next = self._ahead.result()
            except (UserError, OSError) as error:
                self._error = error
            wait_s = self._ahead.wait_s
        has_failed = self._failure() is not None
        return [*self._boundaries.message(), float(has_failed), wait_s, *count(self._next)]

    def receive(self, messages: Sequence[Sequence[float]]) -> None:
        """Take in the message of every rank: the next step is then the one to take."""
        self._is_stopping = self._boundaries.receive([message[:2] for message in messages])
        self._has_failed = any(message[2] for message in messages)
        self.wait_s += max(message[3] for message in messages)
        if not self._has_failed:  # a rank that failed may have no micro batches
            self.totals = total([message[4:] for message in messages])
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

    def close(self) -> None:
        """End the thread that builds micro batches, at its next one."""
        self._ahead.close()

    def _failure(self) -> Exception | None:
        return self._error or self._own_failure()

"""Reports of a run for all ranks: rank 0 writes them, and a failed write ends all ranks."""

from __future__ import annotations

from collections.abc import Callable

from diablo_ds.errors import UserError
from diablo_ds.ranks import distributed
from diablo_ds.training.history import History
from diablo_ds.training.metrics import Reporter


class Reports:
    """Rank 0's reporter; other ranks have none.

    A write that fails, as on a full disk, must not end rank 0 alone while the other ranks wait for
    it. So its error is kept until the ranks exchange numbers anyway; nothing is written after it.
    Collective: every rank must build it.

    Args:
        build: returns the reporter; called on rank 0.

    Raises:
        UserError, OSError: on every rank, if rank 0 cannot build it.
    """

    def __init__(self, build: Callable[[], Reporter]) -> None:
        self.error: Exception | None = None
        """Why a write failed on this rank."""
        self._reporter: Reporter | None = None

        def build_here() -> None:
            self._reporter = build()

        distributed.on_main_process(build_here)

    def write(self, write: Callable[[Reporter], None]) -> None:
        """Call a function with the reporter on rank 0, unless an earlier one failed."""
        if self._reporter is None or self.error is not None:
            return
        try:
            write(self._reporter)
        except (UserError, OSError) as error:
            self.error = error

    def heldout_loss(self, step: int) -> float | None:
        """Return the held-out loss that is recorded of a step, if any. Collective."""
        return distributed.on_main_process(lambda: self.history.heldout_loss(step))

    def scored_tasks(self, step: int) -> set[str]:
        """Return the tasks of which scores are recorded of a step. Collective."""
        return distributed.on_main_process(lambda: self.history.scored_tasks(step))

    @property
    def history(self) -> History:
        """The points of the run; empty except on rank 0."""
        return History() if self._reporter is None else self._reporter.history

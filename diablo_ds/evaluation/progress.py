"""A progress bar over questions: how many, how fast, and the time that is left."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from diablo_ds.ranks import distributed
from diablo_ds.ranks.terminal import shows_progress

_LINE_S = 15.0
"""Seconds between lines where nobody sees them at once, as in a log file."""


class Progress:
    """A bar on stderr of rank 0; without a terminal a line now and then.

    Args:
        total: of what is counted; nothing is shown for 0.
        unit: what is counted.
    """

    def __init__(self, total: int, unit: str = "question") -> None:
        self._total, self._unit = total, unit
        self._bar: Any = None

    def __enter__(self) -> Progress:
        """Show the bar."""
        if self._total and distributed.is_main_process():
            from tqdm import tqdm

            seconds = 0.1 if shows_progress() else _LINE_S
            self._bar = tqdm(
                total=self._total,
                unit=self._unit,
                dynamic_ncols=True,
                mininterval=seconds,
                delay=0 if shows_progress() else seconds,
                file=sys.stderr,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def tell(self, what: str) -> None:
        """Say what is worked on."""
        if self._bar is not None:
            self._bar.set_description(what, refresh=shows_progress())

    def advance(self) -> None:
        """Count one."""
        if self._bar is not None:
            self._bar.update(1)

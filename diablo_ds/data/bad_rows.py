"""The rule on rows that fit no kind: some are skipped and named, too many end the reading."""

from __future__ import annotations

from collections.abc import Sequence

from diablo_ds.errors import UserError

MIN_ROWS_TO_JUDGE = 10_000
"""Rows to read before an excess of bad rows ends the reading early."""
MAX_NAMED = 5
"""Bad rows that are named to the user."""


class BadRows:
    """Counts bad rows as they are read.

    Args:
        allowed: share of rows that may be bad.
    """

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._num_rows = 0
        self._num_bad = 0
        self._first: list[str] = []

    def add(self, num_rows: int, num_bad: int, lines: Sequence[str]) -> None:
        """Count rows that were read.

        Args:
            num_rows: how many.
            num_bad: those of them that are bad.
            lines: file, line and reason of the first bad ones.

        Raises:
            UserError: if, after `MIN_ROWS_TO_JUDGE` rows, too many are bad.
        """
        self._num_rows += num_rows
        self._num_bad += num_bad
        self._first += lines[: MAX_NAMED - len(self._first)]
        if self._num_rows >= MIN_ROWS_TO_JUDGE:
            self._check()

    def finish(self) -> list[str]:
        """Return a line of text for each of the first skipped rows.

        Raises:
            UserError: if too many rows are bad.
        """
        self._check()
        lines = [f"Skipped: {line}" for line in self._first]
        if more := self._num_bad - len(self._first):
            lines.append(f"Skipped: {more:,} more row{'' if more == 1 else 's'}")
        return lines

    def _check(self) -> None:
        if self._num_bad > self._allowed * self._num_rows:
            first = "\n  ".join(self._first)
            if not self._allowed:
                raise UserError(
                    f"each row must fit its corpus; got {self._num_bad} of {self._num_rows} rows "
                    f"that do not fit:\n  {first}"
                )
            raise UserError(
                f"the share of bad rows must be at most max_bad_rows={self._allowed}; got "
                f"{self._num_bad} of {self._num_rows} rows that do not fit:\n  {first}\nmend them, "
                "name what they are (corpus, column), or raise max_bad_rows to skip them"
            )

"""Examples with random access: rows of a token table, in a fixed order, within a length limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from diablo_ds.data.corpora.encoding import count_rows
from diablo_ds.data.labels import Example
from diablo_ds.data.length_limit import LengthLimit
from diablo_ds.data.packing import Ints, permutation
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError


@dataclass(frozen=True)
class Examples:
    """A set of examples in a fixed order."""

    table: TokenTable
    indices: Ints
    """Row of the table of each example, ``[examples]``."""
    lengths: Ints
    """Tokens of each example within the limit, ``[examples]``."""
    origin: str
    """Where the examples come from, for the user."""
    limit: LengthLimit = field(default_factory=LengthLimit)
    num_dropped: int = 0
    num_cut: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    """Rows of raw files by what was done with them."""

    @classmethod
    def from_table(cls, table: TokenTable, limit: LengthLimit, origin: str) -> Examples:
        """Return all examples of a table that are within a limit, or can be cut to it.

        Raises:
            UserError: if none remains, or one is too long and the limit's policy is "error".
        """
        lengths = table.lengths()
        too_long = np.flatnonzero(lengths > limit.max_length)
        if len(too_long) and limit.overlong == "error":
            first = int(too_long[0])
            source_row = int(table.source_rows(too_long[:1])[0])
            raise UserError(
                f"each example must fit max_length; got {len(too_long)} longer than "
                f"max_length={limit.max_length} in {origin}, the first from row {source_row + 1} "
                f"with {lengths[first]} tokens; raise max_length, or set overlong to drop, "
                "cut-prompt or cut-completion"
            )
        keep = np.ones(len(lengths), np.bool_)
        if limit.overlong == "drop":
            keep[too_long] = False
        else:
            for row in too_long:
                keep[row] = limit.fit(table[int(row)]) is not None
        if not keep.any():
            raise UserError(
                f"data must have at least one example of at most {limit.max_length} tokens; got "
                f"{len(lengths)} examples, {len(too_long)} too long, in {origin}"
            )
        num_dropped = int(len(lengths) - keep.sum())
        return cls(
            table=table,
            indices=np.flatnonzero(keep),
            lengths=np.minimum(lengths[keep], limit.max_length),
            origin=origin,
            limit=limit,
            num_dropped=num_dropped,
            num_cut=len(too_long) - num_dropped,
        )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """Return one example, cut to the limit; on access, as the table may be memory-mapped."""
        kept = self.limit.fit(self.table[int(self.indices[index])])
        assert kept is not None
        return kept

    def split(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Split off a random share of rows, at least one, that depends on the seed alone.

        The answers of a conversation stay together, even if each is an example of its own.

        Returns:
            The remaining examples, then those that were split off.

        Raises:
            UserError: if there are fewer than two rows.
        """
        names, rows = np.unique(self.table.source_rows(self.indices), return_inverse=True)
        if len(names) < 2:
            raise UserError(
                f"data must have at least 2 rows to hold some out; got {len(names)} in "
                f"{self.origin}; name held-out data, or set heldout_share to 0"
            )
        num_heldout = max(1, round(share * len(names)))
        is_heldout = np.isin(rows, permutation(len(names), seed)[:num_heldout])
        heldout = replace(self._subset(is_heldout), notes={})  # the notes count all rows
        return self._subset(~is_heldout), heldout

    def num_rows(self) -> int:
        """Return the number of source rows that the examples come from."""
        return self.table.count_source_rows(self.indices)

    def _subset(self, mask: npt.NDArray[np.bool_]) -> Examples:
        return replace(self, indices=self.indices[mask], lengths=self.lengths[mask])

    def describe(self) -> str:
        """Return counts as a line of text, with those of dropped and cut examples."""
        num_rows = self.num_rows()
        rows = f" of {num_rows:,} rows" if num_rows < len(self) else ""
        num_tokens = int(self.lengths.sum())
        text = f"{len(self):,} examples{rows}, {num_tokens:,} tokens from {self.origin}"
        if self.num_dropped:
            text += f"; {self.num_dropped:,} longer than max_length dropped"
        if self.num_cut:
            text += f"; {self.num_cut:,} longer than max_length cut"
        for note, number in self.notes.items():
            text += f"\n  {count_rows(number, note)}"
        return text

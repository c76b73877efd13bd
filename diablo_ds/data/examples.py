"""Examples with random access: rows of a token table, in a fixed order, within a length limit."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from diablo_ds.data.counts import PartCounts, ReadCounts, describe_read
from diablo_ds.data.labels import IGNORE_LABEL, Example
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
    dropped: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Tokens of each example that was dropped as too long."""
    num_rows_dropped: int = 0
    """Rows of which no example remained."""
    num_not_in_mix: int = 0
    """Rows that the mix leaves out."""
    read: ReadCounts = field(default_factory=ReadCounts)
    """What came of the rows of the sources."""

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
        indices = np.flatnonzero(keep)
        return cls(
            table=table,
            indices=indices,
            lengths=np.minimum(lengths[keep], limit.max_length),
            origin=origin,
            limit=limit,
            dropped=lengths[~keep],
            num_rows_dropped=table.count_source_rows(np.arange(len(table)))
            - table.count_source_rows(indices),
        )

    @classmethod
    def concatenated(cls, parts: Sequence[Examples]) -> Examples:
        """Return the examples of several sources, which have one limit, in one set."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.table) for part in parts)])
        return cls(
            table=TokenTable.concatenated([part.table for part in parts]),
            indices=np.concatenate([p.indices + n for p, n in zip(parts, starts, strict=False)]),
            lengths=np.concatenate([part.lengths for part in parts]),
            origin=", ".join(dict.fromkeys(part.origin for part in parts)),
            limit=parts[0].limit,
            dropped=np.concatenate([part.dropped for part in parts]),
            num_rows_dropped=sum(part.num_rows_dropped for part in parts),
            num_not_in_mix=sum(part.num_not_in_mix for part in parts),
            read=functools.reduce(operator.add, (part.read for part in parts)),
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
        heldout = Examples(
            self.table, self.indices[is_heldout], self.lengths[is_heldout], self.origin, self.limit
        )  # the counts of what was read stay with the training part
        return self.subset(~is_heldout), heldout

    def num_rows(self) -> int:
        """Return the number of source rows that the examples come from."""
        return self.table.count_source_rows(self.indices)

    def subset(self, mask: npt.NDArray[np.bool_]) -> Examples:
        """Return the examples that a mask chooses, ``[examples]``."""
        return replace(self, indices=self.indices[mask], lengths=self.lengths[mask])

    def counts(self) -> PartCounts:
        """Return what the examples amount to; target tokens are counted where that is cheap."""
        is_cut = self.table.lengths()[self.indices] > self.limit.max_length
        num_targets = None
        if not self.table.is_mapped:
            num_targets = int(self.table.num_targets()[self.indices[~is_cut]].sum())
            for index in np.flatnonzero(is_cut):
                num_targets += int(np.sum(np.array(self[int(index)].labels) != IGNORE_LABEL))
        return PartCounts(
            examples=len(self),
            rows=self.num_rows(),
            cut=int(is_cut.sum()),
            tokens=int(self.lengths.sum()),
            target_tokens=num_targets,
            longest=int(self.lengths.max(initial=0)),
        )

    def describe(self) -> str:
        """Return counts as lines of text, with those of the rows that were read."""
        left_out = {
            "bad": self.read.num_bad,
            "too long": self.num_rows_dropped,
            "not in the mix": self.num_not_in_mix,
        }
        lines = [f"{self.counts().describe()}; from {self.origin}"]
        lines += [f"  {line}" for line in describe_read(self.read, left_out)]
        if len(self.dropped) > self.num_rows_dropped:
            lines.append(f"  {len(self.dropped):,} too long of the examples of conversations")
        return "\n".join(lines)

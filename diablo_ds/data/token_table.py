"""Tokens and labels of many examples, in memory or memory-mapped from a prepared dataset."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diablo_ds.data.arrow_bounds import arrow_damages, check_batch
from diablo_ds.data.dataset_files import COLUMNS, ROW_COLUMN, TOKENS, read_columns
from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.packing import Ints
from diablo_ds.errors import UserError

Tokens = npt.NDArray[np.int32]
ROWS_FOR_ENDS = 10_000
"""Rows that are searched for the tokens that end examples; each may cost a disk page."""
_MAX_SOURCE_ROWS = 1 << 48


class TokenTable:
    """Tokens and labels of many examples, in flat arrays; memory-mapped if they are on disk.

    Args:
        chunks: offsets ``[rows + 1]``, token ids and labels, both flat, of consecutive rows.
        source_rows: the source row of each, ``[rows]``; None if no two share one.
        is_mapped: whether the arrays are on disk.
    """

    def __init__(
        self,
        chunks: Sequence[tuple[npt.NDArray[Any], Tokens, Tokens]],
        source_rows: Ints | None = None,
        *,
        is_mapped: bool = False,
    ) -> None:
        self._source_rows = source_rows
        self.is_mapped = is_mapped
        self._chunks = [chunk for chunk in chunks if len(chunk[0]) > 1]
        ends = np.cumsum([len(offsets) - 1 for offsets, _, _ in self._chunks])
        self._starts: list[int] = [0, *ends.tolist()]

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        """Return a row, without a copy."""
        number = bisect.bisect_right(self._starts, index) - 1
        offsets, ids, labels = self._chunks[number]
        row = index - self._starts[number]
        start, end = offsets[row], offsets[row + 1]
        return Example(ids[start:end], labels[start:end])

    def flat(self) -> Iterator[tuple[Tokens, Tokens]]:
        """Yield token ids and labels of consecutive rows, flat and without a copy."""
        for offsets, ids, labels in self._chunks:
            yield ids[offsets[0] : offsets[-1]], labels[offsets[0] : offsets[-1]]

    def lengths(self) -> Ints:
        """Return the number of tokens of each row."""
        parts = [np.diff(offsets).astype(np.int64) for offsets, _, _ in self._chunks]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def source_rows(self, indices: Ints) -> Ints:
        """Return the source row of each of some rows, ``[indices]``."""
        return indices if self._source_rows is None else self._source_rows[indices]

    def count_source_rows(self, indices: Ints) -> int:
        """Return the number of source rows that some rows come from."""
        rows = self.source_rows(indices)
        return len(rows) if self._source_rows is None else len(np.unique(rows))

    def num_targets(self) -> Ints:
        """Return the number of tokens with loss of each row; reads everything."""
        parts = [
            np.add.reduceat(labels[: o[-1]] != IGNORE_LABEL, o[:-1], dtype=np.int64)
            for o, _, labels in self._chunks
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def last_targets(self) -> frozenset[int]:
        """Return the last labels of up to `ROWS_FOR_ENDS` rows, spread evenly over the table."""
        step = max(1, len(self) // ROWS_FOR_ENDS)
        rows = (self[index] for index in range(0, len(self), step))
        return frozenset(int(row.labels[-1]) for row in rows if len(row.labels))

    def largest_id(self) -> int:
        """Return the largest token id or label; reads everything."""
        parts = ((ids[o[0] : o[-1]], labels[o[0] : o[-1]]) for o, ids, labels in self._chunks)
        return max((int(max(part.max(initial=0) for part in both)) for both in parts), default=0)

    @classmethod
    def from_examples(
        cls, examples: Sequence[Example], source_rows: Sequence[int] | None = None
    ) -> TokenTable:
        """Copy examples into a table; see the class for ``source_rows``."""
        offsets = np.cumsum([0, *(len(example.input_ids) for example in examples)])
        flat = (
            np.fromiter((t for example in examples for t in example[part]), np.int32, offsets[-1])
            for part in (0, 1)
        )
        ids, labels = flat
        rows = None if source_rows is None else np.array(source_rows, np.int64)
        return cls([(offsets, ids, labels)], rows)

    @classmethod
    def concatenated(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """Return the rows of several tables in one, without a copy of their tokens."""
        if len(tables) == 1:
            return tables[0]
        rows, start = [], 0
        for table in tables:
            own = table.source_rows(np.arange(len(table)))
            rows.append(own + start)
            start += int(own.max(initial=-1)) + 1
        shared = any(table._source_rows is not None for table in tables)
        return cls(
            [chunk for table in tables for chunk in table._chunks],
            np.concatenate(rows) if shared else None,
            is_mapped=any(table.is_mapped for table in tables),
        )

    @classmethod
    def load(cls, path: Path, part: str) -> TokenTable:
        """Open one part of a dataset on disk, memory-mapped.

        Raises:
            UserError: if there is none, it is damaged, its columns are not lists of integers, or
                source rows are given and are not integers.
        """
        columns = read_columns(path, part)
        chunks = []
        try:
            check_batch(columns)
            ids, labels = (columns.column(name).cast(TOKENS) for name in COLUMNS)
            if [len(chunk) for chunk in ids.chunks] != [len(chunk) for chunk in labels.chunks]:
                ids, labels = (pa.chunked_array([c.combine_chunks()]) for c in (ids, labels))
            for ids_chunk, labels_chunk in zip(ids.chunks, labels.chunks, strict=True):
                for chunk in (ids_chunk, labels_chunk):
                    if chunk.null_count or chunk.flatten().null_count:
                        raise pa.ArrowInvalid("a value is missing")
                offsets = ids_chunk.offsets.to_numpy()
                if not np.array_equal(np.diff(offsets), np.diff(labels_chunk.offsets.to_numpy())):
                    raise pa.ArrowInvalid("input_ids and labels of a row differ in length")
                chunks.append(
                    (
                        offsets - offsets[0],
                        ids_chunk.flatten().to_numpy(),
                        labels_chunk.flatten().to_numpy(),
                    )
                )
        except arrow_damages() as error:
            raise UserError(
                "input_ids and labels must be lists of 32-bit integers, of equal lengths in each "
                f"row; got {path}: {error}"
            ) from None
        table = cls(chunks, _source_rows(columns, path), is_mapped=True)
        if not table.lengths().all():
            raise UserError(f"each example must have a token; got one without any in {path}")
        return table

    def check_tokens(self, source: str) -> None:
        """Raise UserError unless all ids are at least 0, and labels too or `IGNORE_LABEL`.

        Reads everything.
        """
        for _, ids, labels in self._chunks:
            label = labels[labels != IGNORE_LABEL].min(initial=0)
            if (least := min(int(ids.min(initial=0)), int(label))) < 0:
                raise UserError(
                    f"tokens must be at least 0, and labels too or {IGNORE_LABEL}; got {least} in "
                    f"{source}"
                )


def _source_rows(columns: Any, path: Path) -> Ints | None:
    if ROW_COLUMN not in columns.column_names:
        return None
    try:
        rows = columns.column(ROW_COLUMN).cast(pa.int64())
        if rows.null_count:
            raise pa.ArrowInvalid("a value is missing")
    except arrow_damages() as error:
        raise UserError(f"{ROW_COLUMN} must be a column of integers; got {path}: {error}") from None
    numbers: Ints = rows.to_numpy()
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < _MAX_SOURCE_ROWS:
        raise UserError(
            f"{ROW_COLUMN} must be a column of integers from 0 to {_MAX_SOURCE_ROWS:,}; got others "
            f"in {path}"
        )
    return numbers

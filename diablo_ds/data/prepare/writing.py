"""Chosen examples of all chunks to a part of a dataset: its shards and its counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diablo_ds.data.dataset_files import (
    COLUMNS,
    ROW_COLUMN,
    open_shard,
    schema,
    shard_name,
    write_part_files,
)
from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.prepare.chunk_files import read_chunk, row_numbers
from diablo_ds.data.prepare.selection import Mask, shard_ends

TOKENS_PER_SHARD = 1 << 26
"""About half a gigabyte with the labels."""
NUM_BINS = 32


class _Counts:
    """Counts of a part's examples, as they are written."""

    def __init__(self, max_length: int) -> None:
        self.num_examples = 0
        self.totals = dict.fromkeys(
            ("rows", "cut", "tokens", "target_tokens", "longest", "largest_id"), 0
        )
        self._bin_width = -(-max_length // NUM_BINS)
        self._histogram = np.zeros(NUM_BINS, np.int64)

    def add(self, chunk: pa.Table) -> npt.NDArray[np.int64]:
        """Count a chunk's chosen examples; return their rows, counted within the part."""
        lengths, totals = _lengths(chunk), self.totals
        ids, labels = (_values(chunk, column) for column in COLUMNS)
        numbers, rows = np.unique(row_numbers(chunk), return_inverse=True)
        rows = rows.astype(np.int64) + totals["rows"]
        self.num_examples += len(lengths)
        totals["rows"] += len(numbers)
        totals["cut"] += int(np.count_nonzero(chunk.column("is_cut").to_numpy()))
        totals["tokens"] += int(lengths.sum())
        totals["target_tokens"] += int(np.count_nonzero(labels != IGNORE_LABEL))
        totals["longest"] = max(totals["longest"], int(lengths.max()))
        totals["largest_id"] = max(totals["largest_id"], int(ids.max()))
        self._histogram += np.bincount((lengths - 1) // self._bin_width, minlength=NUM_BINS)
        return rows

    def described(self, *, by_row: bool) -> dict[str, Any]:
        """Return the counts as a manifest has them."""
        counts = {**self.totals, "examples": self.num_examples} if by_row else self.totals
        histogram = {"bin_width": self._bin_width, "counts": self._histogram.tolist()}
        return {**counts, "length_histogram": histogram}


def write_part(
    folder: Path,
    part: str,
    files: Sequence[Path],
    masks: Sequence[Mask],
    *,
    max_length: int,
    identity: str,
    by_row: bool,
) -> dict[str, Any]:
    """Write the chosen examples of all chunks as shards, and return the manifest's entry for them.

    Args:
        folder: new folder of the part.
        part: its name.
        files: chunk files.
        masks: the chosen examples of each.
        max_length: longest example, in tokens.
        identity: text that distinguishes this dataset from others, for the library's caches.
        by_row: whether to write the source row of each example, counted within the part, and to
            count examples besides rows; without it each row must have given one example.
    """
    folder.mkdir()
    counts = _Counts(max_length)
    ends = shard_ends(
        (int(_lengths(read_chunk(f))[m].sum()) for f, m in zip(files, masks, strict=True)),
        TOKENS_PER_SHARD,
    )
    names = [shard_name(number, len(ends)) for number in range(len(ends))]
    start = 0
    for name, end in zip(names, ends, strict=True):
        with open_shard(folder / name, by_row=by_row) as shard:
            for index in range(start, end + 1):
                if not masks[index].any():
                    continue
                chunk = read_chunk(files[index]).filter(pa.array(masks[index]))
                rows = counts.add(chunk)
                columns = chunk.select(COLUMNS)
                if by_row:
                    columns = columns.append_column(ROW_COLUMN, pa.array(rows))
                shard.write_table(columns.cast(schema(by_row=by_row)))
        start = end + 1
    write_part_files(folder, part, names, by_row=by_row, identity=identity)
    return counts.described(by_row=by_row)


def _values(table: pa.Table, column: str) -> npt.NDArray[np.int32]:
    flat: npt.NDArray[np.int32] = table.column(column).combine_chunks().flatten().to_numpy()
    return flat


def _lengths(table: pa.Table) -> npt.NDArray[np.int64]:
    column = table.column("input_ids").combine_chunks()
    lengths: npt.NDArray[np.int64] = column.value_lengths().to_numpy().astype(np.int64)
    return lengths

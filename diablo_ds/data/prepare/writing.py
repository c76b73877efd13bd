"""Prepared datasets on disk, in the form that `datasets.load_from_disk` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diablo_ds.data.labels import IGNORE_LABEL
from diablo_ds.data.prepare.chunks import DIGEST_BYTES, TOKENS, read_chunk
from diablo_ds.data.prepare.selection import Mask, RowNumbers, shard_ends
from diablo_ds.data.token_table import ROW_COLUMN
from diablo_ds.files.atomic import write_json

TOKENS_PER_SHARD = 1 << 26
"""About half a gigabyte with the labels."""
NUM_BINS = 32
_COLUMNS = ("input_ids", "labels")
_FIELDS = dict.fromkeys(_COLUMNS, TOKENS)


def digests(table: pa.Table) -> npt.NDArray[np.uint64]:
    """Return the digests of a chunk, ``[examples, 2]``; a copy, so that the file is not held."""
    (chunk,) = table.column("digest").chunks or [pa.array([], pa.binary(DIGEST_BYTES))]
    data = chunk.buffers()[1]
    values = np.frombuffer(data, np.uint64) if data is not None else np.zeros(0, np.uint64)
    return values.reshape(-1, 2)[: len(chunk)].copy()


def row_numbers(table: pa.Table) -> RowNumbers:
    """Return which row of its chunk each example came from, ``[examples]``; a copy too."""
    numbers: RowNumbers = table.column("row").to_numpy().copy()
    return numbers


def write_part_names(folder: Path, parts: Sequence[str]) -> None:
    """Name the parts of a dataset, each in its folder."""
    write_json(folder / "dataset_dict.json", {"splits": list(parts)})


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
    """Write the chosen examples of all chunks as shards, and return what a manifest says of them.

    Args:
        folder: new folder of the part.
        part: its name.
        files: the chunks.
        masks: the chosen examples of each.
        max_length: longest example, in tokens.
        identity: text that tells this dataset from others, for the library's caches.
        by_row: whether to write which row each example came from, counted within the part, and to
            count examples beside rows; without it each row must have given one.
    """
    folder.mkdir()
    schema = pa.schema({**_FIELDS, ROW_COLUMN: pa.int64()} if by_row else _FIELDS)
    num_examples = 0
    totals = {"rows": 0, "cut": 0, "tokens": 0, "target_tokens": 0, "longest": 0, "largest_id": 0}
    bin_width = -(-max_length // NUM_BINS)
    histogram = np.zeros(NUM_BINS, np.int64)
    ends = shard_ends(
        (int(_lengths(read_chunk(f))[m].sum()) for f, m in zip(files, masks, strict=True)),
        TOKENS_PER_SHARD,
    )
    names, start = [], 0
    for number, end in enumerate(ends):
        name = f"data-{number:05d}-of-{len(ends):05d}.arrow"
        names.append(name)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, schema) as out:
            for index in range(start, end + 1):
                if not masks[index].any():
                    continue
                chunk = read_chunk(files[index]).filter(pa.array(masks[index]))
                lengths = _lengths(chunk)
                ids, labels = (_values(chunk, column) for column in _COLUMNS)
                numbers, rows = np.unique(row_numbers(chunk), return_inverse=True)
                rows = rows.astype(np.int64) + totals["rows"]
                num_examples += len(lengths)
                totals["rows"] += len(numbers)
                totals["cut"] += int(np.count_nonzero(chunk.column("is_cut").to_numpy()))
                totals["tokens"] += int(lengths.sum())
                totals["target_tokens"] += int(np.count_nonzero(labels != IGNORE_LABEL))
                totals["longest"] = max(totals["longest"], int(lengths.max()))
                totals["largest_id"] = max(totals["largest_id"], int(ids.max()))
                histogram += np.bincount((lengths - 1) // bin_width, minlength=NUM_BINS)
                columns = chunk.select(_COLUMNS)
                if by_row:
                    columns = columns.append_column(ROW_COLUMN, pa.array(rows))
                out.write_table(columns.cast(schema))
        start = end + 1
    fingerprint = hashlib.sha256(f"{identity} {part}".encode()).hexdigest()[:16]
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": part,
    }
    write_json(folder / "state.json", state)
    feature = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}
    features: dict[str, Any] = dict.fromkeys(_COLUMNS, feature)
    if by_row:
        features[ROW_COLUMN] = {"dtype": "int64", "_type": "Value"}
    info = {"citation": "", "description": "", "features": features}
    write_json(folder / "dataset_info.json", {**info, "homepage": "", "license": ""})
    counts = {**totals, "examples": num_examples} if by_row else totals
    return {**counts, "length_histogram": {"bin_width": bin_width, "counts": histogram.tolist()}}


def _values(table: pa.Table, column: str) -> npt.NDArray[np.int32]:
    flat: npt.NDArray[np.int32] = table.column(column).combine_chunks().flatten().to_numpy()
    return flat


def _lengths(table: pa.Table) -> npt.NDArray[np.int64]:
    column = table.column("input_ids").combine_chunks()
    lengths: npt.NDArray[np.int64] = column.value_lengths().to_numpy().astype(np.int64)
    return lengths

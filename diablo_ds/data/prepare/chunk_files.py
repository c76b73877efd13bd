"""Chunk files: the examples of one chunk of a preparation as Arrow, with counts of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diablo_ds.data.dataset_files import TOKENS
from diablo_ds.data.labels import Example
from diablo_ds.files import owned
from diablo_ds.files.atomic import new_file, sha256_file

DIGEST_BYTES = 16
_SCHEMA = pa.schema(
    {
        "input_ids": TOKENS,
        "labels": TOKENS,
        "digest": pa.binary(DIGEST_BYTES),
        "is_cut": pa.bool_(),
        "row": pa.int32(),
    }
)
"""One example each; ``row`` counts the chunk's rows, of which a conversation may give several."""


class KeptExample(NamedTuple):
    """An example of a chunk, within the limit on its length."""

    example: Example
    is_cut: bool
    row: int


class ChunkCounts(NamedTuple):
    """What became of a chunk's rows; small, and stored in its file."""

    file: int
    """The first row's source file."""
    num_rows: int
    num_rejected: int
    reasons: dict[str, int]
    """Rejected rows by the rule they broke."""
    shown: list[tuple[int, int, str]]
    """File, line and reason of the first rejected rows."""
    dropped: dict[str, int]
    """Good rows of which no example is kept, by reason."""
    num_kept: int
    """Examples within the limit, or cut to it."""
    too_long: list[int]
    """Tokens of each example dropped as longer than the limit; a row of several may keep others."""
    kinds: dict[str, int]
    """Good rows by the name of their kind."""
    notes: dict[str, int]
    """Good rows by what was done with them."""


class FinishedChunk(NamedTuple):
    """A chunk whose file is complete."""

    name: str
    """Of its file."""
    sha256: str
    """Of its file, in hexadecimal."""
    counts: ChunkCounts


def chunk_file(folder: Path, number: int) -> Path:
    """Return the path of a chunk's file."""
    return folder / f"chunk-{number:08d}.arrow"


def write_chunk(path: Path, kept: Sequence[KeptExample], counts: ChunkCounts) -> None:
    """Write a chunk's file, atomically."""
    examples = [one.example for one in kept]
    lengths = np.fromiter((len(e.input_ids) for e in examples), np.int32, len(examples))
    ends = np.cumsum(lengths, dtype=np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), ends])
    num_tokens = int(offsets[-1])
    ids = np.fromiter(chain.from_iterable(e.input_ids for e in examples), np.int32, num_tokens)
    labels = np.fromiter(chain.from_iterable(e.labels for e in examples), np.int32, num_tokens)
    digests = [
        hashlib.blake2b(ids[a:b].tobytes() + labels[a:b].tobytes(), digest_size=DIGEST_BYTES)
        for a, b in pairwise(offsets)
    ]
    columns = [
        pa.ListArray.from_arrays(offsets, ids),
        pa.ListArray.from_arrays(offsets, labels),
        pa.array([digest.digest() for digest in digests], _SCHEMA.field("digest").type),
        pa.array([one.is_cut for one in kept], pa.bool_()),
        pa.array([one.row for one in kept], pa.int32()),
    ]
    schema = _SCHEMA.with_metadata({"counts": json.dumps(counts._asdict(), sort_keys=True)})
    with (
        new_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):
        writer.write_batch(pa.record_batch(columns, schema=schema))


def read_chunk(path: Path) -> pa.Table:
    """Return a chunk's table, memory-mapped: input_ids, labels, digest, is_cut, row."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


def read_counts(path: Path) -> ChunkCounts:
    """Return a chunk's counts."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return ChunkCounts(**json.loads(reader.schema.metadata[b"counts"]))


def digests(table: pa.Table) -> npt.NDArray[np.uint64]:
    """Return the digests of a chunk, ``[examples, 2]``; a copy, so that its file can be closed."""
    (chunk,) = table.column("digest").chunks or [pa.array([], pa.binary(DIGEST_BYTES))]
    data = chunk.buffers()[1]
    values = np.frombuffer(data, np.uint64) if data is not None else np.zeros(0, np.uint64)
    return values.reshape(-1, 2)[: len(chunk)].copy()


def row_numbers(table: pa.Table) -> npt.NDArray[np.int32]:
    """Return the row of its chunk of each example, ``[examples]``; a copy too."""
    numbers: npt.NDArray[np.int32] = table.column("row").to_numpy().copy()
    return numbers


def read_finished(path: Path, sha256: str | None) -> ChunkCounts | None:
    """Return the counts of a chunk that an earlier run wrote; None where there is no such file.

    Args:
        path: the file.
        sha256: of what that run wrote, in hexadecimal; None where it wrote none.
    """
    if sha256 is None or not owned.is_own_file(path) or sha256_file(path) != sha256:
        return None
    try:
        is_known = read_chunk(path).schema.equals(_SCHEMA)  # not that of another version
        return read_counts(path) if is_known else None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None

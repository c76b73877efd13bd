"""Chunks: pieces of the source files, tokenised one by one, each kept as a file of its own.

A chunk depends on the source alone, never on the number of processes: so the result does not
either, and an interrupted run goes on with the chunks that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import Source
from diablo_ds.data.labels import Example
from diablo_ds.data.prepare.decontamination import ExcludedQuestions
from diablo_ds.files.atomic import new_file

ROWS_PER_CHUNK = 1000
CHARACTERS_PER_CHUNK = 2_000_000
MAX_SHOWN = 20
"""Rejected rows that a chunk, and the manifest, list one by one; all are counted."""
TOO_LONG = "longer than max_length"
DIGEST_BYTES = 16

TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    {
        "input_ids": TOKENS,
        "labels": TOKENS,
        "digest": pa.binary(DIGEST_BYTES),
        "is_cut": pa.bool_(),
        "row": pa.int32(),
    }
)
"""An example each; ``row`` counts the chunk's rows, of which a conversation may give several."""


class Chunk(NamedTuple):
    """Consecutive rows of one source file."""

    number: int
    file: int
    """Index of the source file among all."""
    rows: list[RawRow]


class ChunkCounts(NamedTuple):
    """What became of a chunk's rows; small, and kept in its file."""

    file: int
    num_rows: int
    num_rejected: int
    reasons: dict[str, int]
    """Rejected rows by the rule they broke."""
    shown: list[tuple[int, str]]
    """Line and reason of the first rejected rows."""
    dropped: dict[str, int]
    """Good rows left out whole, by reason."""
    num_too_long: int
    """Examples left out as longer than the limit; a row of several may keep others."""
    forms: dict[str, int]
    notes: dict[str, int]
    """Good rows by what was done with them."""


def split_chunks(
    sources: Sequence[Source], limit: int, on_bytes: Callable[[int], object]
) -> Iterator[Chunk]:
    """Cut source files into chunks, in bounded memory.

    Args:
        sources: the files.
        limit: rows to read of each source name; 0 for all.
        on_bytes: called with the bytes read each time.
    """
    number = 0
    num_read: Counter[str] = Counter()
    for file, source in enumerate(sources):
        rows: list[RawRow] = []
        size = 0
        for row in read_rows(source.path, on_bytes):
            if limit and num_read[source.name] == limit:
                break
            num_read[source.name] += 1
            rows.append(row)
            size += row.size()
            if len(rows) == ROWS_PER_CHUNK or size >= CHARACTERS_PER_CHUNK:
                yield Chunk(number, file, rows)
                number, rows, size = number + 1, [], 0
        if rows:
            yield Chunk(number, file, rows)
            number += 1


class ChunkEncoder:
    """Tokenises chunks; one in each worker process.

    Args:
        encoder: reads, renders and tokenises rows.
        tests: test questions to leave out of training rows.
        num_heldout_files: source files, the first ones, that hold held-out rows.
        folder: where chunk files go.
    """

    def __init__(
        self, encoder: RowEncoder, tests: ExcludedQuestions, num_heldout_files: int, folder: Path
    ) -> None:
        self._encoder = encoder
        self._tests = tests
        self._num_heldout_files = num_heldout_files
        self._folder = folder

    def __call__(self, chunk: Chunk) -> ChunkCounts:
        """Write a chunk's file, unless it is there already, and return its counts."""
        path = chunk_file(self._folder, chunk.number)
        if found := _finished(path):
            return found
        results = self._encoder.encode(chunk.rows)
        rejected = [result for result in results if isinstance(result, Rejected)]
        encoded = [result for result in results if isinstance(result, Encoded)]
        dropped: Counter[str] = Counter()
        kept: list[_Kept] = []
        num_too_long = 0
        compare = len(self._tests) > 0 and chunk.file >= self._num_heldout_files
        for number, row in enumerate(encoded):
            # A conversation goes whole: its later answers have the test's question before them.
            matches = map(self._tests.match, row.questions) if compare else iter(())
            if reason := next(filter(None, matches), ""):
                dropped[reason] += 1
                continue
            fitting = [_Kept(e, is_cut, number) for e, is_cut in row.examples if e is not None]
            kept += fitting
            num_too_long += len(row.examples) - len(fitting)
            if not fitting:
                dropped[TOO_LONG] += 1
        counts = ChunkCounts(
            file=chunk.file,
            num_rows=len(results),
            num_rejected=len(rejected),
            reasons=Counter(row.reason.split(": ")[0] for row in rejected),
            shown=[(row.line, row.reason) for row in rejected[:MAX_SHOWN]],
            dropped=dropped,
            num_too_long=num_too_long,
            forms=Counter(row.form for row in encoded),
            notes=Counter(note for row in encoded for note in row.notes),
        )
        with new_file(path) as temporary:
            _write(temporary, kept, counts)
        return counts


class _Kept(NamedTuple):
    example: Example
    is_cut: bool
    row: int


def _write(path: Path, kept: Sequence[_Kept], counts: ChunkCounts) -> None:
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
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


def chunk_file(folder: Path, number: int) -> Path:
    """Return the file of a chunk."""
    return folder / f"chunk-{number:08d}.arrow"


def read_chunk(path: Path) -> pa.Table:
    """Return a chunk's table, memory-mapped: input_ids, labels, digest, is_cut, row."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


def read_counts(path: Path) -> ChunkCounts:
    """Return a chunk's counts."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return ChunkCounts(**json.loads(reader.schema.metadata[b"counts"]))


def _finished(path: Path) -> ChunkCounts | None:
    """Return the counts of a chunk that an earlier run wrote; None where it is not whole."""
    if not path.is_file():
        return None
    try:
        is_known = read_chunk(path).schema.equals(_SCHEMA)  # another version's is not
        return read_counts(path) if is_known else None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


# --- worker processes ----------------------------------------------------------------------------

_encoder: ChunkEncoder | None = None
"""The encoder of this worker process; sent once, not with each chunk."""


def start_worker(encoder: ChunkEncoder) -> None:
    """Make this process a worker that ends when its parent does, however that ends."""
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    if parent := parent_process():
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(parent: Any) -> None:
    connection.wait([parent])
    os._exit(1)


def encode_in_worker(chunk: Chunk) -> ChunkCounts:
    """Tokenise a chunk in this worker process."""
    assert _encoder is not None
    return _encoder(chunk)

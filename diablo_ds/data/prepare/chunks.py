"""Chunks of the source files, tokenised one by one, each into a file of its own.

So the result does not depend on the number of processes, and an interrupted run continues with the
chunks that are there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Mapping
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from diablo_ds.data.corpora.chunking import Chunk
from diablo_ds.data.corpora.encoding import Encoded, Rejected, RowEncoder
from diablo_ds.data.length_limit import LengthLimit
from diablo_ds.data.prepare.chunk_files import (
    ChunkCounts,
    FinishedChunk,
    KeptExample,
    chunk_file,
    read_finished,
    write_chunk,
)
from diablo_ds.data.prepare.decontamination import ExcludedQuestions
from diablo_ds.files.atomic import sha256_file

MAX_SHOWN = 20
"""Rejected rows that a chunk and the manifest list one by one; all are counted."""
TOO_LONG = "longer than max_length"


class ChunkEncoder:
    """Tokenises chunks; one in each worker process.

    Args:
        encoder: reads, renders and tokenises rows.
        limit: applied to each example.
        tests: test questions; training rows that contain one are skipped.
        num_heldout_files: number of source files, the first ones, with held-out rows.
        folder: for the chunk files.
        finished: SHA-256 of the chunk files that an interrupted run wrote there, by name.
    """

    def __init__(
        self,
        encoder: RowEncoder,
        limit: LengthLimit,
        tests: ExcludedQuestions,
        num_heldout_files: int,
        folder: Path,
        finished: Mapping[str, str],
    ) -> None:
        self._encoder = encoder
        self._limit = limit
        self._tests = tests
        self._num_heldout_files = num_heldout_files
        self._folder = folder
        self._finished = finished

    def __call__(self, chunk: Chunk) -> FinishedChunk:
        """Write a chunk's file, unless it exists already."""
        path = chunk_file(self._folder, chunk.number)
        sha256 = self._finished.get(path.name)
        counts = read_finished(path, sha256)
        if counts is None or sha256 is None:
            counts = self._write(path, chunk)
            sha256 = sha256_file(path)
        return FinishedChunk(path.name, sha256, counts)

    def _write(self, path: Path, chunk: Chunk) -> ChunkCounts:
        results = self._encoder.encode(chunk.rows)
        rejected = [result for result in results if isinstance(result, Rejected)]
        encoded = [result for result in results if isinstance(result, Encoded)]
        dropped: Counter[str] = Counter()
        kept: list[KeptExample] = []
        too_long: list[int] = []
        compare = len(self._tests) > 0 and chunk.file >= self._num_heldout_files
        number = -1
        for row in encoded:
            number += 1
            # An entire conversation is skipped: its later answers follow the test's question.
            matches = map(self._tests.match, row.questions) if compare else iter(())
            if reason := next(filter(None, matches), ""):
                dropped[reason] += 1
                continue
            fitting: list[KeptExample] = []
            for example in row.examples:
                if row.is_joined and example is not row.examples[0]:
                    number += 1
                if (short := self._limit.fit(example)) is None:
                    too_long.append(len(example.input_ids))
                else:
                    is_cut = len(short.input_ids) < len(example.input_ids)
                    fitting.append(KeptExample(short, is_cut, number))
            kept += fitting
            if not fitting and not row.is_joined:
                dropped[TOO_LONG] += 1
        counts = ChunkCounts(
            file=chunk.file,
            num_rows=len(results),
            num_rejected=len(rejected),
            reasons=Counter(row.reason.split(": ")[0] for row in rejected),
            shown=[
                (file, row.line, row.reason)
                for file, row in zip(chunk.files, results, strict=True)
                if isinstance(row, Rejected)
            ][:MAX_SHOWN],
            dropped=dropped,
            num_kept=len(kept),
            too_long=too_long,
            kinds=Counter(row.kind for row in encoded),
            notes=Counter(note for row in encoded for note in row.notes),
        )
        write_chunk(path, kept, counts)
        return counts


# --- worker processes ----------------------------------------------------------------------------

_encoder: ChunkEncoder | None = None
"""The encoder of this worker process; sent once, not with each chunk."""


def start_worker(encoder: ChunkEncoder) -> None:
    """Make this process a worker that ends when its parent ends, even if that is killed."""
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # control-C: the parent ends it
    if parent := parent_process():
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(parent: Any) -> None:
    connection.wait([parent])
    os._exit(1)


def encode_in_worker(chunk: Chunk) -> FinishedChunk:
    """Tokenise a chunk in this worker process."""
    assert _encoder is not None
    return _encoder(chunk)

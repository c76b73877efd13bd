"""Fingerprints of data: digests of token tables, streams and files.

A fingerprint must not take minutes. So of a large table, the lengths of all examples are read and
blocks of tokens at even distances; of a large file, the size and such blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diablo_ds.data.examples import Examples
from diablo_ds.data.labels import Example
from diablo_ds.data.token_table import TokenTable

FULL_BYTES = 1 << 28
"""A table of at most this size is read in full; of a larger one, `SAMPLED_BYTES`."""
SAMPLED_BYTES = 1 << 26
BLOCK_BYTES = 1 << 16
NAMING_BYTES = 1 << 20
"""Bytes read per raw file to tell which of several changed."""
MAX_NAMED_FILES = 100
_DIGEST_BYTES = 16


def digest_table(table: TokenTable) -> str:
    """Return a digest of all tokens and labels, or of blocks of them, however they are chunked."""
    lengths, chunks = table.lengths(), table.flat()
    total = int(lengths.sum())
    digests = [hashlib.blake2b(digest_size=_DIGEST_BYTES) for _ in range(2)]
    digests[0].update(_buffer(lengths, np.int64))
    block = BLOCK_BYTES // 4
    starts: Sequence[int] = [0]
    if 8 * total <= FULL_BYTES:
        block = max(1, total)
    else:
        starts = _spread(total - block, SAMPLED_BYTES // BLOCK_BYTES // 2)
    first = 0
    for ids, labels in chunks:
        for start in starts:
            low, high = max(start - first, 0), min(start + block - first, len(ids))
            if low < high:
                digests[0].update(_buffer(ids[low:high], np.int32))
                digests[1].update(_buffer(labels[low:high], np.int32))
        first += len(ids)
    return digests[0].hexdigest() + digests[1].hexdigest()


def digest_examples(examples: Examples, table_digest: str) -> str:
    """Return a digest of examples: their table, which rows of it, and how they are cut.

    Args:
        examples: a selection of a table's rows.
        table_digest: what `digest_table` returned for their table.
    """
    limit = examples.limit
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    digest.update(table_digest.encode())
    digest.update(f"{limit.max_length} {limit.overlong} {len(limit.start_ids)}".encode())
    for array in (examples.indices, examples.lengths):
        digest.update(_buffer(array, np.int64))
    return digest.hexdigest()


def digest_stream(files: Sequence[Path], first_examples: Iterable[Example]) -> str:
    """Return a digest of a stream's files, and of how its first rows are tokenised."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for path in files:
        digest.update(_digest_file(path, max(NAMING_BYTES, SAMPLED_BYTES // len(files))))
    for example in first_examples:
        for values in example:
            digest.update(_buffer(values, np.int32))
    return digest.hexdigest()


def describe_files(files: Sequence[Path]) -> dict[str, list[Any]]:
    """Return size and digest of each file by its path; of many, one entry for all together."""
    if len(files) > MAX_NAMED_FILES:
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for path in files:
            digest.update(f"{path}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
        total = sum(path.stat().st_size for path in files)
        return {f"{len(files)} files": [total, digest.hexdigest()]}
    return {
        str(path): [path.stat().st_size, _digest_file(path, NAMING_BYTES).hex()] for path in files
    }


def _digest_file(path: Path, max_bytes: int) -> bytes:
    """Return a digest of a file's size and content; of a large file, blocks at even distances."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=_DIGEST_BYTES)
    with path.open("rb", buffering=0) as file:
        if size <= max_bytes:
            digest.update(file.read())
        else:
            for start in _spread(size - BLOCK_BYTES, max_bytes // BLOCK_BYTES):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    return digest.digest()


def _spread(last: int, count: int) -> list[int]:
    """Return ``count`` integers from 0 to ``last``, at even distances."""
    return [last * index // max(1, count - 1) for index in range(count)]


def _buffer(values: Any, dtype: type[np.signedinteger[Any]]) -> memoryview:
    return np.ascontiguousarray(values, dtype).data

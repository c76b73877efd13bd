"""Worker processes: one that loads the tokenizer, and others that tokenise."""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from diablo_ds.data.corpora.chunking import Chunk
from diablo_ds.data.prepare.chunk_files import FinishedChunk
from diablo_ds.data.prepare.chunks import ChunkEncoder, encode_in_worker, start_worker
from diablo_ds.data.text import tokenization
from diablo_ds.data.text.tokenization import Tokenizer
from diablo_ds.errors import UserError
from diablo_ds.files.safe_python import safe_children


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer, in a separate process unless this one has imported the libraries.

    They take about 300 MB, the tokenizer itself a tenth of that.

    Raises:
        UserError: if the tokenizer cannot be used.
        OSError: if the process is killed.
    """
    if sys.modules.get("transformers"):
        return tokenization.load_tokenizer(path)
    with _pool(1) as pool:
        loaded = pool.submit(_tokenizer_or_message, path).result()
    if isinstance(loaded, str):
        raise UserError(loaded)
    return loaded


def _tokenizer_or_message(path: Path) -> Tokenizer | str:
    try:
        return tokenization.load_tokenizer(path)
    except UserError as error:
        return str(error)


def encode_chunks(
    encoder: ChunkEncoder, chunks: Iterator[Chunk], num_proc: int
) -> Iterator[FinishedChunk]:
    """Encode chunks in worker processes, a few ahead, and yield their counts in order.

    A single chunk is encoded in this process, which is faster than starting another.

    Raises:
        OSError: if a worker is killed.
    """
    first = list(islice(chunks, 2))
    chunks = chain(first, chunks)
    if num_proc == 1 or len(first) < 2:
        yield from map(encoder, chunks)
        return
    with _pool(num_proc, start_worker, (encoder,)) as pool:
        waiting: deque[Future[FinishedChunk]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(encode_in_worker, chunk))
            if len(waiting) > 2 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _pool(
    num_proc: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of worker processes, which ends with the block."""
    context = multiprocessing.get_context("spawn")
    with safe_children():
        pool = ProcessPoolExecutor(num_proc, context, initializer, initargs)
        try:
            yield pool
        except BrokenProcessPool:
            raise OSError(
                "a worker process ended before its work was done, perhaps killed because memory "
                "ran out; finished work is kept: run the same command again to continue, with a "
                "lower --num-proc if memory was short"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

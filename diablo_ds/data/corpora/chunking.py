"""Source files cut into chunks of rows, in bounded memory: the units of preparation and training.

A chunk depends only on the sources, never on the number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import TEXT_FORMATS, SourceFile, format_of

ROWS_PER_CHUNK = 1000
CHARACTERS_PER_CHUNK = 2_000_000


@dataclass
class Chunk:
    """Consecutive rows of one source file, or of several text files, which are joined."""

    number: int
    rows: list[RawRow] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    """Index of each row's source file among all; files of one name, and all held out or none."""
    size: int = 0
    """Approximate number of characters."""

    @property
    def file(self) -> int:
        """The first row's source file."""
        return self.files[0]

    def is_full(self) -> bool:
        """Return whether the chunk ends here."""
        return len(self.rows) == ROWS_PER_CHUNK or self.size >= CHARACTERS_PER_CHUNK


def split_chunks(
    sources: Sequence[SourceFile],
    num_heldout_files: int = 0,
    limit: int = 0,
    on_bytes: Callable[[int], object] = int,
) -> Iterator[Chunk]:
    """Cut source files into chunks.

    Args:
        sources: files, read in this order.
        num_heldout_files: number of source files, the first ones, with held-out rows.
        limit: rows to read per source name; 0 for all.
        on_bytes: called with the number of bytes of each read.
    """
    chunk = Chunk(0)
    num_read: Counter[str] = Counter()
    for file, source in enumerate(sources):
        starts_part = file == num_heldout_files
        if chunk.rows and (starts_part or not _go_together(sources[chunk.file], source)):
            yield chunk
            chunk = Chunk(chunk.number + 1)
        for row in read_rows(source.path, on_bytes):
            if limit and num_read[source.name] == limit:
                break
            num_read[source.name] += 1
            chunk.rows.append(row)
            chunk.files.append(file)
            chunk.size += row.size()
            if chunk.is_full():
                yield chunk
                chunk = Chunk(chunk.number + 1)
    if chunk.rows:
        yield chunk


def _go_together(one: SourceFile, other: SourceFile) -> bool:
    """Return whether a chunk may hold rows of both files: texts of one source, one row each."""
    are_texts = all(format_of(source.path) in TEXT_FORMATS for source in (one, other))
    return are_texts and one.name == other.name

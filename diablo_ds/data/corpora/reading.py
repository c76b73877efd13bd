"""Source files to raw rows, each with its line, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from diablo_ds.data.corpora.json_files import read_json, read_lines
from diablo_ds.data.corpora.opening import open_source
from diablo_ds.data.corpora.raw_rows import RawRow
from diablo_ds.data.corpora.sources import TEXT_FORMATS, format_of
from diablo_ds.data.corpora.tables import read_arrow, read_csv, read_parquet
from diablo_ds.data.corpora.text_files import read_text


def read_rows(path: Path, on_bytes: Callable[[int], object] = int) -> Iterator[RawRow]:
    """Yield the rows of one file, in order and in bounded memory.

    JSON may be one object per line, an array of objects, or one object whose fields are lists. A
    text file is one document, in pieces.

    Args:
        path: in one of `FORMATS`, plain or compressed.
        on_bytes: called with the number of bytes of each read, as stored on disk.

    Raises:
        UserError: if the file cannot be opened, or is damaged in a way that hides where rows
            begin.
        OSError: if the disk fails.
    """
    file_format = format_of(path)
    if file_format in (".parquet", ".arrow"):
        yield from read_parquet(path) if file_format == ".parquet" else read_arrow(path)
        on_bytes(path.stat().st_size)
        return
    with open_source(path, on_bytes) as file:
        if file_format == ".csv":
            yield from read_csv(file, path)
        elif file_format == ".tsv":
            yield from read_csv(file, path, "\t")
        elif file_format in TEXT_FORMATS:
            yield from read_text(file, path)
        elif file_format in (".jsonl", ".ndjson"):
            yield from read_lines(file, path)
        else:
            yield from read_json(file, path)

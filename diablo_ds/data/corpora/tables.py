"""Rows of CSV, TSV, parquet and Arrow files, a few at a time whatever the files say."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from diablo_ds.data.arrow_bounds import arrow_damages, check_batch, check_messages, open_stream
from diablo_ds.data.corpora.opening import not_utf8, unopened
from diablo_ds.data.corpora.parquet_pages import rows_at_once
from diablo_ds.data.corpora.raw_rows import MAX_ROW_CHARACTERS, RawRow, Unreadable
from diablo_ds.errors import UserError
from diablo_ds.files.bounds import Growth, size_of

_MAX_RECORD_CHARACTERS = 64 * MAX_ROW_CHARACTERS
_MAX_CELL_CHARACTERS = 16 * MAX_ROW_CHARACTERS
"""A longer cell is the rest of the file after a quote that is never closed."""
_ROWS_PER_BATCH = 1000


def read_csv(file: IO[bytes], path: Path, delimiter: str = ",") -> Iterator[RawRow]:
    """Yield the rows of a CSV file that has a header.

    Args:
        file: the file, opened.
        path: its path, named in errors.
        delimiter: what stands between two fields; a tab in TSV files.

    Raises:
        UserError: if it is not UTF-8 or is damaged in a way that hides where rows begin.
    """
    # A setting of the entire process; its default, 131,072 characters, is too small for some rows.
    csv.field_size_limit(max(_MAX_CELL_CHARACTERS, csv.field_size_limit()))
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    line = 1
    try:
        lines = _Lines(text, path)
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        header = next(reader, [])
        _check_names(header, path)
        line = reader.line_num + 1
        for cells in reader:
            lines.num_characters = 0
            if len(cells) == len(header):
                yield RawRow(line, dict(zip(header, cells, strict=True)))
            elif cells:
                yield RawRow(line, Unreadable("a row must have as many fields as the header"))
            line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, line) from None
    except csv.Error as error:
        raise UserError(
            f"source file must be valid CSV; got {path}, line {line}: {error}"
        ) from None


class _Lines:
    """The lines of a CSV file, neither too long each nor too long together for one record."""

    def __init__(self, text: IO[str], path: Path) -> None:
        self._text = text
        self._path = path
        self._number = 0
        self.num_characters = 0
        """Of the current record, of which quoted line breaks make several lines."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(_MAX_CELL_CHARACTERS + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self.num_characters += len(line)
        for what, most, number in (
            ("line", _MAX_CELL_CHARACTERS, len(line)),
            ("row", _MAX_RECORD_CHARACTERS, self.num_characters),
        ):
            if number > most:
                raise UserError(
                    f"a {what} of a CSV file must have at most {most:,} characters; got more in "
                    f"{self._path}, line {self._number}"
                )
        return line


def _check_names(names: Sequence[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            f"columns of a source file must have different names; got {twice[0]!r} twice in {path}"
        )


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a parquet file; one with a value that Python lacks as unreadable.

    Raises:
        UserError: if it is damaged.
        OSError: if the disk fails.
    """
    import pyarrow.parquet as pq

    with _valid(path, "parquet") as rows, pq.ParquetFile(path) as file:
        _check_names(file.schema_arrow.names, path)
        num_rows = rows_at_once(path, _ROWS_PER_BATCH)
        for batch in file.iter_batches(batch_size=num_rows):
            yield from rows.of(batch)


def read_arrow(path: Path) -> Iterator[RawRow]:
    """Yield the rows of an Arrow file or stream, as `datasets` saves them; see `read_parquet`."""
    import pyarrow as pa

    with _valid(path, "Arrow") as rows, pa.memory_map(str(path)) as file:
        check_messages(file, path)
        with open_stream(file) as stream:
            _check_names(stream.schema.names, path)
            for batch in stream:
                check_batch(batch)
                yield from rows.of(batch)


class _Numbered:
    """Numbers the rows of the record batches of one file."""

    def __init__(self, growth: Growth) -> None:
        self.number = 0
        self._growth = growth

    def of(self, batch: Any) -> Iterator[RawRow]:
        for row in _rows(batch):
            self.number += 1
            self._growth.add(size_of(row))
            yield RawRow(self.number, row)


@contextmanager
def _valid(path: Path, file_format: str) -> Iterator[_Numbered]:
    """Raise UserError for a file that cannot be opened or is damaged, with the last good row."""
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise unopened(path, error) from None
    rows = _Numbered(Growth(path, num_bytes))
    try:
        yield rows
    except arrow_damages() as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"source file must be valid {file_format}; got {path}, after row {rows.number}: "
            f"{reason}"
        ) from None


# Arrow has values that Python does not: a date after the year 9999, text that is not UTF-8, an
# unknown time zone.
_NO_PYTHON_VALUE = (ArithmeticError, LookupError, TypeError, ValueError)


def _rows(batch: Any) -> Iterator[dict[str, Any] | Unreadable]:
    """Yield the rows of a record batch, made one by one: each may repeat a dictionary's text."""
    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for index in range(batch.num_rows):
        row: dict[str, Any] = {}
        for name, column in columns:
            try:
                row[name] = column[index].as_py()
            except _NO_PYTHON_VALUE as error:
                yield Unreadable(
                    f"a value must be one that Python can represent: column {name!r}, {error}"
                )
                break
        else:
            yield row

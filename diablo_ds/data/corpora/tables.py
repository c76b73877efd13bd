"""Rows of CSV, TSV, parquet and Arrow files."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from diablo_ds.data.corpora.opening import not_utf8, unopened
from diablo_ds.data.corpora.raw_rows import MAX_ROW_CHARACTERS, RawRow, Unreadable
from diablo_ds.errors import UserError

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
        reader = csv.reader(_lines(text, path), strict=True, delimiter=delimiter)
        header = next(reader, [])
        _check_names(header, path)
        line = reader.line_num + 1
        for cells in reader:
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


def _lines(text: IO[str], path: Path) -> Iterator[str]:
    number = 0
    while line := text.readline(_MAX_CELL_CHARACTERS + 1):
        number += 1
        if len(line) > _MAX_CELL_CHARACTERS:
            raise UserError(
                f"a line of a CSV file must have at most {_MAX_CELL_CHARACTERS:,} characters; got "
                f"more in {path}, line {number}"
            )
        yield line


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
        for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
            yield from rows.of(batch)


def read_arrow(path: Path) -> Iterator[RawRow]:
    """Yield the rows of an Arrow file or stream, as `datasets` saves them; see `read_parquet`."""
    import pyarrow as pa

    with _valid(path, "Arrow") as rows, pa.memory_map(str(path)) as file:
        try:
            stream = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            stored = pa.ipc.open_file(file)
            schema, batches = stored.schema, map(stored.get_batch, range(stored.num_record_batches))
        else:
            schema, batches = stream.schema, iter(stream)
        _check_names(schema.names, path)
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_PER_BATCH):
                yield from rows.of(batch.slice(start, _ROWS_PER_BATCH))


class _Numbered:
    """Numbers the rows of the record batches of one file."""

    def __init__(self) -> None:
        self.number = 0

    def of(self, batch: Any) -> Iterator[RawRow]:
        for row in _rows(batch):
            self.number += 1
            yield RawRow(self.number, row)


@contextmanager
def _valid(path: Path, file_format: str) -> Iterator[_Numbered]:
    """Raise UserError for a file that cannot be opened or is damaged, with the last good row."""
    import pyarrow as pa

    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise unopened(path, error) from None
    rows = _Numbered()
    try:
        yield rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names need not be UTF-8
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
    """Yield the rows of a record batch."""
    try:
        rows = batch.to_pylist()
    except _NO_PYTHON_VALUE:
        rows = _one_by_one(batch)
    yield from rows


def _one_by_one(batch: Any) -> Iterator[dict[str, Any] | Unreadable]:
    """Yield the rows of a record batch with values that Python cannot represent."""
    for index in range(batch.num_rows):
        row: dict[str, Any] | Unreadable = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                value = column[index].as_py()
            except _NO_PYTHON_VALUE as error:
                row = Unreadable(
                    f"a value must be one that Python can represent: column {name!r}, {error}"
                )
                break
            assert isinstance(row, dict)
            row[name] = value
        yield row

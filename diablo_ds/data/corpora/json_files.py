"""Rows of JSON files: one object per line, an array of objects, or an object of columns."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Any

from diablo_ds.data.corpora.opening import not_utf8
from diablo_ds.data.corpora.raw_rows import MAX_ROW_CHARACTERS, RawRow, Unreadable, fields, too_long
from diablo_ds.errors import UserError
from diablo_ds.files.bounds import check_values
from diablo_ds.files.strict_json import Decoder, has_lone_surrogate

_BLOCK_CHARACTERS = 1 << 20
_MAX_OBJECT_CHARACTERS = 1 << 24
"""Longest object of an array; a longer one is not a row and hides where the next one begins."""
_MAX_LINE_BYTES = 1 << 30
"""Longest line, too long for a row, that is skipped."""
_MAX_COLUMNS_CHARACTERS = 1 << 28
"""Longest object of columns, which is read at once."""
_SPACE, _BETWEEN_ROWS = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """Yield the lines that are not blank, unparsed; one too long for a row as unreadable.

    Raises:
        UserError: if a line does not end, as in a small file that decompresses endlessly.
    """
    number = 0
    while line := file.readline(MAX_ROW_CHARACTERS + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if len(line) > MAX_ROW_CHARACTERS and not line.endswith(b"\n"):
            num_bytes = len(line) + _skip_line(file, path, number)
            yield RawRow(number, too_long(num_bytes))
        elif line.strip():
            yield RawRow(number, line)


def _skip_line(file: IO[bytes], path: Path, number: int) -> int:
    """Read to the end of a line, and return the number of bytes."""
    num_bytes = 0
    while part := file.readline(_BLOCK_CHARACTERS):
        num_bytes += len(part)
        if part.endswith(b"\n"):
            break
        if num_bytes > _MAX_LINE_BYTES:
            raise UserError(
                f"a line of a source file must end within {_MAX_LINE_BYTES:,} bytes; got {path}, "
                f"line {number}"
            )
    return num_bytes


def read_json(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """Yield the rows of a JSON file in any of the three layouts.

    Raises:
        UserError: if the file is damaged in a way that hides where rows begin.
    """
    first = file.readline(_BLOCK_CHARACTERS)  # an array may be a single line of any length
    start = first.removeprefix(_BYTE_ORDER_MARK).lstrip()
    rewound = io.BufferedReader(_Rewound(first, file))
    if start.startswith(b"{") and _is_row(start):
        yield from read_lines(rewound, path)
        return
    text = io.TextIOWrapper(rewound, encoding="utf-8-sig")
    try:
        if start.startswith(b"{"):
            yield from _read_columns(text, path)
        else:
            yield from _read_array(text, path)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def _is_row(line: bytes) -> bool:
    """Return whether a line is a row, and not an object with a list of texts per field."""
    try:
        text = line.decode()
        decoded = Decoder(finite=False).decode(text)
    except ValueError:
        return False
    if text[decoded.end :].strip():
        return False
    return not decoded.value or not all(
        isinstance(v, list) and all(isinstance(x, str) for x in v) for v in decoded.value.values()
    )


class _Rewound(io.RawIOBase):
    """A stream with its first bytes put back, for a file that cannot seek."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first = first
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._first[: len(buffer)] if self._first else self._rest.read(len(buffer))
        self._first = self._first[len(data) :] if self._first else b""
        buffer[: len(data)] = data
        return len(data)


def _read_array(text: IO[str], path: Path) -> Iterator[RawRow]:
    """Yield the objects of a JSON array, one at a time."""
    decoder = Decoder(finite=False)
    buffer, place, line = "", 0, 1  # what was read, from where on it is unread, and on which line
    at_end = opened = False
    while True:
        skipped = (_BETWEEN_ROWS if opened else _SPACE).match(buffer, place)
        end = skipped.end() if skipped else place
        place, line = end, line + buffer.count("\n", place, end)
        if place == len(buffer) and not at_end:
            buffer, place = text.read(_BLOCK_CHARACTERS), 0
            at_end = not buffer
            continue
        if not opened:
            if place == len(buffer):
                return  # an empty file
            if buffer[place] != "[":
                raise _bad_json(path, line, "an array or an object must come first")
            opened, place = True, place + 1
            continue
        if buffer.startswith("]", place):
            return
        try:
            decoded = decoder.decode(buffer, place)
        except JSONDecodeError as error:
            may_continue = error.msg.startswith("Unterminated") or error.pos > len(buffer) - 16
            bad_line = line + buffer.count("\n", place, error.pos)
            buffer, place = buffer[place:], 0  # all of one object
            if problem := check_values(buffer):
                raise _bad_json(path, line, problem) from None
            more = ""
            if may_continue and not at_end and len(buffer) < _MAX_OBJECT_CHARACTERS:
                more = text.read(max(_BLOCK_CHARACTERS, len(buffer)))
            if not more:
                raise _bad_json(path, bad_line, error.msg) from None
            buffer += more
            continue
        end = decoded.end
        if end == len(buffer) and not at_end and not isinstance(decoded.value, dict):
            if end - place > _MAX_OBJECT_CHARACTERS:
                raise _bad_json(path, line, "a number must end")
            more = text.read(_BLOCK_CHARACTERS)  # a number may continue
            at_end = not more
            buffer, place = buffer[place:] + more, 0
            continue
        yield RawRow(line, fields(decoded))
        place, line = end, line + buffer.count("\n", place, end)


def _read_columns(text: IO[str], path: Path) -> Iterator[RawRow]:
    """Yield the rows of one object whose fields are lists; lists of other lengths are skipped."""
    content = text.read(_MAX_COLUMNS_CHARACTERS + 1)
    if len(content) > _MAX_COLUMNS_CHARACTERS:
        raise UserError(
            "a source file with one object must have at most "
            f"{_MAX_COLUMNS_CHARACTERS:,} characters; got more in {path}; write one row per line"
        )
    if problem := check_values(content):
        raise _bad_json(path, 1, f"{problem}; write one row per line")
    start = len(content) - len(content.lstrip())
    try:
        decoded = Decoder(finite=False).decode(content, start)
        if rest := content[decoded.end :].lstrip():
            raise JSONDecodeError("Extra data", content, len(content) - len(rest))
    except JSONDecodeError as error:
        raise _bad_json(path, error.lineno, error.msg) from None
    lists = {key: value for key, value in decoded.value.items() if isinstance(value, list)}
    if not lists:
        yield RawRow(1, fields(decoded))
        return
    num_rows = len(next(iter(lists.values())))
    kept = {key: value for key, value in lists.items() if len(value) == num_rows}
    for number in range(num_rows):
        row: dict[str, Any] | Unreadable = {key: value[number] for key, value in kept.items()}
        if decoded.problem and has_lone_surrogate(row):
            row = Unreadable(f"a row must be valid JSON: {decoded.problem}")
        elif decoded.problem and not has_lone_surrogate(decoded.value):
            raise _bad_json(path, 1, decoded.problem)
        yield RawRow(number + 1, row)


def _bad_json(path: Path, line: int, message: str) -> UserError:
    return UserError(f"source file must be valid JSON; got {path}, line {line}: {message}")

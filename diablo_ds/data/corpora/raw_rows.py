"""One row as its file holds it, before it is interpreted."""

from __future__ import annotations

from json import JSONDecodeError
from typing import Any, NamedTuple

from diablo_ds.files.strict_json import Decoded, Decoder

MAX_ROW_CHARACTERS = 1_000_000
"""A longer row is damage, or an entire file in one field; it would stall a tokenizer."""


class RawRow(NamedTuple):
    """One row as its file holds it."""

    line: int
    """Line on which it starts, counted from 1; in a parquet file, the row."""
    value: bytes | dict[str, Any] | Unreadable
    """A line of JSON, not yet parsed; the row's fields; or why it could not be read."""
    has_earlier: bool = False
    """Whether the row before is an earlier piece of the same document."""
    has_later: bool = False
    """Whether the next row is a later piece of the same document."""

    def size(self) -> int:
        """Return the approximate number of characters, without parsing the row."""
        if isinstance(self.value, bytes):
            return len(self.value)
        values = self.value.values() if isinstance(self.value, dict) else ()
        return sum(len(value) for value in values if isinstance(value, str))


class Unreadable(NamedTuple):
    """Why a row could not be read."""

    reason: str


def too_long(length: int | str) -> Unreadable:
    """Return the reason why a row of ``length`` characters is rejected."""
    shown = f"{length:,}" if isinstance(length, int) else length
    return Unreadable(f"a row must have at most {MAX_ROW_CHARACTERS:,} characters: {shown}")


def parse(value: bytes | dict[str, Any] | Unreadable) -> dict[str, Any] | Unreadable:
    """Return a raw row's fields, or why it has none."""
    if not isinstance(value, bytes):
        return value
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        return Unreadable(f"a row must be UTF-8: {error.reason}")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        decoded = _decoder.decode(text, start)
    except JSONDecodeError as error:
        return Unreadable(f"a row must be valid JSON: {error.msg}, column {error.colno}")
    if text[decoded.end :].strip(" \t\r\n"):
        return Unreadable(f"a row must be valid JSON: Extra data, column {decoded.end + 1}")
    return fields(decoded)


def fields(decoded: Decoded) -> dict[str, Any] | Unreadable:
    """Return the fields of a JSON value, or why it is not a row."""
    if decoded.problem:
        return Unreadable(f"a row must be valid JSON: {decoded.problem}")
    if not isinstance(decoded.value, dict):
        return Unreadable(f"a row must be a JSON object: {type(decoded.value).__name__}")
    return decoded.value


_decoder = Decoder(finite=False)

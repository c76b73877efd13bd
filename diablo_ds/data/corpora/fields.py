"""Checked fields of raw rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diablo_ds.errors import UserError

Fields = Mapping[str, Any]
"""A raw row, parsed: its fields by name."""


class Exchange(NamedTuple):
    """What a row means: an instruction, perhaps with context, and the response to learn."""

    instruction: str
    context: str
    response: str


class RowError(UserError):
    """A row does not fit its corpus; the message is the reason."""


def text(row: Fields, field: str, *, may_be_empty: bool = False) -> str:
    """Return a text field.

    Raises:
        RowError: if it is missing, not text, or empty.
    """
    value = row.get(field)
    if not isinstance(value, str):
        shown = f"{value!r:.60}" if field in row else "no such field"
        raise RowError(f"field {field!r} must be text: {shown}")
    if not value.strip() and not may_be_empty:
        raise RowError(f"field {field!r} must not be empty")
    return value


def optional_text(row: Fields, field: str) -> str:
    """Return a text field that may be absent, null or empty; "" then.

    Raises:
        RowError: if it is not text.
    """
    if row.get(field) is None:
        return ""
    value = text(row, field, may_be_empty=True)
    return value if value.strip() else ""

"""The names of a row's fields: in any case, and columns that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diablo_ds.data.corpora.families import known_fields
from diablo_ds.data.corpora.fields import Fields, RowError
from diablo_ds.errors import UserError


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """Return the column of each field that is named, from texts such as "prompt=Question".

    Raises:
        UserError: if one is malformed, names an unknown field, or a field or column a second time.
    """
    columns: dict[str, str] = {}
    for text in texts:
        field, _, column = text.partition("=")
        known = known_fields()
        if not column or field not in known:
            raise UserError(
                f"column must be FIELD=COLUMN with one of the fields {', '.join(sorted(known))}; "
                f"got column={text!r}"
            )
        if field in columns or column in columns.values():
            raise UserError(f"each field and each column must be named once; got column={text!r}")
        columns[field] = column
    return columns


def with_field_names(row: Mapping[str, Any], columns: Mapping[str, str]) -> Fields:
    """Return a row with its fields under the names that are read: lower case, without space.

    Args:
        row: as its file holds it.
        columns: the column of each field that the user named.

    Raises:
        RowError: if a named column is missing, or two fields differ in case only.
    """
    if not columns and all(name.islower() and name == name.strip() for name in row):
        return row
    rest = dict(row)
    result: dict[str, Any] = {}
    for field, column in columns.items():
        found = column if column in row else _without_case(row, column)
        if found is None:
            raise RowError(f"a row must have the column {column!r}; it has {', '.join(row)!s:.200}")
        rest.pop(found, None)
        result[field] = row[found]
    for name, value in rest.items():
        plain = name.strip().lower()
        if plain in columns:
            continue  # the user named another column for this field
        if plain in result and name != plain:
            if plain not in row:
                raise RowError(f"fields of a row must differ in more than case: {name!r:.60}")
            continue
        result[plain] = value
    return result


def _without_case(row: Mapping[str, Any], column: str) -> str | None:
    found = [name for name in row if name.strip().lower() == column.strip().lower()]
    return found[0] if len(found) == 1 else None

"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def markdown_table(rows: Iterable[tuple[str, str]], head: tuple[str, str] = ("", "")) -> str:
    """Return a table of two columns."""
    cells = [head, ("---", "---"), *rows]
    return "\n".join(f"| {a} | {b} |" for a, b in (map(_cell, row) for row in cells))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

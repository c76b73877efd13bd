"""Text of anyone's in Markdown, which viewers such as TensorBoard turn into a page."""

from __future__ import annotations

_MARKS = "&<>[]|`"
"""Begin what a page could load, link to or take for markup, or end a table's cell."""


def cell(text: str) -> str:
    """Return a text as it is read in a cell of a table: no picture, link or tag begins in it."""
    for mark in _MARKS:
        text = text.replace(mark, f"&#{ord(mark)};" if mark != "&" else "&amp;")
    return "<br>".join(text.splitlines())

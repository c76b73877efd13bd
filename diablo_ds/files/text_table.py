"""Tables as text, with aligned columns, for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(
    rows: Sequence[Sequence[object]], *, left: Collection[int] | None = None, rule: bool = True
) -> str:
    """Return rows with aligned columns; the first row is the header.

    Args:
        rows: cells, equally many in each row.
        left: columns whose cells are aligned on the left, counted from 0; all by default.
        rule: whether a line is drawn below the header.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if left is None or i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]
    if rule:
        lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)

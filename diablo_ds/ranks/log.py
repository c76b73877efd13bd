"""The log of a run: stderr, from rank 0."""

from __future__ import annotations

import logging
import sys
import textwrap

from diablo_ds.files.shown_text import shown
from diablo_ds.ranks.live_line import shows_progress, terminal_columns

logger = logging.getLogger("diablo_ds")
_JOINED = "\0"
"""In place of a space that no row ends at; text that is shown has none."""


class _ShownMessages(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return in_rows(shown(super().format(record)))


def in_rows(text: str) -> str:
    """Return a text in rows of the terminal, with whole words; as it is where there is none."""
    if not shows_progress():
        return text
    return "\n".join(_wrapped(line, terminal_columns()) for line in text.split("\n"))


def _wrapped(line: str, columns: int) -> str:
    """Return a line in rows of a terminal, whole words each, those after the first one indented.

    Parts that two spaces set apart, such as a name with its value, stay whole where they fit.
    """
    if len(line) <= columns:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    rest = f"{indent}  "
    parts = line.strip().split("  ")
    kept = [p.replace(" ", _JOINED) if len(p) <= columns - len(rest) else p for p in parts]
    rows = textwrap.wrap(
        "  ".join(kept) if len(parts) > 1 else line.strip(),
        columns,
        initial_indent=indent,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(rows).replace(_JOINED, " ")


def set_up_logging(*, is_main_process: bool) -> None:
    """Send this package's log to stderr, from rank 0 only (others: errors)."""
    logger.setLevel(logging.INFO if is_main_process else logging.ERROR)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_ShownMessages("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False

"""The log of a run: stderr, from rank 0."""

from __future__ import annotations

import logging
import sys
import textwrap

from diablo_ds.files.shown_text import shown
from diablo_ds.ranks.live_line import shows_progress, terminal_columns

logger = logging.getLogger("diablo_ds")


class _ShownMessages(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = shown(super().format(record))
        if not shows_progress():
            return text
        return "\n".join(_wrapped(line, terminal_columns()) for line in text.split("\n"))


def _wrapped(line: str, columns: int) -> str:
    """Return a line whose words are whole on a terminal, paths and such in one piece."""
    if len(line) <= columns:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.strip(),
        columns,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def set_up_logging(*, is_main_process: bool) -> None:
    """Send this package's log to stderr, from rank 0 only (others: errors)."""
    logger.setLevel(logging.INFO if is_main_process else logging.ERROR)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_ShownMessages("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False

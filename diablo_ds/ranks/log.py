"""The log of a run: stderr, from rank 0."""

from __future__ import annotations

import logging
import sys

from diablo_ds.files.shown_text import shown

logger = logging.getLogger("diablo_ds")


class _ShownMessages(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def set_up_logging(*, is_main_process: bool) -> None:
    """Send this package's log to stderr, from rank 0 only (others: errors)."""
    logger.setLevel(logging.INFO if is_main_process else logging.ERROR)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_ShownMessages("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False

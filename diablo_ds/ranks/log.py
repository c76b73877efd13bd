"""The log of a run: stderr, from rank 0."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("diablo_ds")


def set_up_logging(*, is_main_process: bool) -> None:
    """Send this package's log to stderr, from rank 0 only (others: errors)."""
    logger.setLevel(logging.INFO if is_main_process else logging.ERROR)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False

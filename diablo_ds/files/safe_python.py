"""Processes of Python that import nothing of the working folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_VARIABLE = "PYTHONSAFEPATH"
"""By it a new Python does not look for modules in the current folder."""


@contextlib.contextmanager
def safe_children() -> Iterator[None]:
    """Start Python safely in the block: a user's math.py or random.py hides none of Python's own.

    Commands do so for as long as they run; this is for callers that are no commands.
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before

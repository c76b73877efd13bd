"""A progress bar over the bytes of a long conversion of files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def byte_progress(what: str, num_bytes: int, done: int = 0) -> Iterator[Any]:
    """Yield a progress bar on stderr; without a terminal, it prints a line every 15 s.

    Args:
        what: what is done, such as "Merging".
        num_bytes: of all work.
        done: of it before this start.
    """
    from tqdm import tqdm

    seconds = 0.1 if sys.stderr.isatty() else 15
    with tqdm(
        total=num_bytes,
        initial=done,
        desc=what,
        unit="B",
        unit_scale=True,
        dynamic_ncols=True,
        mininterval=seconds,
        delay=0 if sys.stderr.isatty() else seconds,
    ) as bar:
        yield bar

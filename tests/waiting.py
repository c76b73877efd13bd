"""Wait for events, not for seconds: a slow or busy machine fails no test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WAIT_S = 900.0
"""After as long what is waited for will not come any more."""


def wait_until(condition: Callable[[], T], what: str, poll_s: float = 0.05) -> T:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(poll_s)
    return value

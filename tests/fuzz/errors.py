"""What every reader promises: a result, or an error for the user that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError


def result_or_user_error(function: Callable[[], Any], path: Path | None = None) -> Any:
    """Call a function; return its result, or None where it raised an error for the user."""
    try:
        return function()
    except UserError as error:
        text = str(error)
        assert path is None or str(path) in text, text
        assert "; got" in text, text
        assert len(text) < 5000, text[:500]
        text.encode()
        return None

"""Pages as a browser shows them: headless Chromium, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.waiting import WAIT_S

_NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, _NAMES)), None)

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="needs a browser: Chromium, such as Debian's package chromium"
)
"""For tests that open a page."""


def page(url: str | Path, *, wait_ms: int = 0, size: tuple[int, int] = (1280, 900)) -> str:
    """Return a page's elements as HTML, after its scripts have run.

    Args:
        url: an address, or a file.
        wait_ms: how long its scripts may go on, in milliseconds of the page's own clock.
        size: of the window, in pixels.
    """
    budget = [f"--virtual-time-budget={wait_ms}"] if wait_ms else []
    return _browse(*budget, f"--window-size={size[0]},{size[1]}", "--dump-dom", _address(url))


def picture(url: str | Path, path: Path, *, width: int = 1280, height: int = 900) -> None:
    """Write a page's PNG as a window of this size, in pixels, shows it."""
    size = f"--window-size={width},{height}"
    _browse(size, "--hide-scrollbars", f"--screenshot={path}", _address(url))


def printed(url: str | Path, path: Path) -> None:
    """Write a page as the PDF that would be printed."""
    _browse("--no-pdf-header-footer", f"--print-to-pdf={path}", _address(url))


def _address(url: str | Path) -> str:
    return url.absolute().as_uri() if isinstance(url, Path) else url


def _browse(*words: str) -> str:
    assert BROWSER is not None
    with tempfile.TemporaryDirectory() as profile:
        # Its sandbox needs rights that root in a container does not have.
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command = [BROWSER, *options, f"--user-data-dir={profile}", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_S)
    return done.stdout

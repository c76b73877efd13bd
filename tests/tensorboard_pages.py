"""A real TensorBoard, and what a person reads on its pages."""

from __future__ import annotations

import contextlib
import html
import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from diablo_ds.ranks.free_port import free_port
from tests.browser import page
from tests.waiting import wait_until

_SETTLED_MS = 15_000
_LARGE = (1600, 8000)
"""Pixels; only cards in the window have titles."""


class Board:
    """A TensorBoard that runs."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **query: str) -> Any:
        """Return what the server answers, from JSON."""
        url = f"{self._address}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)

    def points(self, run: str, tag: str) -> list[tuple[int, float]]:
        """Return step and value of each point of a line."""
        rows = self.get("data/plugin/scalars/scalars", run=run, tag=tag)
        return [(int(step), value) for _, step, value in rows]

    def titles(self) -> list[str]:
        """Return what the first page names: runs, groups and cards, each in its order."""
        text = page(f"{self._address}#timeseries", wait_ms=_SETTLED_MS, size=_LARGE)
        names = re.findall(r'\bdata-id="defaultExperimentId/([^"]+)"', text)
        return [*map(html.unescape, names + re.findall(r'\btitle="([^"]+)"', text))]


@contextlib.contextmanager
def tensorboard(words: Sequence[str]) -> Iterator[Board]:
    """Start TensorBoard with the words of a command line, and yield it when it has read all."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", *words, "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    board = Board(f"http://127.0.0.1:{port}/")

    def has_runs() -> bool:
        assert process.poll() is None
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return bool(board.get("data/runs"))
        return False

    try:
        wait_until(has_runs, "TensorBoard")
        yield board
    finally:
        process.terminate()
        process.wait()

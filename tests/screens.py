"""What a terminal shows of the bytes that a program wrote to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence

from tests.waiting import WAIT_S

_PARTS = re.compile(r"\x1b\[J|\r|\n|[^\x1b\r\n]+")


class Screen:
    """The rows of a terminal, with what has scrolled off; knows what our live line uses."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = [""]
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        """Take output; an unknown control sequence is an error."""
        parts = _PARTS.findall(text)
        assert "".join(parts) == text
        for part in parts:
            if part == "\r":
                self._column = 0
            elif part == "\n":
                self._down()
                self._column = 0
            elif part == "\x1b[J":
                del self.rows[self._row + 1 :]
                self.rows[self._row] = self.rows[self._row][: self._column]
            else:
                for character in part:
                    self._put(character)

    def _put(self, character: str) -> None:
        if self._column == self.columns:
            self._down()
            self._column = 0
        row = self.rows[self._row].ljust(self._column)
        self.rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
        self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append("")


def resize(terminal: int, columns: int) -> None:
    """Set the width of a pseudo-terminal."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def run_in_terminal(
    command: Sequence[str],
    columns: int,
    on_output: Callable[[str, int], None] = lambda text, terminal: None,
    **options: object,
) -> str:
    """Run a command with its streams on a terminal, and return what it wrote.

    Args:
        command: words.
        columns: the terminal's width.
        on_output: called with all output so far and the terminal, each time some comes.
        options: further ones of `subprocess.Popen`, such as another stdout.
    """
    master, terminal = pty.openpty()
    resize(terminal, columns)
    streams = {name: terminal for name in ("stdin", "stdout", "stderr")} | options
    process = subprocess.Popen(command, **streams)  # type: ignore[call-overload]
    os.close(terminal)
    output, deadline = b"", time.monotonic() + WAIT_S
    with contextlib.closing(os.fdopen(master, "rb", buffering=0)) as file:
        while time.monotonic() < deadline:
            try:
                data = file.read(65536)
            except OSError:  # nobody has the terminal any more
                break
            if not data:
                break
            output += data
            on_output(output.decode(), file.fileno())
    assert process.wait(timeout=WAIT_S) == 0, output
    return output.decode().replace("\r\n", "\n")

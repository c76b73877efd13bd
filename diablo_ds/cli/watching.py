"""A text that is shown again and again, in place where there is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

import click

from diablo_ds.ranks.live_line import is_terminal

EVERY_S = 2.0


def show_again(look: Callable[[], tuple[str, bool]], *, every_s: float = EVERY_S) -> None:
    """Show a text every few seconds, until it may not change any more or control-C.

    Args:
        look: returns the text, and whether it may change.
        every_s: seconds between two looks.
    """
    num_lines = 0
    try:
        while True:
            text, may_change = look()
            if is_terminal(sys.stdout):
                num_lines = _redraw(text, num_lines)
            else:
                click.echo(text)
            if not may_change:
                return
            time.sleep(every_s)
    except KeyboardInterrupt:
        return


def _redraw(text: str, num_lines: int) -> int:
    """Write a text over the one before; return its number of lines.

    Only moves upwards and blanks are needed, which `ShownStream` lets through.
    """
    width, height = shutil.get_terminal_size()
    lines = text.splitlines()[: height - 1]
    lines += [""] * (num_lines - len(lines))
    click.echo("\x1b[A" * num_lines, nl=False)
    for line in lines:
        click.echo(f"{line[: width - 1]:<{width - 1}}")
    return len(lines)

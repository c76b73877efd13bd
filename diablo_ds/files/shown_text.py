"""Text of files and other processes, made safe to look at: a terminal obeys control characters.

They move the cursor, retitle the window, fill the clipboard or type an answer, whoever wrote them.
Only the standard library is used here: a guard lives beside every rank and has to stay small.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_C0_BUT_LINES = r"\x00-\x08\x0b-\x1f"
_DELETE_AND_C1 = r"\x7f-\x9f"
_DIRECTIONS = r"\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""They make the rest of a line read in another order, or begin a line."""
_CONTROL = re.compile(f"[{_C0_BUT_LINES}{_DELETE_AND_C1}{_DIRECTIONS}]")
_STYLES = re.compile(r"\x1b\[(?:0|1|4|32)?m")
"""What this program sets itself: bold, underlined, green, plain."""
_BAR_MOVES = re.compile(r"(?:\n|\x1b\[A)*")
"""A progress bar moves to its line and back."""
_BAR_PARTS = re.compile(r"(\r|\x1b\[A)")


def shown(text: str) -> str:
    """Return a text with its control characters written out, such as \\x1b; not lines and tabs."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def shown_with_styles(text: str) -> str:
    """Return what `shown` does, but for the styles that this program sets itself."""
    return _keeping(_STYLES, shown, text)


def shown_output(text: str) -> str:
    """Return what a process writes at once, where it may draw a progress bar.

    A bar's text begins with a carriage return and ends without a new line.
    """
    if _BAR_MOVES.fullmatch(text):
        return text
    if text.startswith("\r") and "\n" not in text:
        return _keeping(_BAR_PARTS, shown_with_styles, text)
    return shown_with_styles(text)


def shown_line(text: str) -> str:
    """Return a line of another process of this run, in which bars and their ends stand."""
    return _keeping(_BAR_PARTS, shown_with_styles, text)


def _keeping(kept: re.Pattern[str], change: Callable[[str], str], text: str) -> str:
    parts, end = [], 0
    for match in kept.finditer(text):
        parts += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(text[end:])])

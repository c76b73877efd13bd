"""Control characters in text of files: written out, so that no terminal obeys them."""

from __future__ import annotations

import logging
import unicodedata

import pytest

from diablo_ds.files.shown_text import shown, shown_line, shown_output
from diablo_ds.ranks.log import _ShownMessages

EVERY = "".join(map(chr, range(0x3000)))


@pytest.mark.parametrize("show", [shown, shown_output, shown_line])
def test_no_control_character_is_left_but_lines_and_tabs(show):
    left = {c for c in show(EVERY) if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
    assert left - {"\n", "\t"} == ({"\r"} if show is shown_line else set())
    assert "\\x1b" in show(EVERY)
    assert "\\u202e" in show(EVERY)


def test_other_text_is_unchanged():
    text = "Gr\u00fc\u00dfe, \u4f60\u597d \U0001f600\u200d \\x1b\n\tend"
    assert shown(text) == shown_output(text) == shown_line(text) == text


@pytest.mark.parametrize("text", ["\r 50%|##", "\n\x1b[A", "\x1b[32m\x1b[1mloss\x1b[0m", "\n"])
def test_what_this_program_draws_is_drawn(text):
    assert shown_output(text) == text


@pytest.mark.parametrize(
    "text", ["\r 50%\n", "a\r50%", "\x1b[Aabove", "\x1b[8mhidden", "\x1b[2;1H"]
)
def test_a_text_cannot_pass_for_a_bar(text):
    assert shown_output(text) == shown(text) != text


def test_a_log_line_is_shown_strictly():
    record = logging.LogRecord("n", logging.INFO, "p", 1, "%s", ("\r\x1b[32m",), None)
    assert _ShownMessages("%(message)s").format(record) == r"\r\x1b[32m"

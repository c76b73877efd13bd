"""Records on a terminal keep their words, and in a log their lines."""

from __future__ import annotations

import logging

import pytest

from diablo_ds.ranks import log

PATH = "/a/long-path/" + "x" * 60
TEXT = f"Chosen: {'word ' * 30}\n  held-out rows are in {PATH}"


def test_a_name_stays_with_its_value_and_further_rows_are_indented():
    parts = [f"metric {n} 0.{n:04} [0.1, 0.9]" for n in range(10)]
    first, *others = log._wrapped("  ".join(parts), 80).split("\n")
    rows = [first, *(row.removeprefix("  ") for row in others)]
    assert [part for row in rows for part in row.split("  ")] == parts
    assert all(row.startswith("  m") for row in others)


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_words_stay_whole_and_nothing_is_lost(columns, monkeypatch):
    monkeypatch.setattr(log, "shows_progress", lambda: True)
    monkeypatch.setattr(log, "terminal_columns", lambda: columns)
    record = logging.LogRecord("name", logging.INFO, "", 0, TEXT, None, None)
    lines = log._ShownMessages("%(message)s").format(record).split("\n")
    assert all(len(line) <= columns for line in lines)
    assert " ".join(lines).split() == TEXT.split()
    assert any(PATH in line for line in lines)
    assert lines[-1].startswith("  ")
    monkeypatch.setattr(log, "shows_progress", lambda: False)
    assert log._ShownMessages("%(message)s").format(record) == TEXT

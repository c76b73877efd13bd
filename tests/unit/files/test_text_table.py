"""Tables as text."""

from __future__ import annotations

from diablo_ds.files.text_table import text_table

ROWS = [("name", "bytes"), ("a", 1), ("long name", 1234)]


def test_columns_are_aligned_and_the_header_is_ruled():
    assert text_table(ROWS, left=(0,)).splitlines() == [
        "name       bytes",
        "----------------",
        "a              1",
        "long name   1234",
    ]


def test_without_a_rule_and_all_on_the_left_no_line_ends_in_spaces():
    assert text_table(ROWS, rule=False).splitlines() == [
        "name       bytes",
        "a          1",
        "long name  1234",
    ]
